"""A run's folder is never overwritten."""

import json

import pytest

from scm.config.read import flatten
from scm.core.errors import UserError
from scm.storage.folder import RunFolder, Status

CONFIG = {"seed": 0, "trainer": {"batch_size": 4, "budget": {"steps": 3}}, "times": [1.1]}


def opened(path):
    folder = RunFolder(path)
    folder.open({"config.yaml": json.dumps(CONFIG)}).close()  # JSON is YAML
    return folder


def test_new_empty_and_own_folders_pass(tmp_path):
    RunFolder(tmp_path / "new").check(CONFIG)
    RunFolder(tmp_path).check(CONFIG)
    folder = opened(tmp_path / "own")
    folder.check(CONFIG)
    assert folder.status() is Status.new and not (tmp_path / "new").exists()


def test_another_configuration_is_refused_by_name(tmp_path):
    folder = opened(tmp_path / "run")
    other = {**CONFIG, "seed": 7, "extra": True}
    with pytest.raises(UserError, match=r"extra=True \(there: None\), seed=7 \(there: 0\)"):
        folder.check(other)


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds files but no run"):
        RunFolder(tmp_path / "mine").check(CONFIG)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file"):
        RunFolder(tmp_path / "file").check(CONFIG)


def test_a_folder_that_was_killed_before_its_config_was_written_is_used(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open({}).close()
    (folder.path / ".hydra" / ".config.yaml.7.tmp").write_text("half")
    folder.check(CONFIG)
    (folder.samples / "mine.png").write_text("x")
    with pytest.raises(UserError, match="holds files but no run"):
        folder.check(CONFIG)


def test_a_second_process_is_refused_and_stale_temporaries_go(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.open({}):
        with pytest.raises(UserError, match="another process"):
            folder.open({})
        (folder.checkpoints / ".step-00000001.pt.99.tmp").write_bytes(b"half")
    folder.open({}).close()
    assert not list(folder.checkpoints.iterdir())


def test_metrics_and_status(tmp_path):
    folder = opened(tmp_path / "run")
    folder.write_metrics({"status": "done", "steps": 3})
    assert folder.status() is Status.done and folder.metrics()["steps"] == 3
    (folder.path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: not the record of a run .*; restore it"):
        folder.status()


def test_only_an_empty_folder_is_removed(tmp_path):
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").remove_if_empty()
    RunFolder(tmp_path / "absent").remove_if_empty()
    opened(tmp_path / "run").remove_if_empty()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_flatten():
    assert flatten(CONFIG) == {
        "seed": 0,
        "trainer.batch_size": 4,
        "trainer.budget.steps": 3,
        "times": [1.1],
    }
