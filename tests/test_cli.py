"""The real command line: exit codes, resume, sweeps, sampling; mistakes: test_bad_input.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import QUICK, TINY, trained

from scm import sample

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "run.py"]
SMALL = [*QUICK, *TINY["unet_small"]]


def command(*arguments, **more):
    return subprocess.run(
        [*COMMAND, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, **more
    )


def contents(folder):
    """Every file below `folder` with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_and_cfg_answer_without_a_run():
    shown = command("--help")
    assert shown.returncode == 0 and "objective=sct weighting=unit" in shown.stdout
    assert "_target_: scm.objectives.SCT" in command("--cfg", "job").stdout


def test_tab_completion_names_the_options():
    line = "python run.py objective="
    environment = {**os.environ, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    shown = command("-sc", "query=bash", env=environment)
    assert {"objective=sct", "objective=scd"} <= set(shown.stdout.split())


@pytest.mark.slow
def test_smoke_then_done_then_refused(tmp_path):
    run = f"hydra.run.dir={tmp_path / 'run'}"
    assert command(run, *SMALL).returncode == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "done"
    hydra_files = {path.name for path in (tmp_path / "run" / ".hydra").iterdir()}
    assert hydra_files == {"config.yaml", "overrides.yaml", "hydra.yaml", "command.txt"}
    assert "done" in (tmp_path / "run" / "run.log").read_text()

    before = contents(tmp_path)
    again = command(run, *SMALL)
    assert again.returncode == 0 and "done already" in again.stdout
    other = command(run, *SMALL, "seed=5")
    assert other.returncode == 2 and "seed=5 (there: 0)" in other.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    arguments = [f"hydra.run.dir={tmp_path / 'run'}", *SMALL, "trainer.budget.steps=400"]
    arguments += ["trainer.log_every=1", "trainer.save_every=1000", "trainer.evaluate_every=1000"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "stopped" and 0 < metrics["steps"] < 400
    assert command(*arguments).returncode == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps[:400] == list(range(1, 401))


@pytest.mark.slow
def test_the_quickstart_trains_its_teacher_first(tmp_path):
    short = [*SMALL, "trainer.budget.steps=4"]
    quick = ",".join(f'"{override}"' for override in short)
    ended = command(
        *("experiment=quickstart_scd", f"hydra.run.dir={tmp_path / 'run'}", *short),
        f"objective.teacher_overrides=[{quick}]",
    )
    assert ended.returncode == 0, ended.stderr
    for folder, objective in (("run", "scd"), ("run/teacher", "diffusion")):
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert (metrics["status"], metrics["objective"]) == ("done", objective)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "run"
    trained(path, *TINY["unet_small"], "trainer.budget.steps=2")
    return path


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
