"""A sweep: runs in one folder, which its name fixes, each in one that its overrides fix.

So the same command goes on with it, and another one is refused there.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scm.config.read import differences
from scm.core.errors import UserError
from scm.core.files import write_json
from scm.report.read import contents
from scm.storage.folder import RunFolder, Status

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
    config_name: str  # of the yaml that was composed; "config" where none was named
    shared: list[str]  # overrides of all jobs
    swept: list[str]  # keys and groups in which the jobs differ


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


def begin(folder: Path, now: Record) -> None:
    """Keep the record of a sweep's first run, or compare this run with it.

    Other code is named in a warning. Raises UserError, naming the first differing overrides, where
    what all jobs share has changed: its runs could not be compared.
    """
    first: dict[str, Any] = contents(folder / SWEEP_FILE, json.loads, {})
    if not first:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP_FILE, asdict(now))
        return
    swept = {*first.get("swept", []), *now.swept}
    theirs, mine = _by_key(first, swept), _by_key(asdict(now), swept)
    if changed := differences(mine, theirs, "not given"):
        raise UserError(
            f"{folder}: the sweep began with other settings: {changed}; repeat those to go on "
            "with it, or name another folder with hydra.sweep.dir=FOLDER"
        )
    if first.get("git_commit") != now.git_commit:
        log.warning(
            "%s: the code has changed since the sweep began, from commit %s to %s",
            *(folder, first.get("git_commit"), now.git_commit),
        )


def _by_key(record: dict[str, Any], swept: Collection[str]) -> dict[str, str]:
    """What all jobs of this record share: the yaml's name, and each override's value by its key.

    Without `swept`: what only one of two runs varies is none of their difference.
    """
    given = (override.lstrip("+").partition("=") for override in record.get("shared", []))
    shared = {key: value for key, _, value in given if key not in swept}
    return {"--config-name": str(record.get("config_name")), **shared}


def state(folder: RunFolder, *, retry_failed: bool) -> Status:
    """How a job stands before it is run; a line says what will be done with it."""
    status, name = folder.status(), folder.path.name
    if status is Status.failed and not retry_failed:
        log.warning(
            "skipped, failed before: %s (hydra.callbacks.sweep.retry_failed=true tries again)", name
        )
    elif status is not Status.new:
        words = {Status.failed: "trying again", Status.done: "skipped, done"}
        words[Status.pruned] = "skipped, stopped early"
        log.info("%s: %s", words.get(status, "going on"), name)
    return status
