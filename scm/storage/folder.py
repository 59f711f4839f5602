"""A run's folder: whose it is, where its files stand, how far the run got.

A folder belongs to one configuration. It is new, or goes on, or is done; anything else is refused
before a byte of it changes. No torch is imported, so that the answer comes at once.
"""

import json
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import yaml

from scm.config.read import differences, flatten, identity
from scm.core.errors import UserError
from scm.core.files import lock, reading, write_atomic, write_json

APPENDED = (".lock", "run.log", "metrics.jsonl")  # opened in place; other files are replaced
RESTORE = "restore it or use a new folder"  # what to do about an unreadable file of a run's


class Status(StrEnum):
    """How a run stands, as `metrics.json` says it."""

    new = "new"
    running = "running"
    stopped = "stopped"
    failed = "failed"
    pruned = "pruned"  # stopped early by a study, since it would not have been the best
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
    def teacher(self) -> "RunFolder":
        """That of the teacher which a recipe trains before this run."""
        return RunFolder(self.path / "teacher")

    def metrics(self) -> dict[str, Any]:
        """The contents of metrics.json, {} before it exists."""
        file = self.path / "metrics.json"
        if not file.exists():
            return {}
        with reading(file, "the record of a run", RESTORE):
            found = json.loads(file.read_text())
            Status(found.get("status", Status.new))
        return found

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
            raise self._not_this("a file; name a folder")
        for name in APPENDED:
            if (self.path / name).is_symlink():
                raise self._not_this(
                    f"{name} is a link, and what it leads to would be written; remove it"
                )
        file = self.path / ".hydra" / "config.yaml"
        if not file.exists():
            if self._only_prepared():
                return
            raise self._not_this("holds files but no run; name a new or empty folder")
        try:
            with reading(file, "the config of a run", RESTORE):
                theirs = flatten(identity(dict(yaml.safe_load(file.read_text()))))
        except UserError as error:
            raise NotThisRuns(str(error)) from error
        if changed := differences(flatten(identity(config)), theirs):
            raise self._not_this(
                f"holds a run with another configuration: {changed}; repeat its overrides to "
                "go on with it, or name another folder"
            )

    def _not_this(self, reason: str) -> NotThisRuns:
        return NotThisRuns(f"hydra.run.dir={self.path}: {reason}")

    def _only_prepared(self) -> bool:
        """Whether there is no more than a teacher, or `open` leaves where it is killed early."""
        teacher, files = self.teacher.path, [p for p in self.path.rglob("*") if not p.is_dir()]
        return all(
            teacher in path.parents or path.name == ".lock" or path.match(".*.tmp")
            for path in files
        )

    def open(self, config_files: dict[str, str]) -> TextIO:
        """Make the folder, lock it for this process, and write the composed config files.

        Returns the lock: closing it, or ending the process, frees the folder. Raises NotThisRuns
        where another process works in it, or has since the folder was checked.
        """
        for folder in (self.path / ".hydra", self.checkpoints, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as unless_kept:
            held = unless_kept.enter_context(open(self.path / ".lock", "a"))
            if not lock(held):
                raise NotThisRuns(f"{self.path}: another process trains in this folder")
            if "config.yaml" in config_files:
                self.check(yaml.safe_load(config_files["config.yaml"]))
            unless_kept.pop_all()
        for stale in [*self.path.rglob(".*.tmp")]:
            stale.unlink()
        for name, text in config_files.items():
            write_atomic(self.path / ".hydra" / name, text.encode())
        return held

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
