"""The record of a run: metrics.jsonl and TensorBoard, the same numbers under the same tags.

Tags stand in few fixed groups: train/ tangent/ eval/ quality/ final/ perf/ samples/. A run ends
where metrics.jsonl cannot be written; where TensorBoard's file cannot be, it goes on without.
"""

import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary as summaries

from scm.core.errors import UserError
from scm.core.files import append_line, reading, write_atomic

log = logging.getLogger(__name__)


def plain_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Those of a flat config that TensorBoard can hold, a part's class under the part's key.

    {"optimizer.lr": 0.1, "weighting._target_": "scm.method.weighting.Unit"} is
    {"optimizer.lr": 0.1, "weighting": "Unit"}.
    """
    row: dict[str, Any] = {}
    for key, value in config.items():
        part, _, name = key.rpartition(".")
        if name == "_target_":
            row[part] = str(value).rpartition(".")[2]
        elif isinstance(value, (bool, int, float, str)):
            row[key] = value
    return row


class Logger:
    """Appends records and pictures; after a resume, what came after `step` is dropped first.

    Where all steps are `taken`, that is the last evaluation too: the run was killed before it said
    that it was done, and makes it again.
    """

    def __init__(self, folder: Path, *, step: int, config_text: str, taken: bool = False) -> None:
        self._jsonl = folder / "metrics.jsonl"
        self._taken = taken
        if self._jsonl.exists():
            lines = self._jsonl.read_text(errors="replace").splitlines()
            kept = [f"{line}\n" for line in lines if self._is_until(step, line)]
            write_atomic(self._jsonl, "".join(kept).encode())
        self._events: RecordWriter | None = None
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        try:
            self._events = RecordWriter((folder / name).open("xb"))
        except OSError as error:
            self._without_board(error)
        self._board(step + 1 if step else 0, file_version="brain.Event:2")
        if step:  # TensorBoard, too, drops what came after it
            self._board(step + 1, session_log=SessionLog(status=SessionLog.START))
        else:
            text = f"```yaml\n{config_text}\n```"
            self._board(0, summary=summaries.text("config", text))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One record: a line of metrics.jsonl, and a scalar per tag."""
        append_line(self._jsonl, json.dumps({"step": step, **values}))
        scalars = [summaries.scalar(tag, value).value[0] for tag, value in values.items()]
        self._board(step, summary=Summary(value=scalars))

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """`image` is uint8 (H, W, 3)."""
        self._board(step, summary=summaries.image(f"samples/{tag}", image, dataformats="HWC"))

    def hparams(self, config: dict[str, Any], metrics: dict[str, float]) -> None:
        """This run's row on TensorBoard's HParams page, which makes its columns from the rows.

        `config` is flat; `metrics` are tags already logged here.
        """
        _, *row = summaries.hparams(plain_settings(config), metrics)  # the first is of columns
        for summary in row:
            self._board(0, summary=summary)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._events is not None:
            with suppress(OSError):
                self._events.close()
            self._events = None

    def _board(self, step: int, **what: Any) -> None:
        """One event into TensorBoard's file, at once, where that can be written."""
        if self._events is None:
            return
        try:
            event = Event(wall_time=time.time(), step=step, **what)
            self._events.write(event.SerializeToString())
            self._events.flush()
        except OSError as error:
            self._without_board(error)

    def _without_board(self, error: OSError) -> None:
        log.warning("no more for TensorBoard, its file cannot be written: %s", error)
        self.close()

    def _is_until(self, step: int, line: str) -> bool:
        """Whether `line` came up to this step; a damaged record is not worth a run."""
        try:
            with reading(self._jsonl, "a record in each line"):
                record = json.loads(line)
                evaluated = any(tag.startswith("eval/") for tag in record)
                return record["step"] < step + (not (self._taken and evaluated))
        except UserError as error:
            log.warning("left out a line: %s", error)
            return False
