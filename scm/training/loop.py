"""The training loop: a generator of steps. Forward, backward, clip, step, average.

Whoever consumes the steps evaluates, logs, saves and stops (`scm.training.run`). A step's
randomness follows from (seed, step) alone, and no step waits for the device on a GPU.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from scm.config.schema import Compile, Trainer
from scm.core import rng
from scm.core.distributed import World
from scm.data.dataset import Dataset
from scm.method import schedules
from scm.method.network import Draw
from scm.method.objective import Loss, Objective
from scm.training import watch
from scm.training.learner import Learner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is learned, from what and how: all that the steps need and none of them changes."""

    objective: Objective
    dataset: Dataset
    trainer: Trainer
    seed: int
    labels: bool  # whether the network is given the classes
    world: World

    def draw(self, step: int) -> Draw:
        """Data, noise and times of a training step: a pure function of (seed, step)."""
        objective = self.objective
        x0, label = self._batch(step)
        noise = rng.generator(self.seed, "noise", step, device=x0.device)
        times = rng.generator(self.seed, "times", step, device=x0.device)
        z = torch.randn(x0.shape, generator=noise, device=x0.device) * objective.sigma_data
        t = objective.draw_times(len(x0), generator=times, device=x0.device)
        ends = rng.generator(self.seed, "second times", step, device=x0.device)
        s = objective.draw_times.second(t, generator=ends)
        own = self.own_draw(step, 0) if objective.matching is not None else None
        return Draw(x0=x0, z=z, t=t, label=label, s=s, own=own)

    def own_draw(self, step: int, turn: int) -> Draw:
        """Noise and times of samples that the network makes itself, for matching.

        At each step the network has turn 0, and the score network those from 1 on.
        """
        matching = self.objective.matching
        assert matching is not None
        x0, label = self._batch(step)
        gen = rng.generator(self.seed, "samples in training", step, turn, device=x0.device)
        shape = (len(x0), matching.calls + 1, *x0.shape[1:])
        noise = torch.randn(shape, generator=gen, device=x0.device) * self.objective.sigma_data
        t = matching.draw_times(len(x0), generator=gen, device=x0.device)
        return Draw(x0=x0, z=noise[:, -1], t=t, label=label, noise=noise[:, :-1])

    def _batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        x0, label = self.dataset.batch(self.seed, step, self.trainer.batch_size)
        return x0, label if self.labels else None


@dataclass(frozen=True)
class StepRecord:
    """What one step gives to its consumer. Tensors stay on the device: reading one waits for it."""

    step: int  # number of finished steps, this one included
    scalars: dict[str, Tensor]  # 0-dim means over the batch, under their log tags
    finite: Tensor  # 0-dim bool; where it is false the step was skipped
    learning_rate: float
    ema_decay: float


class BatchLoss(nn.Module):
    """The objective's loss as a module of the network's parameters.

    What is made parallel is this: plain tensors go in and come out once per backward, whatever
    passes through the network in between (a tangent, or a second pass without gradients).
    """

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net = net
        self.objective = objective

    def forward(self, draw: Draw, step: int) -> Loss:
        """The loss per sample."""
        return self.objective.loss(self.net, draw, step)


def parts_of(rows: range, size: int | None) -> list[slice]:
    """These rows in parts of at most `size`; None: in one."""
    starts = range(rows.start, rows.stop, size or len(rows))
    return [slice(start, min(start + starts.step, rows.stop)) for start in starts]


def add_gradients(
    batch_loss: nn.Module,
    draw: Draw,
    parts: Sequence[slice],
    *,
    seed: int,
    step: int,
    world: World,
) -> dict[str, Tensor]:
    """Give every parameter the whole batch's gradient; returns the whole batch's mean scalars.

    However the batch is parted, each sample counts the same. A part's dropout masks follow from
    (seed, step) and its first row.
    """
    sums: dict[str, Tensor] = {}
    for rows in world.passes(batch_loss, parts):
        torch.manual_seed(rng.derive_seed(seed, "dropout", step) + rows.start)
        loss: Loss = batch_loss(draw.part(rows), step)
        weight = (rows.stop - rows.start) / len(draw.t)
        # the processes' gradients are averaged, and are to be summed
        (loss.loss.mean() * (weight * world.size)).backward()
        means = {
            "train/loss": loss.loss.detach().mean(),
            "train/error": loss.error.mean(),
            "train/w": loss.w.mean(),
            **{tag: value.mean() for tag, value in loss.terms.items()},
        }
        if (rms := loss.terms.get("tangent/rms")) is not None:
            means |= watch.by_noise(rms, draw.t[rows])
        sums = {tag: sums.get(tag, 0) + weight * mean for tag, mean in means.items()}
    return world.sums(sums)


def compiled(
    objective: Objective, net: nn.Module, draws: Iterable[Draw], choice: Compile | None
) -> Objective:
    """The objective with compiled passes, tried on `draws`, of all sizes that training will have.

    Where that fails, the objective as it is: training then goes on in eager mode and says so.
    """
    if choice is None:
        return objective
    # The gradients of one graph come at its end; splitting it would let their exchange begin before
    torch._dynamo.config.optimize_ddp = False
    torch.compiler.reset()  # an earlier run's graphs, in a sweep, count against dynamo's limit
    compile = partial(torch.compile, mode=choice.value, fullgraph=True, dynamic=False)
    attempt = objective.compiled(compile)
    try:
        for draw in draws:
            attempt.loss(net, draw, 0).loss.mean().backward()
    except Exception as error:  # of dynamo, of a backend, of a missing C compiler
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("trainer.compile=%s: fails, training in eager mode (%s)", choice.name, reason)
        return objective
    finally:
        net.zero_grad(set_to_none=True)
    return attempt


class Steps:
    """One learner's steps: gradients of the whole batch, clip, optimiser, average.

    `first` draws a step's batch, on which compiled passes are tried.
    """

    def __init__(
        self, learner: Learner, objective: Objective, task: Task, first: Callable[[], Draw]
    ) -> None:
        trainer, world = task.trainer, task.world
        self.learner, self.task = learner, task
        self.parameters = [p for p in learner.net.parameters() if p.requires_grad]
        self.parts = parts_of(world.rows(trainer.batch_size), trainer.micro_batch_size)
        self.exponent = schedules.ema_exponent(trainer.ema_sigma_rel)
        learner.net.train()
        sizes = {rows.stop - rows.start: rows for rows in self.parts}
        draws = (first().part(rows) for rows in sizes.values())
        objective = compiled(objective, learner.net, draws, trainer.compile)
        self.batch_loss = world.parallel(
            BatchLoss(learner.net, objective), uses_all=objective.adaptive_weight
        )

    def take(self, draw: Draw, progress: float) -> StepRecord:
        """One step; the learner is changed in place."""
        learner, task, trainer = self.learner, self.task, self.task.trainer
        step = learner.step
        rate = learner.lr * schedules.lr_factor(
            step,
            progress,
            warmup_steps=trainer.lr_warmup_steps,
            decay_fraction=trainer.lr_decay_fraction,
        )
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        learner.optimizer.zero_grad(set_to_none=True)
        scalars = add_gradients(
            self.batch_loss, draw, self.parts, seed=task.seed, step=step, world=task.world
        )
        max_norm = trainer.grad_clip if trainer.grad_clip is not None else float("inf")
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, max_norm)
        finite = torch.isfinite(grad_norm) & torch.isfinite(scalars["train/loss"])
        learner.step += 1
        learner.images_seen += trainer.batch_size
        decay = schedules.ema_decay(learner.step, self.exponent)
        learner.take_step(finite, decay)
        scalars["train/grad_norm"] = grad_norm
        return StepRecord(learner.step, scalars, finite, rate, decay)


def train_steps(
    learner: Learner, task: Task, progress: Callable[[], float], score: Learner | None = None
) -> Iterator[StepRecord]:
    """Train for ever, one optimiser step per `next()`; the learners are changed in place.

    `progress` says which part of the budget in [0, 1] is used; the learning rate follows it.
    `score` learns the samples that matching compares with the data; it moves first.
    """
    mine = Steps(learner, task.objective, task, lambda: task.draw(0))
    matching = task.objective.matching
    if matching is None or score is None:
        while True:
            yield mine.take(task.draw(learner.step), progress())
    samples = matching.of_samples(learner.net)
    theirs = Steps(score, samples, task, lambda: task.own_draw(0, 1))
    while True:
        for turn in range(1, matching.score_steps + 1):
            draw = task.own_draw(learner.step, turn)
            told = theirs.take(draw, progress()).scalars
        record = mine.take(task.draw(learner.step), progress())
        for name in ("loss", "grad_norm"):
            record.scalars[f"score/{name}"] = told[f"train/{name}"]
        yield record
