"""A run: consumes training steps and decides when to log, evaluate, save and stop.

What is trained and how stands in `scm.train`; what things are built of in `scm.build`.
"""

import logging
import math
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scm import board, checkpoint, divergence, pictures, runtime, tags
from scm.config import TrainerConfig
from scm.data import Dataset
from scm.distributed import World
from scm.divergence import Diverged
from scm.ema import Ema
from scm.evaluator import Evaluator
from scm.files import write_json
from scm.interrupts import Interrupted, Interrupts
from scm.logger import Logger
from scm.meters import Counters, Meter, budget_used
from scm.objectives import Objective
from scm.progress import Progress
from scm.runfolder import RunFolder, Status, flatten
from scm.train import Skipped, StepRecord, TrainState, train_steps

log = logging.getLogger(__name__)


@dataclass
class Experiment:
    """One run in one folder. `run` may be called once, by all processes of the job together."""

    folder: RunFolder
    config: dict[str, Any]  # plain and resolved, as it goes into checkpoints
    config_text: str  # as it was composed, for people
    trainer: TrainerConfig
    dataset: Dataset
    net: nn.Module
    objective: Objective
    sources: dict[str, dict[str, str]]  # teacher, init -> path and digest of their weights
    optimizer: torch.optim.Optimizer
    evaluator: Evaluator
    device: torch.device
    dtype: torch.dtype
    world: World

    def __post_init__(self) -> None:
        skipped = Skipped.on(self.device)
        self.state = TrainState(self.net, Ema(self.net), self.optimizer, skipped)
        self.counters, self.meter = Counters(), Meter()
        self.begun = False  # whether metrics.json is this process's
        self.evaluated: dict[str, float] = {}
        self.best: dict[str, Any] | None = None  # step, metric and value of the best evaluation

    def run(self) -> dict[str, Any]:
        """Train to the end of the budget, or until interrupted; returns what metrics.json holds.

        Any exception is recorded there, with its traceback, and raised again.
        """
        runtime.reset_peak_memory(self.device)
        try:
            self._resume()
            self.world.first(self._begin)
            self.begun = True
            metrics = self._to_the_end()
        except Exception:
            if self.world.is_first:
                self._record_failure(traceback.format_exc())
            raise
        return self.world.share(metrics)

    def _to_the_end(self) -> dict[str, Any]:
        """Train and evaluate; metrics.json says `done`, or `stopped` by which signal."""
        try:
            reproducible = runtime.deterministic(self.trainer.deterministic, self.device)
            with reproducible, Interrupts() as interrupts:
                signal = self._train(interrupts) or self._finish(interrupts)
            status = Status.stopped if signal else Status.done
            metrics = self._metrics(status, signal=signal)
            self.world.first(lambda: self.folder.write_metrics(metrics))
        finally:
            if self.world.is_first:
                self.logger.close()
        return metrics

    def _record_failure(self, text: str) -> None:
        failure = {"status": Status.failed, "traceback": text}
        try:
            known = {} if self.begun else self.folder.metrics()  # what it was until it was to go on
            self.folder.write_metrics({**self._metrics(Status.failed), **known, **failure})
        except OSError as error:  # the disk is full: what failed matters more
            log.warning("metrics.json still says that the run goes on: %s", error)

    def _begin(self) -> None:
        self.logger = Logger(self.folder.path, step=self.state.step, config_text=self.config_text)
        self.folder.write_metrics(self._metrics(Status.running))

    @property
    def _used(self) -> float:
        return budget_used(
            self.trainer.budget,
            steps=self.state.step,
            images=self.state.images_seen,
            seconds=self.counters.seconds,
        )

    def _train(self, interrupts: Interrupts) -> int:
        """Train on; returns the signal that ended it, 0 for none.

        Clocks and signals differ between processes: each asks the others before it decides by one.
        """
        steps = train_steps(
            self.state,
            self.objective,
            self.dataset,
            trainer=self.trainer,
            learning_rate=self.config["optimizer"]["lr"],
            seed=self.config["seed"],
            labels=self.evaluator.labels,
            world=self.world,
            progress=lambda: self._used,
        )
        progress = Progress(self._used, shown=self.world.is_first)
        first_step = self.state.step
        try:
            while not (signal := self.world.largest(interrupts.signal)) and self._used < 1:
                started = time.perf_counter()
                record = next(steps)
                self.meter.add(record.scalars, record.finite)
                self._check_skipped(record.step)
                if record.step % self.trainer.log_every == 0:
                    self._log(record, progress)
                seconds = self.world.largest(time.perf_counter() - started)
                self.counters.add(seconds, self.trainer.batch_size, record.step - first_step)
                progress.update(self._used, record.step, self.counters.images_per_second)
                if record.step % self.trainer.evaluate_every == 0 and self._used < 1:
                    self.world.first(self._evaluate)
                if record.step % self.trainer.save_every == 0 and self._used < 1:
                    self.world.first(self._save)
        finally:
            progress.close()
        self.world.first(self._save)
        return signal

    def _log(self, record: StepRecord, progress: Progress) -> None:
        values = self.meter.take()
        all_values = {
            **values,
            "train/learning_rate": record.learning_rate,
            "train/ema_decay": record.ema_decay,
            "train/skipped_steps": int(self.state.skipped.total),
            "perf/images_per_second": self.counters.images_per_second,
            "perf/images_seen": record.images_seen,
            "perf/seconds": self.counters.seconds,
            "perf/peak_memory_bytes": runtime.peak_memory_bytes(self.device),
        }
        self.world.first(lambda: self.logger.scalars(record.step, all_values))
        loss, grad_norm = (values.get(f"train/{tag}", math.nan) for tag in ("loss", "grad_norm"))
        progress.report(record.step, self.counters.images_per_second, loss, grad_norm)

    def _check_skipped(self, step: int) -> None:
        """Fail after too many skipped steps in a row; on a GPU only where a record waits anyway."""
        if self.device.type != "cpu" and step % self.trainer.log_every:
            return
        skipped = self.state.skipped
        if (in_a_row := int(skipped.in_a_row)) < self.trainer.max_skipped_steps:
            return
        self.world.first(self._dump)
        raise Diverged(
            f"loss or gradient not finite in {in_a_row} steps in a row, at step {step} "
            f"({int(skipped.total)} skipped in all): training has diverged; see "
            f"{self.folder.diverged}, lower objective.lr={self.config['objective']['lr']} or "
            "lengthen the warm-ups"
        )

    def _dump(self) -> None:
        batch_size, micro = self.trainer.batch_size, self.trainer.micro_batch_size
        found = divergence.dump(
            self.state,
            self.objective,
            self.dataset,
            seed=self.config["seed"],
            batch_size=batch_size,
            pass_size=micro or len(self.world.rows(batch_size)),
            labels=self.evaluator.labels,
        )
        write_json(self.folder.diverged, found)

    def _evaluate(self, *, final: bool = False) -> None:
        step = self.state.step
        result = self.evaluator(self.state.ema.net, step, final=final)
        self.evaluated = result.metrics
        self._keep_best()
        self.logger.scalars(step, result.metrics)
        for name, picture in result.pictures.items():
            self.logger.picture(step, name, picture)
            self._save_picture(self.folder.samples / f"{name}_{step:08d}.png", picture)

    def _save_picture(self, path: Path, picture: np.ndarray) -> None:
        try:
            pictures.save_png(path, picture)
        except OSError as error:  # a run can do without a picture
            log.warning("a picture is missing: %s", error)

    def _keep_best(self) -> None:
        """Write the EMA weights where this evaluation is the best by `optimized_metric`."""
        metric = tags.optimized_metric(self.config)
        if metric not in self.evaluated:  # a final/ one, which the last evaluation alone has
            return
        value = self.evaluated[metric]
        if tags.is_better(metric, value, self.best["value"] if self.best else None):
            self.best = {"step": self.state.step, "metric": metric, "value": value}
            ema = dict(self.state.ema.net.state_dict())
            best = self.folder.checkpoints / checkpoint.BEST_FILE
            checkpoint.save_weights(best, ema, self.config)

    def _finish(self, interrupts: Interrupts) -> int:
        """The last evaluation; returns the signal that ended it, 0 for none.

        The last checkpoint is there already, so that the next run goes on with this.
        """

        def last() -> None:
            with interrupts.raised():
                self._evaluate(final=True)
            self.logger.hparams(board.hparams(flatten(self.config)), self.evaluated)
            log.info("done: %s", self.folder.path)

        try:
            self.world.first(last)
        except Interrupted as interrupted:
            return int(interrupted.args[0])
        return 0

    def _save(self) -> None:
        ema = dict(self.state.ema.net.state_dict())
        state = {
            "config": self.config,
            "step": self.state.step,
            "images_seen": self.state.images_seen,
            "counters": vars(self.counters).copy(),
            "skipped": {name: int(count) for name, count in vars(self.state.skipped).items()},
            "meter": {"sums": dict(self.meter.sums), "count": int(self.meter.count)},
            "evaluated": self.evaluated,
            "best": self.best,
            "net": dict(self.net.state_dict()),
            "ema": ema,
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.save(
            self.folder.checkpoints,
            state,
            step=self.state.step,
            keep=self.trainer.keep_checkpoints,
        )
        weights = self.folder.checkpoints / checkpoint.EMA_FILE
        checkpoint.save_weights(weights, ema, self.config)
        self.folder.write_metrics(self._metrics(Status.running))

    def _resume(self) -> None:
        saved = checkpoint.newest(self.folder.checkpoints, self.config)
        if saved is None:
            return
        self.state.step, self.state.images_seen = saved["step"], saved["images_seen"]
        self.counters = Counters(**saved["counters"])
        self.state.skipped = Skipped.on(self.device, **saved["skipped"])
        sums = {tag: total.to(self.device) for tag, total in saved["meter"]["sums"].items()}
        self.meter = Meter(sums, saved["meter"]["count"])
        self.evaluated, self.best = saved["evaluated"], saved["best"]
        self.net.load_state_dict(saved["net"])
        self.state.ema.net.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        log.info("going on at step %d: %s", self.state.step, self.folder.path)

    def _metrics(self, status: Status, **more: Any) -> dict[str, Any]:
        """What metrics.json holds."""
        return {
            "status": status,
            "objective": self.objective.name,
            "seed": self.config["seed"],
            "steps": self.state.step,
            "images_seen": self.state.images_seen,
            "skipped_steps": int(self.state.skipped.total),
            "seconds": round(self.counters.seconds, 3),
            "images_per_second": round(self.counters.images_per_second, 1),
            "peak_memory_bytes": runtime.peak_memory_bytes(self.device),
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "precision": str(self.dtype).removeprefix("torch."),
            "sources": self.sources,
            "git_commit": runtime.git_commit(),
            "versions": runtime.versions(),
            "device": runtime.device_name(self.device),
            "processes": self.world.size,
            "metrics": self.evaluated,
            "quality": self._quality(),
            "best": self.best,
            **more,
        }

    def _quality(self) -> dict[str, Any] | None:
        """What the quality metrics depend on beside the samples; None where there are none."""
        judge = self.evaluator.judge
        if judge is None:
            return None
        return {
            "images": judge.images,
            "final_images": judge.final_images,
            "data_sha256": judge.quality.data_sha256,
            "features_sha256": judge.quality.network.sha256,
        }
