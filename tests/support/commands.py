"""The real commands, as processes of their own that start at once."""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 600  # no command of a test takes as long, on a busy machine either


class Commands:
    """`commands("run.py", "seed=1")` is `python run.py seed=1` in the repository's root.

    Each is a child of one process that has imported the project, so that no test pays for that.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of what the commands say
        self.numbers = itertools.count()
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def __call__(self, *argv: str, **more: Any) -> CompletedProcess[str]:
        """Run it to its end."""
        return self.start(*argv, **more).ended()

    def start(
        self, *argv: str, env: dict[str, str] | None = None, path: Sequence[Path] = ()
    ) -> "Running":
        """Begin it; one at a time. `path`: folders to import from, before all others."""
        number = next(self.numbers)
        paths = [self.folder / f"{number}.{name}" for name in ("out", "err")]
        request = {
            "argv": argv,
            "path": [str(folder) for folder in path],
            "environment": dict(os.environ if env is None else env),
            **dict(zip(("stdout", "stderr"), map(str, paths), strict=True)),
        }
        assert self.server.stdin
        self.server.stdin.write(json.dumps(request).encode() + b"\n")
        return Running(self, list(argv), self.answer(), *paths)

    def answer(self) -> int:
        """The next number that the server says."""
        assert self.server.stdout
        ready, _, _ = select.select([self.server.stdout], [], [], SECONDS)
        assert ready, "no answer in time"
        return int(self.server.stdout.readline())

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


@dataclass(frozen=True)
class Running:
    """A command that has begun."""

    commands: Commands
    argv: list[str]
    pid: int
    stdout: Path
    stderr: Path

    def ended(self) -> CompletedProcess[str]:
        """Wait for its end."""
        try:
            code = self.commands.answer()
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            self.commands.answer()
            raise
        return CompletedProcess(self.argv, code, self.stdout.read_text(), self.stderr.read_text())
