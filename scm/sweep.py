"""A sweep: runs in one folder, which its name fixes, each in one that its overrides fix.

So the same command goes on with it. No torch and no Hydra, which calls `scm.callbacks`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scm.errors import UserError
from scm.files import write_json
from scm.runfolder import RunFolder, Status

SWEEP_FILE = "sweep.json"
LONGEST_JOB = 80  # characters of a folder's name before it is cut
LONGEST_SWEEP = 40
PLAIN = re.compile(r"[\w.=,+-]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What sweep.json keeps of a sweep's first run."""

    name: str
    question: str  # line 1 of its yaml; empty where it was asked on the command line
    command: str
    git_commit: str
    config: dict[str, Any]  # flat, before a job's overrides
    swept: list[str]  # keys and groups that the jobs' overrides set


def sweep_name(config_name: str, overrides: Sequence[str]) -> str:
    """The folder of a sweep: its yaml's name, or what it varies and a hash of its overrides."""
    if config_name != "config":
        return _plain(config_name)
    keys = "+".join(_split(override)[0].rpartition(".")[2] for override in overrides)
    return f"{_plain(keys)[:LONGEST_SWEEP]}-{_hash(overrides)}"


def job_name(overrides: Sequence[str], shared: Sequence[str] = ()) -> str:
    """The folder of a job: its overrides by key, the seed last; long ones shortened, with a hash.

    ["seed=0", "weighting=unit"] is weighting=unit,seed=0. Keys in `shared` are left out: what they
    say is the same in all jobs, and `begin` refuses another value.
    """
    overrides = [o for o in overrides if o.lstrip("+~").partition("=")[0] not in shared]
    parts = sorted((_split(o) for o in overrides), key=lambda part: (part[0] == "seed", part))
    if not parts:
        return "only"
    text = ",".join("=".join(part) for part in parts)
    if PLAIN.fullmatch(text) and len(text) <= LONGEST_JOB:
        return text
    short = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in parts)
    return f"{_plain(short)[:LONGEST_JOB]}-{_hash(overrides)}"


def _split(override: str) -> tuple[str, str]:
    """`+model/norm=x` -> ("model.norm", "x")."""
    key, _, value = override.lstrip("+~").partition("=")
    return key.replace("/", "."), value


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=,+-]+", "_", text)


def _hash(overrides: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]


def read(folder: Path) -> dict[str, Any]:
    """The sweep's record as sweep.json has it, {} where there is none or it is unreadable."""
    try:
        found = json.loads((folder / SWEEP_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def begin(folder: Path, now: Record) -> None:
    """Keep the record of a sweep's first run, or compare this run with it.

    Other code is named in a warning. Raises UserError, naming the first differing keys, where what
    all jobs share has changed: its runs could not be compared.
    """
    first = read(folder)
    if not first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP_FILE, asdict(now))
        return
    theirs, mine = first["config"], json.loads(json.dumps(now.config))
    swept = tuple(key.replace("/", ".") for key in (*first["swept"], *now.swept))
    changed = [
        key
        for key in sorted(mine | theirs)
        if mine.get(key) != theirs.get(key)
        and not f"{key}.".startswith(tuple(f"{k}." for k in swept))
    ]
    if changed:
        shown = ", ".join(
            f"{key}={mine.get(key)} (there: {theirs.get(key)})" for key in changed[:4]
        )
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"{folder}: the sweep began with another configuration: {shown}{more}; go on with that "
            "one, or name another folder with hydra.sweep.dir=FOLDER"
        )
    if first.get("git_commit") != now.git_commit:
        log.warning(
            "%s: the code has changed since the sweep began, from commit %s to %s",
            *(folder, first.get("git_commit"), now.git_commit),
        )


def state(folder: RunFolder, *, retry_failed: bool) -> Status:
    """How a job stands before it is run; a line says what will be done with it."""
    status, name = folder.status(), folder.path.name
    if status is Status.failed and not retry_failed:
        log.warning(
            "skipped, failed before: %s (hydra.callbacks.sweep.retry_failed=true tries again)", name
        )
    elif status is Status.failed:
        log.info("trying again: %s", name)
    elif status is Status.done:
        log.info("skipped, done: %s", name)
    elif status in (Status.running, Status.stopped):
        log.info("going on: %s", name)
    return status
