"""The page's mathematics, which node runs: against closed forms, and against the project's."""

import subprocess
from pathlib import Path

import pytest
import torch
from browser import SECONDS
from served import PAGE, SD

from scm.method import schedules


@pytest.fixture(scope="module")
def node():
    """Runs node with these arguments."""

    def run(*arguments):
        command = ["node", *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except FileNotFoundError:
            pytest.skip("node is not installed")

    return run


def test_the_mathematics_against_closed_forms(node):
    ran = node("--test", str(Path(__file__).parent / "scm.test.mjs"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_grid_of_times_is_the_projects(node):
    script = f"import({str(PAGE / 'scm.mjs')!r}).then((m) => console.log(...m.karrasTimes(18)))"
    times = torch.tensor([float(t) for t in node("-e", script).stdout.split()]).double()
    expected = schedules.karras_times(18, sigma_data=SD)
    torch.testing.assert_close(times, expected, rtol=1e-6, atol=1e-9)
