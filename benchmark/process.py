"""A measurement in a fresh process: `python -m MODULE '{...}'` answers with one line of JSON."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scm.core.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


class Failed(RuntimeError):
    """The process ended without an answer; the last line of what it said."""


def asked(module: str, request: dict[str, Any], env: Mapping[str, str] | None = None) -> Any:
    """What the module answers. Failed where it does not; UserError is raised as it was there."""
    child = subprocess.run(
        [sys.executable, "-m", module, json.dumps(request)],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
    )
    if child.returncode == 0:
        return json.loads(child.stdout.splitlines()[-1])
    reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
    raise (UserError if child.returncode == 2 else Failed)(reason)


def answer(measure: Callable[[dict[str, Any]], Any]) -> None:
    """The fresh process: measure what is requested, print it; a user's mistake is exit code 2."""
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
