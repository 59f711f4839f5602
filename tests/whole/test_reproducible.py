"""One seed, one run: in one process and in two, with torch's flags as they were afterwards."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import QUICK, TINY, trained

from scm.core import machine as runtime
from scm.storage import store as checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = ("data=bimodal", *TINY["mlp"], "trainer.budget.steps=3", "model.dropout=0.2")


def end(path):
    """Digest of all that training changes, in the last checkpoint of a run."""
    saved = checkpoint.newest(path / "checkpoints")
    return checkpoint.digest([saved[part] for part in ("net", "ema", "optimizer")])


def flags():
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled()
    return algorithms, cudnn.deterministic, cudnn.benchmark


@pytest.mark.slow
def test_a_seed_gives_the_same_run_twice_in_one_process_and_in_two(tmp_path):
    run = (*RUN, "seed=3", "trainer.deterministic=true")
    for name in ("one", "two"):
        trained(tmp_path / name, *run)
        assert flags() == (False, False, False)
    folder = f"hydra.run.dir={tmp_path / 'other'}"
    subprocess.run(
        [sys.executable, "run.py", folder, *QUICK, *run], cwd=REPOSITORY, check=True, timeout=600
    )
    assert end(tmp_path / "one") == end(tmp_path / "two") == end(tmp_path / "other")


def test_deterministic_says_what_it_promises_and_restores_torchs_flags(caplog):
    caplog.set_level(logging.INFO)
    before = flags()
    with pytest.raises(KeyError), runtime.deterministic(True, torch.device("cpu")):
        assert flags() == (True, True, False)
        raise KeyError
    assert flags() == before
    assert "trainer.deterministic: on cpu, bit for bit" in caplog.text
    caplog.clear()
    with runtime.deterministic(False, torch.device("cpu")):
        assert flags() == before and not caplog.records


def test_every_device_has_its_guarantee():
    assert set(runtime.GUARANTEES) == {"cpu", "cuda", "mps"}
