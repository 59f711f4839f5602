"""What a busy neighbour costs a training step, by how torch's threads wait for each other.

`python -m benchmark.neighbour '{...}'` is one process, whose environment says how they wait.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmark import process
from benchmark.cases import Workshop
from benchmark.timing import Label
from scm.core.errors import UserError

STEPS = 8  # timed, of every process
WARM_UP = 3
WAITS: dict[str, dict[str, str]] = {  # libgomp's: how long a thread spins before it sleeps
    "libgomp's own wait": {},
    "short spin": {"GOMP_SPINCOUNT": "1000"},
    "no spin": {"OMP_WAIT_POLICY": "passive"},
}


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that each keep a core busy, while entered."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(label: Label, wait: str, *, overrides: Sequence[str]) -> float:
    """The median second of a step in a fresh process. UserError where it fails."""
    request = {"label": asdict(label), "overrides": list(overrides)}
    without = {
        k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    try:
        times = process.asked("benchmark.neighbour", request, env={**without, **WAITS[wait]})
    except process.Failed as failure:
        raise UserError(str(failure)) from failure
    return median(times)


def steps(given: dict[str, Any]) -> list[float]:
    """The fresh process: build, warm up, time."""
    with tempfile.TemporaryDirectory() as folder:
        work = Workshop("cpu", given["overrides"], Path(folder)).step(Label(**given["label"]))
        for _ in range(WARM_UP):
            work.call()
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            work.call()
            times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    process.answer(steps)
