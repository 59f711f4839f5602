"""Boards: where a run's records are shown beside its own metrics.jsonl.

Each keeps what it is given until `close`. After a resume at `step`, what came after that step is
dropped, or written once more where a board can drop nothing.
"""

import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary as summaries

from scm.config.named import named
from scm.config.read import flatten
from scm.core.files import append_line, write_atomic

SQLITE = "sqlite:///"


class Board(ABC):
    """A run's records, pictures and settings in a form that people look at."""

    @abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of this step by their tags."""

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:  # noqa: B027
        """`image` is uint8 (H, W, 3)."""

    def end(self, metrics: dict[str, float]) -> None:  # noqa: B027
        """The last metrics of a run that is done, by tags known already."""

    @abstractmethod
    def close(self) -> None:
        """Keep all of it."""


class TensorBoard(Board):
    """One file of TensorBoard's in the run's folder; every record is in it at once."""

    def __init__(self, *, folder: Path, step: int, config: dict[str, Any]) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter((folder / name).open("xb"))
        self._settings = plain_settings(config)
        with ExitStack() as unless_begun:
            unless_begun.callback(self._file.close)
            self._write(step + 1 if step else 0, file_version="brain.Event:2")
            if step:  # it drops what came after
                self._write(step + 1, session_log=SessionLog(status=SessionLog.START))
            else:
                text = f"```yaml\n{yaml.safe_dump(config, sort_keys=False)}\n```"
                self._write(0, summary=summaries.text("config", text))
            unless_begun.pop_all()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A scalar per tag."""
        scalars = [summaries.scalar(tag, value).value[0] for tag, value in values.items()]
        self._write(step, summary=Summary(value=scalars))

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Under samples/."""
        self._write(step, summary=summaries.image(f"samples/{tag}", image, dataformats="HWC"))

    def end(self, metrics: dict[str, float]) -> None:
        """This run's row on the HParams page, which makes its columns from the rows."""
        _, *row = summaries.hparams(self._settings, metrics)  # the first is of columns
        for summary in row:
            self._write(0, summary=summary)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, **what: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **what)
        self._file.write(event.SerializeToString())
        self._file.flush()


def plain_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What TensorBoard can hold of a config, flat: a part's option under the part's key.

    {"optimizer": {"lr": 0.1}, "weighting": {"_target_": "scm.method.weighting.Unit"}} is
    {"optimizer.lr": 0.1, "weighting": "unit"}.
    """
    flat = flatten(config)
    row = {
        key: str(value) if isinstance(value, bool) else value
        for key, value in flat.items()
        if isinstance(value, bool | int | float | str) and not key.endswith("_target_")
    }
    return row | named(flat)


class Csv(Board):
    """scalars.csv in the run's folder, made anew from the records at a resume."""

    def __init__(self, *, folder: Path, records: Iterable[dict[str, Any]]) -> None:
        self._path = folder / "scalars.csv"
        write_atomic(self._path, b"step,tag,value\n")
        for record in records:
            self.scalars(record["step"], {tag: v for tag, v in record.items() if tag != "step"})

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A row per tag."""
        append_line(self._path, "\n".join(f"{step},{tag},{v}" for tag, v in values.items()))

    def close(self) -> None:
        """Every row is on disk already."""


class Wandb(Board):
    """A run of Weights & Biases; a resumed one goes on in the same, and repeats nothing it has.

    Every number has the run's own `step` as its axis, so one that is written twice shows once.
    """

    def __init__(
        self,
        *,
        project: str,
        mode: str,  # offline | online | disabled
        folder: Path,
        config: dict[str, Any],
    ) -> None:
        import wandb

        self._picture = wandb.Image
        self._run = wandb.init(
            project=project,
            mode=mode,
            dir=folder,
            id=_identity(folder),
            name=folder.name,
            resume="allow",
            config=config,
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """All of a step in one record."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Under samples/."""
        self._run.log({"step": step, f"samples/{tag}": self._picture(image)})

    def end(self, metrics: dict[str, float]) -> None:
        """The summary, by which its tables are sorted."""
        self._run.summary.update(metrics)

    def close(self) -> None:
        """Wait until all is written."""
        self._run.finish()


class Mlflow(Board):
    """A run of an MLflow experiment, found again by its folder when it is resumed."""

    def __init__(
        self,
        *,
        experiment: str,
        uri: str,  # of the server or the database
        artifacts: str,  # folder of a new experiment's pictures
        folder: Path,
        config: dict[str, Any],
    ) -> None:
        from mlflow import MlflowClient

        if uri.startswith(SQLITE):
            Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        self._client = client = MlflowClient(tracking_uri=uri)
        there = client.get_experiment_by_name(experiment)
        place = Path(artifacts).resolve().as_uri()
        owner = there.experiment_id if there else client.create_experiment(experiment, place)
        known = client.search_runs([owner], f"tags.scm_run = '{_identity(folder)}'")
        if known:
            self._id = known[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            tags = {"scm_run": _identity(folder)}
            self._id = client.create_run(owner, tags=tags, run_name=folder.name).info.run_id
            for key, value in plain_settings(config).items():
                client.log_param(self._id, key, value)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """All of a step in one batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(t, v, now, step) for t, v in values.items()])

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Under samples/."""
        self._client.log_image(self._id, image, key=f"samples/{tag}", step=step)

    def close(self) -> None:
        """The run is no longer running."""
        self._client.set_terminated(self._id)


def _identity(folder: Path) -> str:
    """What a run is known by elsewhere; it stands in the folder, so that a resume finds it."""
    file = folder / ".id"
    if not file.exists():
        write_atomic(file, secrets.token_hex(8).encode())
    return file.read_text()
