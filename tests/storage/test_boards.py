"""Loggers of other projects get a run's numbers and pictures, offline; a resume goes on in them."""

import json
import logging

import numpy as np
import pytest
import yaml
from runs import TINY, trained

from scm.config import rules
from scm.config.compose import composed
from scm.core.errors import UserError
from scm.report.read import read, settings
from scm.storage.boards import Mlflow, Wandb
from scm.storage.folder import RunFolder
from scm.storage.log import Logger

PICTURE = np.zeros((2, 3, 3), np.uint8)
CONFIG = {"seed": 0, "optimizer": {"lr": 0.1}}


def test_a_missing_package_is_named_before_anything_begins(monkeypatch):
    monkeypatch.setattr(rules, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"logger=wandb: needs .* pip install -e '\.\[wandb\]'"):
        rules.check(composed(["logger=[tensorboard,wandb]"]))


def test_a_board_that_fails_costs_itself_alone(tmp_path, caplog):
    class Failing:
        def scalars(self, step, values):
            raise RuntimeError("the server is gone")

        def close(self):
            raise RuntimeError("so it is")

    logger = Logger(tmp_path, step=0, boards={"far": lambda records: Failing()})
    for step in (1, 2):
        logger.scalars(step, {"train/loss": 1.0})
    logger.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("no more for far: RuntimeError: the server is gone") == 1


def test_a_folder_is_this_runs_whatever_logger_it_had(tmp_path):
    (tmp_path / ".hydra").mkdir()
    config = {"seed": 0, "logger": {"csv": {"_target_": "scm.storage.boards.Csv"}}}
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    RunFolder(tmp_path).check({"seed": 0, "logger": {}})
    with pytest.raises(UserError, match="seed=1"):
        RunFolder(tmp_path).check({"seed": 1, "logger": {}})


@pytest.mark.slow
def test_where_a_run_is_shown_is_no_setting_of_it(tmp_path):
    """Reports hold such runs to be of one setting."""
    first, other = tmp_path / "csv", tmp_path / "none"
    trained(first, *TINY["unet_small"], "logger=csv")
    trained(other, *TINY["unet_small"], "logger=[]", "seed=1")
    rows = (first / "scalars.csv").read_text().splitlines()
    records = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + sum(len(record) - 1 for record in records)
    assert not list(first.glob("events.*"))
    assert len(settings([read(first), read(other)])) == 1


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb", reason="needs .[wandb]")
    for step in (1, 2):
        board = Wandb(project="scm", mode="offline", folder=tmp_path, config=CONFIG)
        board.scalars(step, {"train/loss": 0.5})
        board.picture(step, "grid", PICTURE)
        board.end({"eval/loss": 1.0})
        board.close()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # both are of one run
    data = b"".join(file.read_bytes() for file in files)
    assert b"train/loss" in data and b"samples/grid" in data and b"optimizer" in data


@pytest.mark.filterwarnings("ignore")  # its own, of its database
def test_mlflow_in_a_database(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="needs .[mlflow]")
    place = {"uri": f"sqlite:///{tmp_path}/new/mlflow.db", "artifacts": str(tmp_path / "art")}
    logging.disable(logging.INFO)
    for step in (1, 2):
        board = Mlflow(experiment="scm", folder=tmp_path, config=CONFIG, **place)
        board.scalars(step, {"train/loss": 0.5 * step})
        board.picture(step, "grid", PICTURE)
        board.close()
    logging.disable(logging.NOTSET)
    client = mlflow.MlflowClient(tracking_uri=place["uri"])
    (run,) = client.search_runs([client.get_experiment_by_name("scm").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "0", "optimizer.lr": "0.1"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 1.0)]
    assert list((tmp_path / "art").rglob("samples*grid*.png"))
