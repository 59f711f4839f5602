"""Files of a stranger's beside weights: samples, results, run folders, pages made of them."""

import json
import os
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from runs import TINY, composed_once

from scm.commands import report, results, sample
from scm.config.read import plain
from scm.core import cli
from scm.core.errors import UserError
from scm.report import read
from scm.storage import model as build
from scm.storage import samples as files
from scm.storage import store
from scm.storage.folder import RunFolder
from scm.storage.log import Logger

CPU = torch.device("cpu")
CALL = "os.system"
TOY = ("data=bimodal", *TINY["mlp"])


def config_of(**changes):
    """A whole config, with values changed, or left out where None, by their dotted names."""
    found = plain(composed_once(TOY))
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
        {"sampler": {"one_step": "scm.method.samplers.Ddim"}},
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
    store.save_weights(file, weights, config_of(**changes))
    with pytest.raises(SystemExit) as ended:
        sample.main([str(file), "--out", str(tmp_path / "x.npz"), "-n", "1"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and error.rstrip("\n").isprintable()
    assert list(tmp_path.iterdir()) == [file]


def test_a_files_config_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url", lambda *_, **__: pytest.fail("downloads")
    )
    config = composed_once(("data=fashion_mnist",))
    changed = {"download": True, "root": str(tmp_path / "elsewhere")}
    with pytest.raises(UserError, match="is missing"):
        build.stored_dataset(replace(config.data, **changed))


# ---------------------------------------------------------------- samples and results


def samples(path, **changes):
    sampler = {"one_step": config_of()["sampler"]["one_step"]}
    settings = {"config": config_of(), "sampler": sampler, "seed": 0, "model": "x", **changes}
    images = np.zeros((20, 1, 1), np.uint8)
    np.savez_compressed(path, images=images, settings=np.array(json.dumps(settings)))
    return path


def test_samples_of_a_strangers_are_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "x.npz"
    assert len(files.load(samples(path)).images) == 20
    for changes in (
        {"config": {}},
        {"config": [1]},
        {"config": config_of(**{"data._target_": None})},
        {"sampler": {}},
        {"sampler": {"a": {}, "b": {}}},
        {"sampler": {"a": {}}},
        {"sampler": {"a": {"_target_": CALL}}},
    ):
        with pytest.raises(UserError, match=r"x\.npz: "):
            files.load(samples(path, **changes))


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
    with pytest.raises(UserError, match="not a file of images"):  # claims a terabyte, has nothing
        files.load(npz(path, (2**30, 28, 28), 0))
    monkeypatch.setattr(files, "LARGEST", 2**25)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="unpacks to more than"):
        files.load(npz(path, (4, 2**24), 2**26))
    assert path.stat().st_size < 2**18


def test_pickled_arrays_are_refused(tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    np.savez(tmp_path / "x.npz", images=np.array([Bomb()]), settings=np.array("{}"))
    with pytest.raises(UserError, match="not a file of images"):
        files.load(tmp_path / "x.npz")
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
def folder(models, tmp_path):
    return shutil.copytree(models / "toy", tmp_path / "run")


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
    (path / ".hydra").mkdir()
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    assert list(read.read(path).pictures()) == ["c"]


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
    with pytest.raises(UserError, match=r"not the config of a run .*|another configuration"):
        folder.check({"seed": 0})


@pytest.mark.parametrize("text", ["[]", '{"status": "weird"}', "{", "3"])
def test_a_run_whose_record_is_damaged_is_refused(text, tmp_path):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.json: not the record of a run"):
        RunFolder(tmp_path).status()


def test_a_damaged_line_of_the_record_costs_that_line(tmp_path, caplog):
    lines = [b'{"step": 1}', b"\xff\x00", b'{"step": "x"}', b"[1]", b'{"step": 2}', b'{"step": 9}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    Logger(tmp_path, step=2, boards={}).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert caplog.text.count("left out a line") == 3


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
