"""The real command line: exit codes, resume, sweeps, sampling; mistakes: test_bad_input.py."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from runs import TINY, quick

from scm.commands import sample


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_and_cfg_answer_without_a_run(repository, commands):
    command = [sys.executable, "run.py", "--help"]
    shown = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert "objective=sct weighting=unit" in shown.stdout
    shown = commands("run.py", "--cfg", "job")
    assert "_target_: scm.method.objective.Eulerian" in shown.stdout


def test_tab_completion_names_the_options(commands):
    line = "python run.py objective="
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    shown = commands("run.py", "-sc", "query=bash", env=environment)
    assert {"objective=sct", "objective=scd"} <= set(shown.stdout.split())


@pytest.mark.slow
def test_smoke_then_done_then_refused(tmp_path, commands):
    run = ["run.py", f"hydra.run.dir={tmp_path / 'run'}", *quick(*TINY["unet_small"])]
    assert commands(*run).returncode == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "done"
    hydra_files = {path.name for path in (tmp_path / "run" / ".hydra").iterdir()}
    assert hydra_files == {"config.yaml", "overrides.yaml", "hydra.yaml", "command.txt"}
    assert "done" in (tmp_path / "run" / "run.log").read_text()

    before = contents(tmp_path)
    again = commands(*run)
    assert again.returncode == 0 and "done already" in again.stdout
    other = commands(*run, "seed=5")
    assert other.returncode == 2 and "seed=5 (there: 0)" in other.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, commands):
    run = ["run.py", f"hydra.run.dir={tmp_path / 'run'}", *quick(*TINY["unet_small"])]
    run += ["trainer.budget.steps=150", "trainer.log_every=1", "trainer.batch_size=2"]
    run += ["trainer.save_every=1000", "trainer.evaluate_every=1000"]
    process = commands.start(*run)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.ended().returncode == 128 + signal.SIGINT
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "stopped" and 0 < metrics["steps"] < 150
    assert commands(*run).returncode == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps[:150] == list(range(1, 151))


@pytest.mark.slow
def test_the_quickstart_trains_its_teacher_first(tmp_path, commands):
    short = quick(*TINY["unet_small"], "trainer.budget.steps=4")
    also = ",".join(f'"{override}"' for override in [*short, "sampler.heun.steps=2"])
    ended = commands(
        *("run.py", "experiment=quickstart_scd", f"hydra.run.dir={tmp_path / 'run'}", *short),
        f"objective.teacher_overrides=[{also}]",
    )
    assert ended.returncode == 0, ended.stderr
    for folder, objective in (("run", "scd"), ("run/teacher", "diffusion")):
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert (metrics["status"], metrics["objective"]) == ("done", objective)


@pytest.fixture
def run(models):
    return models / "sct"


def sampled(run, out, *arguments):
    sample.main([str(run), "--out", str(out), "--precision", "fp32", *arguments])
    with np.load(out) as file:
        return file["images"], json.loads(str(file["settings"]))


def test_samples_do_not_depend_on_the_batch_size(run, tmp_path):
    reference, settings = sampled(run, tmp_path / "a.npz", "--sampler", "two_step", "-n", "70")
    assert reference.shape == (70, 28, 28) and reference.dtype == np.uint8
    assert settings["sampler"]["two_step"]["times"] == [1.1] and settings["seed"] == 0
    for name, n, batch_size in (("b", 70, 70), ("c", 70, 13), ("d", 20, 7)):
        arguments = ("--sampler", "two_step", "-n", str(n), "--batch-size", str(batch_size))
        images, _ = sampled(run, tmp_path / f"{name}.npz", *arguments)
        assert np.array_equal(images, reference[:n])
    other, _ = sampled(run, tmp_path / "e.npz", "--sampler", "two_step", "-n", "70", "--seed", "1")
    assert not np.array_equal(other, reference)


def test_sampler_values_and_the_grid(run, tmp_path):
    _, settings = sampled(
        run, tmp_path / "a.npz", "--sampler", "multi_step", "times=[1.2,0.4]", "-n", "4"
    )
    assert settings["sampler"]["multi_step"]["times"] == [1.2, 0.4]
    sample.main([str(run), "--grid", str(tmp_path / "grid.png"), "-n", "64"])
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (2 * (8 * 29 + 1),) * 2


def test_no_file_is_overwritten_unasked(run, tmp_path, capsys):
    out = tmp_path / "x.npz"
    out.write_text("mine")
    with pytest.raises(SystemExit):
        sample.main([str(run), "--out", str(out), "-n", "1"])
    assert out.read_text() == "mine" and "--overwrite" in capsys.readouterr().err
    sample.main([str(run), "--out", str(out), "-n", "1", "--overwrite"])
    assert np.load(out)["images"].shape == (1, 28, 28)
