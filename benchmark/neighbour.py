"""What a busy neighbour costs a training step, by how torch's threads wait for each other.

`python -m benchmark.neighbour '{...}'` is one process, whose environment says how they wait: it
prints the seconds of its steps as JSON.
"""

import json
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

from benchmark.cases import Workshop
from benchmark.memory import REPOSITORY
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
    child = subprocess.run(
        [sys.executable, "-m", "benchmark.neighbour", json.dumps(request)],
        cwd=REPOSITORY,
        env={**without, **WAITS[wait]},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise UserError((child.stderr.strip().splitlines() or ["failed"])[-1])
    return median(json.loads(child.stdout.splitlines()[-1]))


def main(request: str) -> None:
    """The fresh process: build, warm up, time."""
    given = json.loads(request)
    with tempfile.TemporaryDirectory() as folder:
        work = Workshop("cpu", given["overrides"], Path(folder)).step(Label(**given["label"]))
        for _ in range(WARM_UP):
            work.call()
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            work.call()
            times.append(time.perf_counter() - started)
    print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1])
