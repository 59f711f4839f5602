"""Checkpoints and weights come back as they were, or are refused."""

import pytest
import torch

from scm.core.errors import UserError
from scm.storage import store


def state(step=3):
    return {
        "config": {"a": [1, 2.5, None, "x"], "flag": True},
        "step": step,
        "ema": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(4)},
        "optimizer": {"state": {0: {"m": torch.ones(2, dtype=torch.bfloat16)}}},
    }


def flip_a_bit_of(path, needle):
    """Change one bit inside the bytes `needle`, which torch.load alone would not notice."""
    data = bytearray(path.read_bytes())
    data[data.index(needle) + 1] ^= 1
    path.write_bytes(bytes(data))


def test_round_trip(tmp_path):
    path = store.save(tmp_path, state(), step=3, keep=2)
    loaded = store.read(path)
    assert store.digest(loaded) == store.digest(state())
    assert torch.equal(loaded["ema"]["w"], state()["ema"]["w"])
    assert set(torch.load(path, weights_only=True)) == {*state(), "sha256"}


def test_the_newest_are_kept_and_no_temporary_file_stays(tmp_path):
    for step in (1, 2, 30):
        store.save(tmp_path, state(step), step=step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002.pt", "step-00000030.pt"]
    assert store.newest(tmp_path)["step"] == 30


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    store.save(tmp_path, state(1), step=1, keep=2)
    newest = store.save(tmp_path, state(2), step=2, keep=2)
    if damage == "flip":
        flip_a_bit_of(newest, torch.arange(6.0).numpy().tobytes())
    elif damage == "truncate":
        newest.write_bytes(newest.read_bytes()[:-200])
    elif damage == "empty":
        newest.write_bytes(b"")
    else:
        torch.save({"weights": 1}, newest)
    assert store.newest(tmp_path)["step"] == 1
    assert "step-00000002.pt" in caplog.text
    with pytest.raises(UserError, match=r"step-00000002\.pt"):
        store.read(newest)


def test_a_damaged_file_of_a_later_step_costs_no_good_one(tmp_path):
    """With one kept, a file that was passed over would otherwise push out what was just saved."""
    (tmp_path / "step-00000099.pt").write_bytes(b"damaged")
    for step in (1, 2):
        store.save(tmp_path, state(step), step=step, keep=1)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-00000002.pt", "step-00000099.pt"]
    assert store.newest(tmp_path)["step"] == 2


def test_another_runs_checkpoint_is_named_and_passed_over(tmp_path, caplog):
    store.save(tmp_path, state(1), step=1, keep=2)
    store.save(tmp_path, {**state(2), "config": {"a": 1}}, step=2, keep=2)
    assert store.newest(tmp_path)["step"] == 2
    assert store.newest(tmp_path, state()["config"])["step"] == 1
    assert "step-00000002.pt: belongs to a run with another configuration" in caplog.text
    with pytest.raises(UserError, match="no whole checkpoint among 2"):
        store.newest(tmp_path, {"a": 2})


def test_only_damaged_ones_are_an_error_and_none_is_none(tmp_path):
    assert store.newest(tmp_path) is None
    (tmp_path / "step-00000001.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="no whole checkpoint"):
        store.newest(tmp_path)


def test_a_pickle_with_code_is_refused(tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "step-00000001.pt"
    torch.save({"ema": Canary(), "sha256": ""}, path)
    with pytest.raises(UserError):
        store.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def weights():
    return {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


def test_weights_come_back_with_their_config(tmp_path, weights):
    path = tmp_path / "ema.safetensors"
    store.save_weights(path, weights, {"model": {"x": 1}})
    loaded, config = store.read_weights(path)
    assert config == {"model": {"x": 1}}
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert store.stored_digest(path) == store.weights_digest(weights)


def test_damaged_weights_are_refused(tmp_path, weights):
    path = tmp_path / "ema.safetensors"
    store.save_weights(path, weights, {"model": {"x": 1}})
    whole = path.read_bytes()
    flip_a_bit_of(path, torch.arange(6.0).numpy().tobytes())
    with pytest.raises(UserError, match="damaged, its contents do not match their checksum"):
        store.read_weights(path)
    for data in (b"nonsense", whole[:-4], b"", (2**40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not weights of this project") as refused:
            store.read_weights(path)
        assert "\n" not in str(refused.value)
        assert store.stored_digest(path) is None


def test_a_run_folder_gives_its_newest_ema_weights(tmp_path, weights):
    """They stand in ema.safetensors, whatever the checkpoints hold."""
    (tmp_path / "checkpoints").mkdir()
    store.save(tmp_path / "checkpoints", state(), step=3, keep=1)
    with pytest.raises(UserError, match="no weights in this folder"):
        store.read_weights(tmp_path)
    store.save_weights(tmp_path / "checkpoints" / store.EMA_FILE, weights, {"a": 1})
    loaded, config = store.read_weights(tmp_path)
    assert set(loaded) == set(weights) and config == {"a": 1}


def test_a_checkpoint_is_no_model(tmp_path):
    """It is refused by its name, before a byte of it is read."""
    path = tmp_path / "step-00000003.pt"
    path.write_bytes(b"anything")
    with pytest.raises(
        UserError, match=r"step-00000003\.pt: a checkpoint, .* its ema\.safetensors"
    ):
        store.read_weights(path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        store.read_weights(tmp_path / "nothing")
    with pytest.raises(UserError, match="no weights in this folder"):
        store.read_weights(tmp_path)
    assert store.stored_digest(tmp_path / "nothing") is None


def test_digest_sees_every_kind_of_change():
    reference = store.digest(state())
    changed = [state(4), state(), state(), state()]
    changed[1]["ema"]["w"] = changed[1]["ema"]["w"].view(3, 2)
    changed[2]["config"]["flag"] = 1
    changed[3]["optimizer"]["state"][0]["m"] = torch.ones(2, dtype=torch.float16)
    assert reference not in {store.digest(other) for other in changed}
