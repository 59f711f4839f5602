"""A run: consumes training steps and decides when to log, evaluate, save and stop.

What is trained and how stands in `scm.train`; what things are built of in `scm.build`.
"""

import logging
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scm import board, checkpoint, pictures, runtime
from scm.config import BudgetConfig, TrainerConfig
from scm.data import Dataset
from scm.distributed import World
from scm.ema import Ema
from scm.evaluator import Evaluator
from scm.interrupts import Interrupts
from scm.logger import Logger
from scm.objectives import Objective
from scm.progress import Progress
from scm.runfolder import RunFolder, Status, flatten
from scm.train import StepRecord, TrainState, train_steps

log = logging.getLogger(__name__)

UNTIMED_STEPS = 5  # of every process: they warm up caches and are left out of images_per_second


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


@dataclass
class Counters:
    """What a run has used, kept in its checkpoints."""

    seconds: float = 0.0  # of training, without evaluation and saving
    timed_seconds: float = 0.0  # the same without the first steps of every process
    timed_images: int = 0

    @property
    def images_per_second(self) -> float:
        """Training alone; 0 before there is something to say."""
        return self.timed_images / self.timed_seconds if self.timed_seconds else 0.0


@dataclass
class Meter:
    """Means of scalars since the last log record; sums stay on the device."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add one step's scalars without waiting for the device."""
        self.sums = {tag: self.sums.get(tag, 0) + value for tag, value in scalars.items()}
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means, waiting for the device; the meter starts anew."""
        means = {tag: float(total) / self.count for tag, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def budget_used(budget: BudgetConfig, state: TrainState, seconds: float) -> float:
    """The used part of the budget in [0, 1]: the largest over its limits."""
    used = [
        done / limit
        for done, limit in (
            (state.step, budget.steps),
            (state.images_seen, budget.images),
            (seconds / 60, budget.minutes),
        )
        if limit is not None
    ]
    return min(1.0, max(used))


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
    optimizer: torch.optim.Optimizer
    evaluator: Evaluator
    device: torch.device
    dtype: torch.dtype
    world: World

    def __post_init__(self) -> None:
        self.state = TrainState(self.net, Ema(self.net), self.optimizer)
        self.counters, self.meter = Counters(), Meter()
        self.evaluated: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Train to the end of the budget, or until interrupted; returns what metrics.json holds.

        Any exception is recorded there, with its traceback, and raised again.
        """
        runtime.reset_peak_memory(self.device)
        self._resume()
        self.world.first(self._begin)
        try:
            with Interrupts() as interrupts:
                signal = self._train(interrupts)
            if not signal:
                self.world.first(self._finish)
            status = Status.stopped if signal else Status.done
            metrics = self._metrics(status, signal=signal)
            self.world.first(lambda: self.folder.write_metrics(metrics))
        except Exception:
            if self.world.is_first:
                failed = self._metrics(Status.failed, traceback=traceback.format_exc())
                self.folder.write_metrics(failed)
            raise
        finally:
            if self.world.is_first:
                self.logger.close()
        return self.world.share(metrics)

    def _begin(self) -> None:
        self.logger = Logger(self.folder.path, step=self.state.step, config_text=self.config_text)
        self.folder.write_metrics(self._metrics(Status.running))

    @property
    def _used(self) -> float:
        return budget_used(self.trainer.budget, self.state, self.counters.seconds)

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
                self.meter.add(record.scalars)
                if record.step % self.trainer.log_every == 0:
                    self._log(record, progress)
                seconds = self.world.largest(time.perf_counter() - started)
                self._count(seconds, record.step - first_step)
                progress.update(self._used, record.step, self.counters.images_per_second)
                if record.step % self.trainer.evaluate_every == 0 and self._used < 1:
                    self.world.first(self._evaluate)
                if record.step % self.trainer.save_every == 0 and self._used < 1:
                    self.world.first(self._save)
        finally:
            progress.close()
        self.world.first(self._save)
        return signal

    def _count(self, seconds: float, steps_here: int) -> None:
        self.counters.seconds += seconds
        if steps_here > UNTIMED_STEPS:
            self.counters.timed_seconds += seconds
            self.counters.timed_images += self.trainer.batch_size

    def _log(self, record: StepRecord, progress: Progress) -> None:
        values = self.meter.take()
        all_values = {
            **values,
            "train/learning_rate": record.learning_rate,
            "train/ema_decay": record.ema_decay,
            "perf/images_per_second": self.counters.images_per_second,
            "perf/images_seen": record.images_seen,
            "perf/seconds": self.counters.seconds,
            "perf/peak_memory_bytes": runtime.peak_memory_bytes(self.device),
        }
        self.world.first(lambda: self.logger.scalars(record.step, all_values))
        loss, grad_norm = values["train/loss"], values["train/grad_norm"]
        progress.report(record.step, self.counters.images_per_second, loss, grad_norm)
        if loss != loss or abs(loss) == float("inf"):
            raise Diverged(
                f"the loss is {loss} at step {record.step}: training has diverged; lower "
                f"objective.lr={self.config['objective']['lr']} or lengthen the warm-ups"
            )

    def _evaluate(self, *, final: bool = False) -> None:
        step = self.state.step
        result = self.evaluator(self.state.ema.net, step, final=final)
        self.evaluated = result.metrics
        self.logger.scalars(step, result.metrics)
        for name, picture in result.pictures.items():
            self.logger.picture(step, name, picture)
            pictures.save_png(self.folder.samples / f"{name}_{step:08d}.png", picture)

    def _finish(self) -> None:
        self._evaluate(final=True)
        self.logger.hparams(board.hparams(flatten(self.config)), self.evaluated)
        log.info("done: %s", self.folder.path)

    def _save(self) -> None:
        ema = dict(self.state.ema.net.state_dict())
        state = {
            "config": self.config,
            "step": self.state.step,
            "images_seen": self.state.images_seen,
            "counters": vars(self.counters).copy(),
            "meter": {"sums": dict(self.meter.sums), "count": self.meter.count},
            "evaluated": self.evaluated,
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
        saved = checkpoint.newest(self.folder.checkpoints)
        if saved is None:
            return
        self.state.step, self.state.images_seen = saved["step"], saved["images_seen"]
        self.counters = Counters(**saved["counters"])
        sums = {tag: total.to(self.device) for tag, total in saved["meter"]["sums"].items()}
        self.meter = Meter(sums, saved["meter"]["count"])
        self.evaluated = saved["evaluated"]
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
            "seconds": round(self.counters.seconds, 3),
            "images_per_second": round(self.counters.images_per_second, 1),
            "peak_memory_bytes": runtime.peak_memory_bytes(self.device),
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "precision": str(self.dtype).removeprefix("torch."),
            "git_commit": runtime.git_commit(),
            "versions": runtime.versions(),
            "device": runtime.device_name(self.device),
            "processes": self.world.size,
            "metrics": self.evaluated,
            "quality": self._quality(),
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
