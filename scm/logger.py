"""The record of a run: metrics.jsonl and TensorBoard, the same numbers under the same tags.

Tags stand in few fixed groups: train/ tangent/ eval/ quality/ final/ perf/ samples/. Knows nothing
of training. metrics.jsonl is the record, so a run ends where it cannot be written; TensorBoard's
file is not.
"""

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_protos

from scm.files import append_line, write_atomic

log = logging.getLogger(__name__)


class Logger:
    """Appends records and pictures; after a resume, what came after `step` is dropped first."""

    def __init__(self, folder: Path, *, step: int, config_text: str) -> None:
        self._jsonl = folder / "metrics.jsonl"
        if self._jsonl.exists():
            kept = [line for line in _whole_lines(self._jsonl) if _is_until(step, line)]
            write_atomic(self._jsonl, "".join(kept).encode())
        self._threads_excepthook = threading.excepthook
        threading.excepthook = self._in_a_thread
        self._board: SummaryWriter | None = None
        purge_step = step + 1 if step else None
        try:
            self._board = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            self._without_board(error)
        if step == 0:
            text = f"```yaml\n{config_text}\n```"
            self._on_board(SummaryWriter.add_text, "config", text, 0)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One record: a line of metrics.jsonl, and a scalar per tag."""
        append_line(self._jsonl, json.dumps({"step": step, **values}))
        for tag, value in values.items():
            self._on_board(SummaryWriter.add_scalar, tag, value, step)

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """`image` is uint8 (H, W, 3)."""
        self._on_board(SummaryWriter.add_image, f"samples/{tag}", image, step, None, "HWC")

    def hparams(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """This run's row on TensorBoard's HParams page; `metrics` are tags already logged here."""
        _, *session = hparams_protos(settings, metrics)  # without columns: a sweep has its own
        for proto in session:
            self._on_board(_add_summary, proto)

    def close(self) -> None:
        """Flush and close the event file."""
        self._on_board(SummaryWriter.close)
        threading.excepthook = self._threads_excepthook

    def _on_board(self, call: Callable[..., object], *arguments: Any) -> None:
        """Let TensorBoard have it, where its file can be written: a run can do without."""
        if self._board is None:
            return
        try:
            call(self._board, *arguments)
        except OSError as error:
            self._without_board(error)

    def _without_board(self, error: OSError) -> None:
        log.warning("no more for TensorBoard, its file cannot be written: %s", error)
        self._board = None

    def _in_a_thread(self, happened: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, whose OSError `_on_board` meets at the next call."""
        if not isinstance(happened.exc_value, OSError):
            self._threads_excepthook(happened)


def _add_summary(board: SummaryWriter, proto: Any) -> None:
    board._get_file_writer().add_summary(proto)


def _whole_lines(path: Path) -> list[str]:
    """The file's lines without a last one that a kill cut short."""
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def _is_until(step: int, line: str) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):  # a damaged record is not worth a run
        log.warning("metrics.jsonl: left out, no record: %r", line[:80])
        return False
