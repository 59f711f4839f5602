"""`python -m scm diagnose` on tiny runs: what it follows, what it writes, its mistakes."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scm.commands import diagnose
from scm.evaluation.trajectories import Measured
from scm.storage import store as checkpoint

IMAGE_FILES = {"gradient_map.png", "tangent_over_time.png"}
TOY_FILES = {"toy_trajectories.png", "toy_consistency.png", "toy_tangent.png"}
STEPS = 4


def test_a_recipes_teacher_is_found_from_a_file_of_its_student(models, tmp_path):
    weights, config = checkpoint.read_weights(models / "student")
    config["objective"] |= {"teacher": None, "teacher_recipe": "quickstart_teacher"}
    student = tmp_path / "run" / "checkpoints" / "ema.safetensors"
    student.parent.mkdir(parents=True)
    checkpoint.save_weights(student, weights, config)
    shutil.copytree(models / "teacher", tmp_path / "run" / "teacher")
    found = diagnosed(student, tmp_path / "out")
    assert found["teacher"] == str(tmp_path / "run" / "teacher")


def test_a_guided_teachers_ode_is_what_its_student_learned(models, tmp_path):
    weights, config = checkpoint.read_weights(models / "student")
    config["objective"]["velocity"] = {
        "_target_": "scm.method.velocity.GuidedTeacher",
        "guide": str(models / "teacher"),
        "guidance": 1.0,  # by which nothing moves
        "below": None,
    }
    checkpoint.save_weights(tmp_path / "guided.safetensors", weights, config)
    found = diagnosed(tmp_path / "guided.safetensors", tmp_path / "out")
    plain = diagnosed(models / "student", tmp_path / "plain")
    assert found["path"] == "the guided teacher's ODE"
    for mine, theirs in zip(found["times"], plain["times"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def diagnosed(run, out, *arguments):
    diagnose.main([str(run), "--out", str(out), "-n", "3", "--steps", str(STEPS), *arguments])
    return json.loads((out / "diagnostics.json").read_text())


@pytest.mark.parametrize(
    ("name", "arguments", "path"),
    [
        ("teacher", (), "the model's own ODE"),
        ("sct", (), "lines between data and noise"),
        ("conditional", (), "lines between data and noise"),
        ("sct", ("--teacher",), "the teacher's ODE"),
        ("student", (), "the teacher's ODE"),
        ("toy", (), "the exact ODE"),
    ],
)
def test_what_is_followed_and_written(models, name, arguments, path, tmp_path):
    if arguments:
        arguments = ("--teacher", str(models / "teacher"))
    found = diagnosed(models / name, tmp_path / "out", *arguments)
    assert (found["path"], found["n"], found["seed"]) == (path, 3, 0)
    assert found["teacher"] == (str(models / "teacher") if path == "the teacher's ODE" else None)
    times = [record["t"] for record in found["times"]]
    assert times == sorted(times, reverse=True) and len(times) == 2 * STEPS - 1
    for record in found["times"]:
        assert record["sigma"] == pytest.approx(0.5 * math.tan(record["t"]), rel=1e-5)
        assert 0 < record["tangent_rms_jvp"] < 10 and record["relative_difference"] < 0.2
        assert (record["consistency_rms"] is None) == (path == "lines between data and noise")

    pictures = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert pictures == IMAGE_FILES | (TOY_FILES if name == "toy" else set())
    assert list((tmp_path / "out").glob("events.*"))


@pytest.mark.pictures
def test_something_is_drawn(models, tmp_path):
    diagnosed(models / "toy", tmp_path / "out")
    for file in IMAGE_FILES | TOY_FILES:
        picture = np.asarray(Image.open(tmp_path / "out" / file))
        assert picture.shape[2] == 3 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_numbers_are_pooled_over_images():
    """Root mean squares over images of root mean squares over pixels, one record per time."""
    column = torch.tensor([[3.0, 4.0]])
    found = Measured(
        t=torch.tensor([math.pi / 4]),
        jvp=column,
        discrete=2 * column,
        difference=0.1 * column,
        from_end=torch.tensor([[1.0, 7.0]]),
    )
    (record,) = diagnose.records(found, 0.5, is_ode=True)
    assert record == {
        "t": pytest.approx(math.pi / 4),
        "sigma": pytest.approx(0.5),
        "tangent_rms_jvp": pytest.approx(math.sqrt(12.5)),
        "tangent_rms_discrete": pytest.approx(2 * math.sqrt(12.5)),
        "relative_difference": pytest.approx(0.1),
        "consistency_rms": pytest.approx(5.0),
    }


def test_the_default_folder_is_the_runs_and_is_not_overwritten_unasked(models, tmp_path, capsys):
    run = shutil.copytree(models / "sct", tmp_path / "run")
    arguments = [str(run), "-n", "2", "--steps", "2"]
    diagnose.main(arguments)
    assert (run / "diagnostics" / "diagnostics.json").exists()
    with pytest.raises(SystemExit):
        diagnose.main(arguments)
    assert "--overwrite" in capsys.readouterr().err
    diagnose.main([*arguments, "--overwrite"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUNS/nowhere"], "no such file or folder"),
        (["RUNS/sct", "--teacher", "RUNS/student"], "--teacher=RUNS/student: learns consistency"),
        (["RUNS/toy", "--teacher", "RUNS/teacher"], "--teacher=RUNS/teacher: trained with data."),
        (["RUNS/sct", "-n", "1"], "-n 1: must be at least 2"),
        (["RUNS/conditional", "--label", "3"], "--label 3: without a teacher"),
        (["RUNS/sct", "--label", "3"], "--label 3: the model is unconditional"),
    ],
)
def test_mistakes_are_one_line(models, arguments, said, tmp_path, capsys):
    filled = [argument.replace("RUNS", str(models)) for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        diagnose.main([*filled, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and said.replace("RUNS", str(models)) in error


def test_weights_in_a_file_need_an_out_folder(models, capsys):
    with pytest.raises(SystemExit):
        diagnose.main([str(models / "sct" / "checkpoints" / "ema.safetensors")])
    assert "--out" in capsys.readouterr().err
