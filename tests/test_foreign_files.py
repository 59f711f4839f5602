"""Files of a stranger's beside checkpoints: samples, results, run folders, pages made of them."""

import json
import os
import zipfile

import numpy as np
import pytest
import torch
import yaml
from runs import TINY, composed_once, trained

from scm import build, checkpoint, cli, report, results, runs, sample, subjects
from scm.errors import UserError
from scm.logger import Logger
from scm.runfolder import RunFolder

CPU = torch.device("cpu")
MACHINE = subjects.Machine(CPU, torch.float32, 8)
CALL = "os.system"
TOY = ("data=bimodal", *TINY["mlp"])


def config_of(**changes):
    """A whole config, with values changed, or left out where None, by their dotted names."""
    found = json.loads(json.dumps(composed_once(TOY)))
    for name, value in changes.items():
        node = found
        *groups, last = name.split(".")
        for group in groups:
            node = node[group]
        node[last] = value
        if value is None:
            del node[last]
    return found


# ---------------------------------------------------------------- configs that are not whole


@pytest.fixture(scope="module")
def weights():
    return dict(build.network(composed_once(TOY), CPU, torch.float32).state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": None},
        {"sampler": "one_step"},
        {"sampler": ["one_step"]},
        {"sampler": {"one_step": "scm.samplers.Ddim"}},
        {"sampler": {}},
        {"sampler": {"one_step": {"_target_": CALL}}},
        {"data": {}},
        {"data.image_shape": [1, 28]},
        {"data.image_shape": ["1", 1, 1]},
        {"data.sigma_data": None},
        {"model.num_classes": None},
        {"objective": "sct"},
        {"objective.teacher": 5},
        {"model.norm": "\x1b]0;mine\x07\nx"},
    ],
    ids=str,
)
def test_a_config_that_is_not_whole_is_one_line(changes, weights, tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    checkpoint.save_weights(file, weights, config_of(**changes))
    with pytest.raises(SystemExit) as ended:
        sample.main([str(file), "--out", str(tmp_path / "x.npz"), "-n", "1"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.rstrip("\n").isprintable()
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_without_weights_or_config_is_one_line(weights, tmp_path):
    for name, state in {
        "no weights": {"config": config_of()},
        "a list": {"ema": [1], "config": config_of()},
        "no tensors": {"ema": {"w": 1}, "config": config_of()},
        "no config": {"ema": weights},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        path = checkpoint.save(folder, state, step=1, keep=1)
        with pytest.raises(UserError, match="of this project"):
            build.trained_network(path, CPU, torch.float32)


def test_a_files_config_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url", lambda *_, **__: pytest.fail("downloads")
    )
    data = composed_once(("data=fashion_mnist",))["data"]
    stored = {"data": {**data, "download": True, "root": str(tmp_path / "elsewhere")}}
    with pytest.raises(UserError, match="is missing"):
        build.stored_dataset(stored, "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: holds no config of this project"):
        build.stored_dataset({"data": {**data, "more": 1}}, "x.pt")


def test_a_pt_file_claims_no_more_than_it_has(tmp_path):
    """Many entries over the same bytes, and lists that unfold to 10^30 parts."""
    path = checkpoint.save(tmp_path, {"ema": {"w": torch.zeros(1000)}}, step=1, keep=1)
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda e: e.file_size)
        position = entry.header_offset
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(50):
            again = zipfile.ZipInfo(entry.filename.replace("/0", f"/{number + 1}"))
            again.file_size = again.compress_size = entry.file_size
            again.CRC, again.header_offset = entry.CRC, position
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(UserError, match="claims more bytes than it has"):
        checkpoint.read(path)

    parts: list = [0] * 10
    for _ in range(30):
        parts = [parts] * 10
    torch.save({"ema": parts, "sha256": ""}, path)
    with pytest.raises(UserError, match="parts within parts"):
        checkpoint.read(path)


# ---------------------------------------------------------------- samples and results


def samples(path, **changes):
    sampler = {"one_step": composed_once(TOY)["sampler"]["one_step"]}
    settings = {"config": config_of(), "sampler": sampler, "seed": 0, "model": "x", **changes}
    images = np.zeros((20, 1, 1), np.uint8)
    np.savez_compressed(path, images=images, settings=np.array(json.dumps(settings)))
    return path


def test_samples_of_a_strangers_are_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "x.npz"
    assert subjects.subjects_of(samples(path), None, None, None, MACHINE)[0].n == 20
    for changes in (
        {"config": {}},
        {"config": [1]},
        {"config": config_of(**{"data._target_": None})},
        {"sampler": {}},
        {"sampler": {"a": {}, "b": {}}},
        {"sampler": {"a": {}}},
        {"sampler": {"a": {"_target_": CALL}}},
    ):
        with pytest.raises(UserError, match=r"x\.npz: no samples that"):
            subjects.subjects_of(samples(path, **changes), None, None, None, MACHINE)


def npz(path, shape, written):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for _ in range(written // 2**24):
                file.write(bytes(2**24))
        archive.writestr("settings.npy", b"")
    return path


def test_samples_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    with pytest.raises(UserError, match="no samples that"):  # claims a terabyte, has nothing
        subjects.subjects_of(npz(path, (2**30, 28, 28), 0), None, None, None, MACHINE)
    monkeypatch.setattr(subjects, "LARGEST", 2**25)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="unpacks to more than"):
        subjects.subjects_of(npz(path, (4, 2**24), 2**26), None, None, None, MACHINE)
    assert path.stat().st_size < 2**18


def test_pickled_arrays_are_refused(tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    np.savez(tmp_path / "x.npz", images=np.array([Bomb()]), settings=np.array("{}"))
    with pytest.raises(UserError, match="no samples that"):
        subjects.subjects_of(tmp_path / "x.npz", None, None, None, MACHINE)
    assert not canary.exists()


def test_results_that_are_not_whole_are_refused_and_break_no_table(tmp_path):
    shown = {name: {"mean": 1.0, "std": None} for name in results.SHOWN}
    whole = {
        **{"model": "a|b\nc", "title": "t", "calls": 1, "n": 5, "seeds": [0]},
        **{"metrics": {**shown, "frechet_distance": {"mean": 1.0, "std": None}}},
        **{
            "floor": {"frechet_distance": 0.5},
            "data": {"sha256": "d"},
            "features": {"sha256": "f"},
        },
    }
    file = tmp_path / "x.json"
    file.write_text(json.dumps(whole))
    assert results.table([results.read(file)]).splitlines()[2].startswith("| a\\|b c | t | 1 |")
    for changes in ({"data": {}}, {"floor": {"frechet_distance": 0}}, {"seeds": 5}):
        file.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(UserError, match="not a result"):
            results.read(file)


# ---------------------------------------------------------------- run folders and their pages


@pytest.fixture
def folder(tmp_path):
    trained(tmp_path / "run", *TOY, "trainer.budget.steps=2", "trainer.log_every=1")
    return tmp_path / "run"


EVIL = "<script>alert(1)</script>|`"
RECORDS = {  # changes of metrics.json that no run writes
    "status": {"status": EVIL},
    "kinds": {"status": 3, "metrics": [1], "quality": 5, "seconds": "x", "git_commit": [1]},
    "deep": {"quality": {"features_sha256": [1]}, "metrics": {EVIL: 1.0, "eval/loss": 10**400}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_or_hostile_run_is_shown_without_harm(name, folder, tmp_path):
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**record, **RECORDS[name]}))
    hydra = folder / ".hydra"
    config = {"seed": [1], "trainer": {"batch_size": "x"}, "sampler": {EVIL: {}}, EVIL: EVIL}
    (hydra / "config.yaml").write_text(yaml.safe_dump(config))
    (hydra / "overrides.yaml").write_text(yaml.safe_dump([f"seed={EVIL}"]))
    (hydra / "command.txt").write_text(EVIL)
    with (folder / "metrics.jsonl").open("ab") as file:
        for line in (b"[1]", b'{"step": [1]}', b'{"step": 3, "eval/loss": 1e999}', b"\xff"):
            file.write(line + b"\n")
    sweep = {"question": EVIL, "command": f"{EVIL}\n# {EVIL}", "name": 5}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    report.main([str(tmp_path)])
    for page in ("report.html", "summary.md"):
        lines = (tmp_path / page).read_text().splitlines()
        assert not [x for x in lines if "<script" in x and not x.startswith("    ")]  # code


def test_a_page_takes_no_file_but_pictures_of_the_run(tmp_path):
    path = tmp_path / "run"
    (path / "samples").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"\x89PNG of someone else")
    (path / "samples" / "a_00000001.png").symlink_to(tmp_path / "secret.png")
    (path / "samples" / "b_00000001.png").write_text("a password")
    (path / "samples" / "c_00000001.png").write_bytes(b"\x89PNG")
    config = {f"sampler.{name}.times": [] for name in "abc"}
    assert list(runs.Run(path, {}, config, (), "").pictures()) == ["c"]


def test_a_folder_that_would_write_elsewhere_is_refused(tmp_path):
    """Files that are opened in place, not replaced, may not be links."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (".lock", "run.log", "metrics.jsonl"):
        path = tmp_path / f"run{name}"
        RunFolder(path).open({"config.yaml": "seed: 0\n"}).close()
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(victim)
        with pytest.raises(UserError, match=f"{name} is a link"):
            RunFolder(path).check({"seed": 0})
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["a: [", "!!python/object/apply:os.system [x]", "\0", "[" * 9999, "- 1"]
)
def test_a_run_whose_config_is_damaged_is_refused(text, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({}).close()
    (folder.path / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"unreadable|another configuration"):
        folder.check({"seed": 0})


@pytest.mark.parametrize("text", ["[]", '{"status": "weird"}', "{", "3"])
def test_a_run_whose_record_is_damaged_is_refused(text, tmp_path):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json: unreadable"):
        RunFolder(tmp_path).status()


def test_a_damaged_line_of_the_record_costs_that_line(tmp_path, caplog):
    lines = [b'{"step": 1}', b"\xff\x00", b'{"step": "x"}', b"[1]", b'{"step": 2}', b'{"step": 9}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    Logger(tmp_path, step=2, config_text="").close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert caplog.text.count("left out, no record") == 3


def test_a_folder_taken_since_it_was_checked_is_refused(tmp_path):
    """Two commands start at once; the first has ended when the second has built its network."""
    folder = RunFolder(tmp_path / "run")
    folder.check({"seed": 1})
    folder.open({"config.yaml": "seed: 0\n"}).close()
    with pytest.raises(UserError, match=r"another configuration: seed=1 \(there: 0\)"):
        folder.open({"config.yaml": "seed: 1\n"})
    assert (folder.path / ".hydra" / "config.yaml").read_text() == "seed: 0\n"
    folder.open({"config.yaml": "seed: 0\n"}).close()  # the lock is free again


def test_ctrl_c_in_a_command_is_one_word(capsys):
    with pytest.raises(SystemExit) as ended, cli.mistakes_in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_a_line_of_the_commands_cannot_command_a_terminal(capsys):
    with pytest.raises(SystemExit):
        cli.fail(f"x=\x1b[2J{os.linesep}y\x07")
    assert capsys.readouterr().err == "error: x=?[2J y?\n"
