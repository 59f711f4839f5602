"""metrics.jsonl and TensorBoard say the same, also after a resume; only the first is needed."""

import errno
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from scm.storage.boards import Csv, TensorBoard, plain_settings
from scm.storage.log import Logger

CONFIG = {"seed": 0, "weighting": {"_target_": "scm.method.weighting.InverseSigma"}}


def logger_at(folder, step, *, taken=False):
    boards = {
        "tensorboard": lambda records: TensorBoard(folder=folder, step=step, config=CONFIG),
        "csv": lambda records: Csv(folder=folder, records=records),
    }
    return Logger(folder, step=step, boards=boards, taken=taken)


def logged(folder, resumed_at, records):
    logger = logger_at(folder, resumed_at)
    for step, loss in records:
        logger.scalars(step, {"train/loss": loss, "train/grad_norm": 1.0})
    logger.close()


def on_board(folder):
    return EventAccumulator(str(folder)).Reload()


def test_a_resume_drops_what_came_after_its_step_in_both(tmp_path):
    logged(tmp_path, 0, [(1, 0.5), (2, 0.25), (3, 9.0), (4, 9.0)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # a kill cut it short
    logged(tmp_path, 2, [(3, 0.125)])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert [(r["step"], r["train/loss"]) for r in map(json.loads, lines)] == expected
    board = on_board(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == expected
    assert board.Tags()["scalars"] == ["train/loss", "train/grad_norm"]
    rows = (tmp_path / "scalars.csv").read_text().splitlines()
    assert rows[0] == "step,tag,value" and "9.0" not in "".join(rows)
    losses = [row.split(",") for row in rows if "train/loss" in row]
    assert [(int(step), float(value)) for step, _, value in losses] == expected


def test_pictures_config_and_settings_are_on_the_board(tmp_path):
    logger = logger_at(tmp_path, 0)
    logger.picture(1, "grid", np.full((2, 3, 3), 255, np.uint8))
    logger.end({"eval/loss": 1.0})
    board = on_board(tmp_path)  # all is in the file before it is closed
    (picture,) = board.Images("samples/grid")
    assert (picture.step, picture.height, picture.width) == (1, 2, 3)
    (text,) = board.Tensors("config/text_summary")
    assert b"seed: 0" in text.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in board.summary_metadata
    logger.close()


@pytest.mark.parametrize("written", [0, 2])
def test_a_full_disk_costs_tensorboards_file_alone(tmp_path, monkeypatch, caplog, written):
    write, left = RecordWriter.write, written

    def limited(self, data):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", limited)
    logged(tmp_path, 0, [(1, 0.5), (2, 0.25)])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("no more for tensorboard") == 1


@pytest.mark.parametrize(("taken", "kept"), [(False, 3), (True, 2)])
def test_an_end_that_was_not_reached_leaves_no_evaluation_behind(tmp_path, taken, kept):
    """The last one comes after the last checkpoint, so a killed run makes it again."""
    lines = [
        {"step": 2, "eval/loss": 1.0},
        {"step": 4, "train/loss": 1.0},
        {"step": 4, "eval/loss": 1},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    logger_at(tmp_path, 4, taken=taken).close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines[:kept]


def test_settings_go_by_the_names_that_a_person_types():
    config = {
        **CONFIG,
        "objective": {"name": "ect", "tangent": {"_target_": "scm.method.tangent.Power", "p": 0.5}},
        "norm": {"_target_": "a.b.Rms"},
        "optimizer": {"_target_": "mine.Lion", "lr": 0.1},
        "on": True,
        "none": None,
    }
    assert plain_settings(config) == {
        "seed": 0,
        "weighting": "inv_sigma",
        "objective.name": "ect",
        "objective.tangent": "power_half",
        "objective.tangent.p": 0.5,
        "optimizer": "Lion",
        "optimizer.lr": 0.1,
        "on": "True",
    }
