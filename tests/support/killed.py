"""Run by `test_kill.py`: the real command, killed with SIGKILL again and again, and resumed.

Each attempt is a process of its own, forked from this one, which has imported the code and runs
nothing itself. Half of them are killed from outside at a random moment, the others kill themselves
inside a random write of a file: before, in the middle of and after every operation of it.
"""

import gc
import io
import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scm.commands import train as launch  # noqa: F401  (imported once, here)
from scm.core import files
from scm.storage import model as build  # noqa: F401
from scm.storage import store as checkpoint

SECONDS = 600  # no attempt takes as long, on a busy machine either


def attempt(overrides: list[str], output: Path, fault: int | None) -> int:
    """Start the command in a child; `fault` is the number of the file operation it dies at."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        console = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(console, 1)
        os.dup2(console, 2)
        if fault is not None:
            install(fault)
        sys.argv = ["run.py", *overrides]
        runpy.run_path("run.py", run_name="__main__")
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def install(fault: int) -> None:
    """Let the process die at the `fault`-th operation of `files.write_atomic`, counted from 0.

    Per file: half of it written, before and after its fsync, the rename, the folder's fsync.
    """
    count = iter(range(fault + 1))

    def step() -> None:
        if next(count) == fault:
            die()

    def around(function):
        def call(*arguments):
            step()
            function(*arguments)
            step()

        return call

    class File(io.FileIO):
        def write(self, data):
            super().write(data[: len(data) // 2])
            step()
            return super().write(data[len(data) // 2 :])

    files.open = lambda path, mode: File(path, mode.replace("b", ""))
    os.fsync, os.replace = around(os.fsync), around(os.replace)


def ended(child: int, *, within: float) -> int | None:
    """Its exit status, None where it still runs after so many seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def outcome(folder: Path) -> dict:
    """All that a run leaves but times: what must be equal, bit for bit."""

    def timeless(record):
        return {k: v for k, v in record.items() if "usage/" not in k and "per_second" not in k}

    end = checkpoint.newest(folder / "checkpoints")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads((folder / "metrics.json").read_text())
    digests = {part: checkpoint.digest(end[part]) for part in ("net", "ema", "optimizer")}
    for name in (checkpoint.EMA_FILE, checkpoint.BEST_FILE):
        weights, _ = checkpoint.read_weights(folder / "checkpoints" / name)
        digests[name] = checkpoint.digest(dict(sorted(weights.items())))
    return {
        **digests,
        "rest": [end[part] for part in ("config", "step", "images_seen", "skipped", "best")],
        "records": [timeless(json.loads(line)) for line in lines],
        "metrics": [metrics["status"], metrics["steps"], timeless(metrics["metrics"])],
        "temporary": [str(path) for path in folder.rglob("*.tmp")],
    }


def main(place: Path, kills: int, seed: int, overrides: list[str]) -> None:
    """Print the count of kills, and of whole runs that were equal to the undisturbed one."""
    torch.set_num_threads(1)
    FigureCanvasAgg.draw = FigureCanvasAgg.get_renderer  # tests of pictures draw
    gc.freeze()  # so that no child looks through all that it was given
    output, rng = place / "output", random.Random(seed)

    def command(name: str) -> list[str]:
        return [f"hydra.run.dir={place / name}", *overrides]

    started = time.monotonic()
    status = ended(attempt(command("whole"), output, None), within=SECONDS)
    seconds = time.monotonic() - started
    assert status == 0, output.read_text()
    expected = outcome(place / "whole")
    killed, inside, equal = 0, 0, 0
    while killed < kills or (place / "run").exists():
        fault = rng.randrange(60) if killed % 2 else None
        child = attempt(command("run"), output, fault if killed < kills else None)
        wait = SECONDS if fault is not None or killed >= kills else rng.uniform(0, seconds)
        status = ended(child, within=wait)
        if status is None:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            status = os.waitstatus_to_exitcode(status)
        if status == -signal.SIGKILL:
            killed += 1
            inside += fault is not None
            continue
        assert status == 0, output.read_text()
        found = outcome(place / "run")
        assert found == expected, f"after {killed} kills: {found} is not {expected}"
        equal += 1
        shutil.rmtree(place / "run")
    print(json.dumps({"killed": killed, "inside a write": inside, "equal ends": equal}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
