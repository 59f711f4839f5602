"""SIGKILL at any moment costs no more than the steps since the last checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import QUICK, TINY

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = (
    *("data=bimodal", *TINY["mlp"], "model.dropout=0.2", "trainer.budget.steps=24"),
    *("trainer.save_every=3", "trainer.evaluate_every=16", "trainer.log_every=2"),
)


def killed(place, kills, seed, record):
    ended = subprocess.run(
        [
            sys.executable,
            "tests/support/killed.py",
            str(place),
            str(kills),
            str(seed),
            *QUICK,
            *RUN,
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    record("found", json.dumps(found))
    print(found)
    return found


@pytest.mark.slow
def test_killed_runs_end_as_the_undisturbed_one(tmp_path, record_property):
    """Weights, EMA, optimiser, best weights and records, bit for bit, after 4 kills."""
    found = killed(tmp_path, 4, 0, record_property)
    assert found["killed"] == 4 and found["inside a write"] == 2 and found["equal ends"] >= 1


@pytest.mark.soak
def test_25_kills(tmp_path, record_property):
    found = killed(tmp_path, 25, 1, record_property)
    assert found["killed"] == 25 and found["inside a write"] >= 10 and found["equal ends"] >= 1
