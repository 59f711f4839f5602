"""The training loop: a generator of steps. Forward, backward, clip, step, EMA; nothing else.

Evaluation, logging, saving and stopping belong to whoever consumes the steps (`scm.experiment`). A
step's randomness follows from (seed, step) alone, and nothing here waits for the device. A step
whose loss or gradient is not finite changes nothing but the counters.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from scm import rng, schedules
from scm.config import Compile, TrainerConfig
from scm.data import Dataset
from scm.distributed import World
from scm.ema import Ema
from scm.objectives import Draw, Loss, Objective

log = logging.getLogger(__name__)


@dataclass
class Skipped:
    """Steps whose loss or gradient was not finite; 0-dim int64 tensors that stay on the device."""

    total: Tensor
    in_a_row: Tensor  # up to the last step

    @classmethod
    def on(cls, device: torch.device, total: int = 0, in_a_row: int = 0) -> "Skipped":
        """These counts as tensors."""
        return cls(torch.tensor(total, device=device), torch.tensor(in_a_row, device=device))

    def count(self, finite: Tensor) -> None:
        """Count one step, whose 0-dim bool says whether it was taken."""
        self.total += ~finite
        self.in_a_row = (self.in_a_row + 1) * ~finite


@dataclass
class TrainState:
    """All that changes while training, and that a checkpoint must hold."""

    net: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    skipped: Skipped
    step: int = 0  # finished steps, the skipped ones included
    images_seen: int = 0


@dataclass(frozen=True)
class StepRecord:
    """What one step gives to its consumer. Tensors stay on the device: reading one waits for it."""

    step: int  # number of finished steps, this one included
    images_seen: int
    scalars: dict[str, Tensor]  # 0-dim means over the batch, under their log tags
    finite: Tensor  # 0-dim bool; where it is false the step was skipped
    learning_rate: float
    ema_decay: float


def draw_for_step(
    objective: Objective, dataset: Dataset, *, seed: int, step: int, batch_size: int, labels: bool
) -> Draw:
    """Data, noise and times of a training step: a pure function of (seed, step)."""
    x0, label = dataset.batch(seed, step, batch_size)
    noise = rng.generator(seed, "noise", step, device=x0.device)
    times = rng.generator(seed, "times", step, device=x0.device)
    z = torch.randn(x0.shape, generator=noise, device=x0.device) * objective.sigma_data
    t = objective.draw_times(batch_size, generator=times, device=x0.device)
    return Draw(x0=x0, z=z, t=t, label=label if labels else None)


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
        sums = {tag: sums.get(tag, 0) + weight * mean for tag, mean in means.items()}
    return world.sums(sums)


def take_step(state: TrainState, finite: Tensor, decay: float) -> None:
    """Move weights, optimiser and EMA where `finite` holds; leave all three as they were elsewhere.

    On a CPU the flag is simply read. On a GPU that would wait for the backward pass, so a fused
    optimiser gets the flag as `found_inf`, as from torch's GradScaler, and the EMA moves by a
    weight on the device. An optimiser without a fused kernel does wait there, once per step.
    """
    state.skipped.count(finite)
    if skips_by_itself(state.optimizer, finite.device):
        state.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        state.optimizer.step()
        state.ema.update_where(finite, decay)
    elif finite:
        state.optimizer.step()
        state.ema.update(decay)


def skips_by_itself(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether its kernel can leave everything as it is without the host knowing."""
    return device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False)


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
    state: TrainState,
    objective: Objective,
    dataset: Dataset,
    *,
    trainer: TrainerConfig,
    learning_rate: float,  # the schedule's peak
    seed: int,
    labels: bool,  # whether the network is given the classes
    world: World,
    progress: Callable[[], float],  # used part of the budget in [0, 1], for the learning rate
) -> Iterator[StepRecord]:
    """Train for ever, one optimiser step per `next()`; `state` is changed in place."""
    parameters = [p for p in state.net.parameters() if p.requires_grad]
    max_norm = trainer.grad_clip if trainer.grad_clip is not None else float("inf")
    parts = parts_of(world.rows(trainer.batch_size), trainer.micro_batch_size)
    draw_of = partial(
        draw_for_step,
        objective,
        dataset,
        seed=seed,
        batch_size=trainer.batch_size,
        labels=labels,
    )
    state.net.train()
    sizes = {rows.stop - rows.start: rows for rows in parts}
    draws = (draw_of(step=0).part(rows) for rows in sizes.values())
    fast = compiled(objective, state.net, draws, trainer.compile)
    batch_loss = world.parallel(BatchLoss(state.net, fast), uses_all=objective.adaptive_weight)
    while True:
        factor = schedules.lr_factor(
            state.step,
            progress(),
            warmup_steps=trainer.lr_warmup_steps,
            decay_fraction=trainer.lr_decay_fraction,
        )
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * factor
        draw = draw_of(step=state.step)
        state.optimizer.zero_grad(set_to_none=True)
        scalars = add_gradients(batch_loss, draw, parts, seed=seed, step=state.step, world=world)
        grad_norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        finite = torch.isfinite(grad_norm) & torch.isfinite(scalars["train/loss"])
        state.step += 1
        state.images_seen += trainer.batch_size
        decay = schedules.ema_decay(
            state.images_seen,
            trainer.batch_size,
            half_life_images=trainer.ema_half_life_images,
            rampup=trainer.ema_rampup,
        )
        take_step(state, finite, decay)
        scalars["train/grad_norm"] = grad_norm
        yield StepRecord(
            state.step, state.images_seen, scalars, finite, learning_rate * factor, decay
        )
