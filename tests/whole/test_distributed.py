"""Several processes: who takes which rows, and real torchrun jobs against one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from runs import QUICK, TINY, quick, trained

from scm.commands import callbacks
from scm.config.compose import CONF, prepare
from scm.core import distributed
from scm.core.distributed import Processes, World
from scm.core.errors import UserError
from scm.storage import store as checkpoint

TESTS = Path(__file__).resolve().parents[1]
STEPS = 30
RUN = (  # a batch that two processes and their micro-batches divide unevenly
    *TINY["unet_small"],
    "trainer.batch_size=9",
    "trainer.micro_batch_size=3",
    f"trainer.budget.steps={STEPS}",
    "trainer.log_every=1",
    "trainer.save_every=10",
    "trainer.evaluate_every=20",
)


def process(rank, size):
    """One of several, without the connection to the others."""
    mine = object.__new__(Processes)
    mine.rank, mine.size = rank, size
    return mine


def torchrun(script, *arguments):
    """Two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*command, "--nproc-per-node=2", script, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'training'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def records(folder):
    """Loss, error and the rest by step, without speeds and evaluations."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {tag: value for tag, value in line.items() if not tag.startswith("usage/")}
        for line in lines
        if "train/loss" in line
    ]


def assert_same_run(folder, reference):
    """Every logged number to 1e-4, every weight to 1e-4: float32 sums in another order."""
    mine, theirs = records(folder), records(reference)
    assert [line["step"] for line in mine] == list(range(1, STEPS + 1))
    for line, expected in zip(mine, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-6)
    ends = [checkpoint.newest(path / "checkpoints") for path in (folder, reference)]
    for part in ("net", "ema"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=1e-3, atol=1e-4)
    assert ends[0].keys() == ends[1].keys() and ends[0]["images_seen"] == 9 * STEPS


@pytest.fixture
def alone(shared):
    """The same run by one process."""
    return shared("alone", lambda folder: trained(folder, *RUN))


def test_rows_cover_the_batch_once_and_evenly():
    for batch_size, size in ((8, 1), (8, 2), (9, 2), (128, 3), (5, 5)):
        rows = [process(rank, size).rows(batch_size) for rank in range(size)]
        assert [row for mine in rows for row in mine] == list(range(batch_size))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
    assert World().rows(8) == range(8)


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(UserError, match=r"trainer.batch_size=1: .* 2 processes share"):
        process(1, 2).check(1, torch.device("cpu"))
    process(1, 2).check(2, torch.device("cpu"))


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_all_processes_take_the_first_ones_time(key, monkeypatch):
    """`${now:...}` is resolved by each process' own clock; the folder's name is the first's."""

    class Other(World):
        def share(self, value):
            return {**value, "now": dict.fromkeys(value["now"], "THE-FIRST-ONES")}

    monkeypatch.setattr(distributed, "world", Other)
    prepare()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        timed = "hydra.sweep.dir='outputs/a-${now:%S}'"  # a sweep's own name has no time in it
        cfg = compose("config", overrides=[*QUICK, timed], return_hydra_config=True)
    cfg.hydra.job.config_name = "config"
    callbacks._share_time(cfg, key)
    section = cfg.hydra.run if key == "hydra.run.dir" else cfg.hydra.sweep
    assert section.dir.endswith("-THE-FIRST-ONES")


@pytest.mark.parametrize("part", ["launcher", "sweeper"])
def test_processes_that_start_processes_or_searches_are_refused(part, monkeypatch, capsys):
    plugin = {"_target_": f"hydra_plugins.other.other.Other{part.title()}"}
    basic = {p: {"_target_": f"a.Basic{p.title()}"} for p in ("launcher", "sweeper")}
    choices = {"hydra/launcher": "basic", "hydra/sweeper": "basic", f"hydra/{part}": "other"}
    cfg = OmegaConf.create({**basic, part: plugin, "runtime": {"choices": choices}})
    callbacks._refuse_processes(cfg)
    monkeypatch.setenv("WORLD_SIZE", "2")
    callbacks._refuse_processes(OmegaConf.create({**basic, "runtime": {"choices": choices}}))
    with pytest.raises(SystemExit, match="2"):
        callbacks._refuse_processes(cfg)
    assert f"error: hydra/{part}=other: not under torchrun" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_agree_and_share_each_run_of_a_sweep(alone, tmp_path):
    """First their agreement, gradients and matching, as two_processes.py checks them; then a run
    that fails in both, and stands as failed; then one that is what one process trains."""
    jobs = ["-m", f"hydra.sweep.dir={tmp_path}", *quick(*RUN), "trainer.batch_size=1,9"]
    job = torchrun(str(TESTS / "support" / "two_processes.py"), *jobs)
    said, _ = job.communicate(timeout=400)
    assert (
        job.returncode != 0 and "gradients, matching, colour and the transformer agree" in said
    ), said
    found = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/metrics.json")
    }
    assert {name: run["status"] for name, run in found.items()} == {
        "trainer.batch_size=1": "failed",
        "trainer.batch_size=9": "done",
    }
    assert found["trainer.batch_size=9"]["processes"] == 2 and (tmp_path / "report.html").exists()

    run = tmp_path / "trainer.batch_size=9"
    assert_same_run(run, alone)
    names = [{path.name for path in folder.iterdir()} for folder in (run, alone)]
    plain = [{name for name in found if not name.startswith("events.")} for found in names]
    assert plain[0] - {"run.log"} == plain[1] - {"run.log"}
    assert said.count("step 7 ") == 1  # one of them speaks


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_and_one_process_goes_on(alone, tmp_path):
    folder = tmp_path / "run"
    job = torchrun("run.py", f"hydra.run.dir={folder}", *quick(*RUN))
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(second_of(job.pid), signal.SIGTERM)
    said, _ = job.communicate(timeout=300)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["status"] == "stopped" and 0 < metrics["steps"] < STEPS, said
    assert metrics["signal"] == signal.SIGTERM and job.returncode != 0
    assert checkpoint.newest(folder / "checkpoints")["step"] == metrics["steps"]
    assert trained(folder, *RUN)["status"] == "done"
    assert_same_run(folder, alone)


def second_of(torchrun_pid):
    """The process id of rank 1, among the children of torchrun."""
    children = Path(f"/proc/{torchrun_pid}/task/{torchrun_pid}/children")
    if not children.exists():
        pytest.skip("this system does not list a process' children in /proc")
    for pid in children.read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError("no rank 1")
