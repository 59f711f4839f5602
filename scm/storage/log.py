"""The record of a run: metrics.jsonl, and boards that show the same numbers under the same tags.

Tags stand in few fixed groups: train/ tangent/ eval/ quality/ final/ usage/ samples/. A run ends
where metrics.jsonl cannot be written; where a board cannot take what it is given, it goes on
without that board.
"""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scm.core.errors import UserError
from scm.core.files import append_line, reading, write_atomic
from scm.core.interrupts import Interrupted
from scm.storage.boards import Board

log = logging.getLogger(__name__)

Opening = Callable[[list[dict[str, Any]]], Board]  # a board, given the records that are kept


class Logger:
    """Appends records and pictures; after a resume, what came after `step` is dropped first.

    Where all steps are `taken`, that is the last evaluation too: the run was killed before it said
    that it was done, and makes it again.
    """

    def __init__(
        self, folder: Path, *, step: int, boards: dict[str, Opening], taken: bool = False
    ) -> None:
        self._jsonl = folder / "metrics.jsonl"
        self._taken = taken
        kept: list[dict[str, Any]] = []
        if self._jsonl.exists():
            lines = self._jsonl.read_text(errors="replace").splitlines()
            kept = [record for line in lines if (record := self._until(step, line))]
            write_atomic(self._jsonl, "".join(f"{json.dumps(r)}\n" for r in kept).encode())
        self._boards: dict[str, Board] = {}
        for name, opening in boards.items():
            self._to(name, partial(self._open, name, opening, kept))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One record: a line of metrics.jsonl, and a scalar per tag."""
        append_line(self._jsonl, json.dumps({"step": step, **values}))
        self._to_all(lambda board: board.scalars(step, values))

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """`image` is uint8 (H, W, 3)."""
        self._to_all(lambda board: board.picture(step, tag, image))

    def end(self, metrics: dict[str, float]) -> None:
        """The last metrics of a run that is done, whose tags are logged already."""
        self._to_all(lambda board: board.end(metrics))

    def close(self) -> None:
        """Let every board keep what it has."""
        self._to_all(lambda board: board.close())
        self._boards = {}

    def _open(self, name: str, opening: Opening, kept: list[dict[str, Any]]) -> None:
        self._boards[name] = opening(kept)

    def _to_all(self, action: Callable[[Board], None]) -> None:
        for name, board in list(self._boards.items()):
            self._to(name, partial(action, board))

    def _to(self, name: str, action: Callable[[], None]) -> None:
        """Whatever fails in a board, of another project's code or by a full disk, ends it alone."""
        try:
            action()
        except (UserError, Interrupted):
            raise
        except Exception as error:
            log.warning("no more for %s: %s: %s", name, type(error).__name__, error)
            board = self._boards.pop(name, None)
            with suppress(Exception):
                if board is not None:
                    board.close()

    def _until(self, step: int, line: str) -> dict[str, Any]:
        """The record of this line where it came up to this step, else {}; so for a damaged one."""
        try:
            with reading(self._jsonl, "a record in each line"):
                record: dict[str, Any] = json.loads(line)
                evaluated = any(tag.startswith("eval/") for tag in record)
                kept = record["step"] < step + (not (self._taken and evaluated))
                return record if kept else {}
        except UserError as error:
            log.warning("left out a line: %s", error)
            return {}
