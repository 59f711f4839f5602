"""A run's folder: whose it is, what stands in it, how far it got. No torch: it answers at once.

A folder belongs to one configuration. It is new, or goes on, or is done; anything else is refused
before a byte of it changes.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import yaml

from scm.errors import UserError
from scm.files import write_atomic, write_json

try:
    import fcntl
except ImportError:  # not POSIX: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]


APPENDED = (".lock", "run.log", "metrics.jsonl")  # opened in place; other files are replaced


class Status(StrEnum):
    """How a run stands, as `metrics.json` says it."""

    new = "new"
    running = "running"
    stopped = "stopped"
    failed = "failed"
    done = "done"


class NotThisRuns(UserError):
    """A folder that another configuration, or another process, holds."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of `step-*.pt` and `ema.safetensors`."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of the PNGs."""
        return self.path / "samples"

    @property
    def diverged(self) -> Path:
        """What led to a run's divergence, where it did."""
        return self.path / "diverged.json"

    @property
    def _config_file(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json, {} before it exists."""
        file = self.path / "metrics.json"
        try:
            found = json.loads(file.read_text()) if file.exists() else {}
            Status(found.get("status", Status.new))
            return found
        except (ValueError, OSError, AttributeError) as error:
            raise UserError(
                f"{file}: unreadable ({error}); restore it or use a new folder"
            ) from None

    def status(self) -> Status:
        """How the run stands; `new` where there is none yet."""
        return Status(self.metrics().get("status", Status.new))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Replace metrics.json, whole or not at all."""
        write_json(self.path / "metrics.json", metrics)

    def check(self, config: dict[str, Any]) -> None:
        """Refuse a folder that is not empty and not this configuration's; changes nothing.

        Raises NotThisRuns naming the first differing keys, or what the folder holds instead.
        """
        if self.path.is_file():
            raise NotThisRuns(f"hydra.run.dir={self.path}: a file; name a folder")
        if not self.path.exists():
            return
        for name in APPENDED:
            if (self.path / name).is_symlink():
                raise NotThisRuns(
                    f"hydra.run.dir={self.path}: {name} is a link, and what it leads to would be "
                    "written; remove it"
                )
        if not self._config_file.exists():
            if self._only_prepared():
                return
            raise NotThisRuns(
                f"hydra.run.dir={self.path}: holds files but no run; name a new or empty folder"
            )
        theirs, mine = flatten(self._config()), flatten(config)
        changed = [k for k in sorted(mine | theirs) if mine.get(k) != theirs.get(k)]
        if changed:
            shown = ", ".join(f"{k}={mine.get(k)} (there: {theirs.get(k)})" for k in changed[:4])
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            raise NotThisRuns(
                f"hydra.run.dir={self.path}: holds a run with another configuration: "
                f"{shown}{more}; repeat its overrides to go on with it, or name another folder"
            )

    def _config(self) -> dict[str, Any]:
        try:
            found = yaml.safe_load(self._config_file.read_text())
        except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
            raise NotThisRuns(
                f"{self._config_file}: unreadable ({error}); restore it or use a new folder"
            ) from None
        return found if isinstance(found, dict) else {}

    def _only_prepared(self) -> bool:
        """Whether there is no more than `open` leaves where it is killed before the config."""
        files = [path for path in self.path.rglob("*") if not path.is_dir()]
        return all(path.name == ".lock" or path.match(".*.tmp") for path in files)

    def open(self, config_files: dict[str, str]) -> TextIO:
        """Make the folder, lock it for this process, and write the composed config files.

        Returns the lock: closing it, or ending the process, frees the folder. Raises NotThisRuns
        where another process works in it, or has since the folder was checked.
        """
        for folder in (self.path / ".hydra", self.checkpoints, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        lock = open(self.path / ".lock", "a")  # noqa: SIM115  (held as long as the run)
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                raise NotThisRuns(f"{self.path}: another process trains in this folder") from None
        try:
            if "config.yaml" in config_files:
                self.check(yaml.safe_load(config_files["config.yaml"]))
        except NotThisRuns:
            lock.close()
            raise
        for stale in [*self.path.rglob(".*.tmp")]:
            stale.unlink()
        for name, text in config_files.items():
            write_atomic(self.path / ".hydra" / name, text.encode())
        return lock

    def record_failure(self, config_files: dict[str, str], more: dict[str, Any], text: str) -> None:
        """Say that the run has failed, with its traceback, also where it never began.

        `more` is what metrics.json then holds beside what the run has written itself.
        """
        with self.open(config_files):
            found = {**more, "metrics": {}, **self.metrics()}
            self.write_metrics({**found, "status": Status.failed, "traceback": text})

    def remove_if_empty(self) -> None:
        """Take away a folder that was made for a run that never began."""
        with suppress(OSError):  # not empty, or gone already
            self.path.rmdir()


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists are values, an empty dict is one too."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        key: value
        for name, part in config.items()
        for key, value in flatten(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }
