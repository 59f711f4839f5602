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
        n = self.trainer.batch_size
        x0, label = self.dataset.batch(self.seed, step, n)
        noise = rng.generator(self.seed, "noise", step, device=x0.device)
        times = rng.generator(self.seed, "times", step, device=x0.device)
        z = torch.randn(x0.shape, generator=noise, device=x0.device) * self.objective.sigma_data
        t = self.objective.draw_times(n, generator=times, device=x0.device)
        ends = rng.generator(self.seed, "second times", step, device=x0.device)
        s = self.objective.draw_times.second(t, generator=ends)
        return Draw(x0=x0, z=z, t=t, label=label if self.labels else None, s=s)


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


def train_steps(
    learner: Learner, task: Task, progress: Callable[[], float]
) -> Iterator[StepRecord]:
    """Train for ever, one optimiser step per `next()`; the learner is changed in place.

    `progress` says which part of the budget in [0, 1] is used; the learning rate follows it.
    """
    trainer, world, optimizer = task.trainer, task.world, learner.optimizer
    parameters = [p for p in learner.net.parameters() if p.requires_grad]
    max_norm = trainer.grad_clip if trainer.grad_clip is not None else float("inf")
    parts = parts_of(world.rows(trainer.batch_size), trainer.micro_batch_size)
    exponent = schedules.ema_exponent(trainer.ema_sigma_rel)
    learner.net.train()
    sizes = {rows.stop - rows.start: rows for rows in parts}
    draws = (task.draw(0).part(rows) for rows in sizes.values())
    objective = compiled(task.objective, learner.net, draws, trainer.compile)
    batch_loss = world.parallel(
        BatchLoss(learner.net, objective), uses_all=objective.adaptive_weight
    )
    while True:
        step = learner.step
        rate = learner.lr * schedules.lr_factor(
            step,
            progress(),
            warmup_steps=trainer.lr_warmup_steps,
            decay_fraction=trainer.lr_decay_fraction,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        draw = task.draw(step)
        optimizer.zero_grad(set_to_none=True)
        scalars = add_gradients(batch_loss, draw, parts, seed=task.seed, step=step, world=world)
        grad_norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        finite = torch.isfinite(grad_norm) & torch.isfinite(scalars["train/loss"])
        learner.step += 1
        learner.images_seen += trainer.batch_size
        decay = schedules.ema_decay(learner.step, exponent)
        learner.take_step(finite, decay)
        scalars["train/grad_norm"] = grad_norm
        yield StepRecord(learner.step, scalars, finite, rate, decay)
