"""What a run writes of itself: records, pictures, TensorBoard, progress and metrics.json."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from scm.config import metrics
from scm.config.allow import construct
from scm.config.read import identity, plain
from scm.core import machine, provenance
from scm.core.progress import Progress
from scm.evaluation import pictures
from scm.evaluation.evaluator import Evaluation
from scm.storage.boards import Board
from scm.storage.folder import Status
from scm.storage.log import Logger, Opening
from scm.training.assemble import Assembly
from scm.training.loop import StepRecord
from scm.training.meters import Counters, Meter
from scm.training.watch import levels

log = logging.getLogger(__name__)


class Recorder:
    """Counts what a run has used, averages what its steps gave, and writes both down.

    All processes of the job call `opened` and `step`; the first one alone calls what else writes.
    """

    _logger: Logger  # of the first process, while `opened`
    _progress: Progress  # while `opened`

    def __init__(self, parts: Assembly) -> None:
        self._parts, self._task, self._learner = parts, parts.task, parts.learner
        self._begun_at: int | None = None  # step; from then on metrics.json is this process's
        self.counters, self.meter = Counters(), Meter()
        self.watch = parts.watch
        self._alarmed = False  # by this process
        self.evaluated: dict[str, float] = {}
        self.best: dict[str, Any] | None = None  # step, metric and value of the best evaluation

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; waits for the device."""
        return {
            "counters": vars(self.counters).copy(),
            "meter": {"sums": dict(self.meter.sums), "count": int(self.meter.count)},
            "watch": self.watch.state_dict(),
            "evaluated": self.evaluated,
            "best": self.best,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where `saved` stood."""
        self.counters = Counters(**saved["counters"])
        sums = {tag: sum.to(self._parts.device) for tag, sum in saved["meter"]["sums"].items()}
        self.meter = Meter(sums, saved["meter"]["count"])
        self.watch.load_state_dict(saved["watch"])
        self.evaluated, self.best = saved["evaluated"], saved["best"]

    def used(self) -> float:
        """The used part of the run's budget in [0, 1]: the largest over its limits."""
        budget = self._task.trainer.budget
        limits = (
            (self._learner.step, budget.steps),
            (self._learner.images_seen, budget.images),
            (self.counters.seconds / 60, budget.minutes),
        )
        return min(1.0, max(done / limit for done, limit in limits if limit is not None))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The records, at the learner's step, are open while entered; the run is then `running`."""
        world, step = self._task.world, self._learner.step

        def log_opened() -> None:
            folder, boards = self._parts.folder.path, openings(self._parts, step)
            logger = Logger(folder, step=step, boards=boards, taken=self.used() == 1)
            self._logger = opened.enter_context(closing(logger))
            self.write()

        with ExitStack() as opened:
            progress = Progress(self.used(), shown=world.is_first)
            self._progress = opened.enter_context(closing(progress))
            world.first(log_opened)
            self._begun_at = step
            yield

    def step(self, record: StepRecord, started: float) -> None:
        """Count a step that began at time.perf_counter's `started`; write a record when due."""
        world, trainer = self._task.world, self._task.trainer
        self.meter.add(record.scalars, record.finite)
        if self._parts.score is None:  # matching leads off the trajectories, and tangents grow
            self.watch.add(record.step, record.scalars, record.finite)
        if record.step % trainer.log_every == 0:
            self._record(record)
        seconds = world.largest(time.perf_counter() - started)
        self.counters.add(seconds, trainer.batch_size, record.step - (self._begun_at or 0))
        self._progress.update(self.used(), record.step, self.counters.images_per_second)

    def _record(self, record: StepRecord) -> None:
        means, speed = levels(self.meter.take()), self.counters.images_per_second
        values = {
            **means,
            **self.watch.scalars(),
            "train/learning_rate": record.learning_rate,
            "train/ema_decay": record.ema_decay,
            "train/skipped_steps": int(self._learner.skipped.total),
            "usage/images_per_second": speed,
            "usage/images_seen": self._learner.images_seen,
            "usage/seconds": self.counters.seconds,
            "usage/peak_memory_bytes": machine.peak_memory_bytes(self._parts.device),
        }
        self._task.world.first(lambda: self._logger.scalars(record.step, values))
        loss, grad_norm = (means.get(f"train/{tag}", math.nan) for tag in ("loss", "grad_norm"))
        self._progress.report(record.step, speed, loss, grad_norm)
        if not self._alarmed and (alarm := self.watch.alarm(self._learner.lr)):
            self._task.world.first(lambda: log.warning("%s", alarm))
            self._alarmed = True

    def is_best(self, evaluated: dict[str, float]) -> bool:
        """Take these metrics as the last evaluation's; whether it is the best so far.

        So says `optimized_metric`. Never by a metric that this evaluation lacks, as the samples of
        training lack a final/ one.
        """
        self.evaluated = evaluated
        metric = metrics.optimized_metric(self._parts.config)
        before = self.best["value"] if self.best else None
        if metric not in evaluated or not metrics.is_better(metric, evaluated[metric], before):
            return False
        self.best = {"step": self._learner.step, "metric": metric, "value": evaluated[metric]}
        return True

    def show(self, evaluation: Evaluation) -> None:
        """Write an evaluation's numbers and pictures."""
        step = self._learner.step
        best = {f"best/{self.best['metric']}": self.best["value"]} if self.best else {}
        self._logger.scalars(step, {**evaluation.metrics, **best})
        for name, picture in evaluation.pictures.items():
            self._logger.picture(step, name, picture)
            try:
                pictures.save_png(self._parts.folder.samples / f"{name}_{step:08d}.png", picture)
            except OSError as error:  # a run can do without a picture
                log.warning("a picture is missing: %s", error)

    def show_end(self) -> None:
        """Write the run's row of settings and last metrics for TensorBoard."""
        self._logger.end(self.evaluated)
        log.info("done: %s", self._parts.folder.path)

    def fail(self, traceback: str) -> None:
        """Say in metrics.json why the run has failed; it keeps what stood there before `opened`."""
        try:
            known = self._parts.folder.metrics() if self._begun_at is None else {}
            self.write(**{**known, "status": Status.failed, "traceback": traceback})
        except OSError as error:  # the disk is full: what failed matters more
            log.warning("metrics.json still says that the run goes on: %s", error)

    def write(self, **more: Any) -> None:
        """Replace metrics.json: the run is running, where `more` does not say otherwise."""
        parts, learner = self._parts, self._learner
        metrics = {
            "status": Status.running,
            "objective": parts.config.objective.name,
            "seed": self._task.seed,
            "steps": learner.step,
            "images_seen": learner.images_seen,
            "skipped_steps": int(learner.skipped.total),
            "broke_at": int(self.watch.broke_at) or None,
            "seconds": round(self.counters.seconds, 3),
            "images_per_second": round(self.counters.images_per_second, 1),
            "peak_memory_bytes": machine.peak_memory_bytes(parts.device),
            "parameters": sum(p.numel() for p in learner.net.parameters()),
            "precision": str(parts.dtype).removeprefix("torch."),
            "sources": parts.sources,
            "git_commit": provenance.git_commit(),
            "versions": provenance.versions(),
            "device": machine.device_name(parts.device),
            "processes": self._task.world.size,
            "metrics": self.evaluated,
            "quality": _judged_by(parts),
            "best": self.best,
        }
        parts.folder.write_metrics({**metrics, **more})


def openings(parts: Assembly, step: int) -> dict[str, Opening]:
    """How the boards that the config names are opened, by their names."""

    def opening(name: str, records: list[dict[str, Any]]) -> Board:
        given = {
            "folder": lambda: parts.folder.path,
            "step": lambda: step,
            "config": lambda: identity(plain(parts.config)),
            "records": lambda: records,
        }
        key, settings = f"logger.{name}", parts.config.logger[name]
        return construct(Board, key, settings, given)  # type: ignore[type-abstract]

    return {name: partial(opening, name) for name in parts.config.logger}


def _judged_by(parts: Assembly) -> dict[str, Any] | None:
    """What the quality metrics depend on beside the samples; None where there are none."""
    quality, trainer = parts.evaluator.quality, parts.task.trainer
    if quality is None:
        return None
    return {
        "images": trainer.quality_images,
        "final_images": trainer.final_quality_images,
        "data_sha256": quality.data_sha256,
        "features_sha256": quality.network.sha256,
        "second_features_sha256": quality.second and quality.second.sha256,
    }
