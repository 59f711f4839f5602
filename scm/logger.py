"""The record of a run: metrics.jsonl and TensorBoard, the same numbers under the same tags.

Tags stand in few fixed groups: train/ tangent/ eval/ quality/ final/ perf/
samples/. Knows nothing of training.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_protos

from scm.files import write_atomic


class Logger:
    """Appends records and pictures; after a resume, what came after `step` is dropped first."""

    def __init__(self, folder: Path, *, step: int, config_text: str) -> None:
        self._jsonl = folder / "metrics.jsonl"
        if self._jsonl.exists():
            kept = [line for line in _whole_lines(self._jsonl) if json.loads(line)["step"] <= step]
            write_atomic(self._jsonl, "".join(kept).encode())
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        if step == 0:
            self._board.add_text("config", f"```yaml\n{config_text}\n```", 0)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One record: a line of metrics.jsonl, and a scalar per tag."""
        with self._jsonl.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """`image` is uint8 (H, W, 3)."""
        self._board.add_image(f"samples/{tag}", image, step, dataformats="HWC")

    def hparams(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """This run's row on TensorBoard's HParams page; `metrics` are tags already logged here."""
        _, *session = hparams_protos(settings, metrics)  # without columns: a sweep has its own
        for proto in session:
            self._board._get_file_writer().add_summary(proto)

    def close(self) -> None:
        """Flush and close the event file."""
        self._board.close()


def _whole_lines(path: Path) -> list[str]:
    """The file's lines without a last one that a kill cut short."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
