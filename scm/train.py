"""The training loop: a generator of steps. Forward, backward, clip, step, EMA; nothing else.

Evaluation, logging, saving and stopping belong to whoever consumes the steps (`scm.experiment`). A
step's randomness follows from (seed, step) alone, and nothing here waits for the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm import rng, schedules
from scm.config import TrainerConfig
from scm.data import Dataset
from scm.ema import Ema
from scm.objectives import Draw, Objective


@dataclass
class TrainState:
    """All that changes while training, and that a checkpoint must hold."""

    net: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    step: int = 0  # finished steps
    images_seen: int = 0


@dataclass(frozen=True)
class StepRecord:
    """What one step gives to its consumer. Tensors stay on the device: reading one waits for it."""

    step: int  # number of finished steps, this one included
    images_seen: int
    scalars: dict[str, Tensor]  # 0-dim means over the batch, under their log tags
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


def train_steps(
    state: TrainState,
    objective: Objective,
    dataset: Dataset,
    *,
    trainer: TrainerConfig,
    learning_rate: float,  # the schedule's peak
    seed: int,
    labels: bool,  # whether the network is given the classes
    progress: Callable[[], float],  # used part of the budget in [0, 1], for the learning rate
) -> Iterator[StepRecord]:
    """Train for ever, one optimiser step per `next()`; `state` is changed in place."""
    parameters = [p for p in state.net.parameters() if p.requires_grad]
    max_norm = trainer.grad_clip if trainer.grad_clip is not None else float("inf")
    state.net.train()
    while True:
        factor = schedules.lr_factor(
            state.step,
            progress(),
            warmup_steps=trainer.lr_warmup_steps,
            decay_fraction=trainer.lr_decay_fraction,
        )
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * factor
        torch.manual_seed(rng.derive_seed(seed, "dropout", state.step))
        draw = draw_for_step(
            objective,
            dataset,
            seed=seed,
            step=state.step,
            batch_size=trainer.batch_size,
            labels=labels,
        )
        state.optimizer.zero_grad(set_to_none=True)
        loss = objective.loss(state.net, draw, state.step)
        loss.loss.mean().backward()
        grad_norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        state.optimizer.step()
        state.step += 1
        state.images_seen += trainer.batch_size
        decay = schedules.ema_decay(
            state.images_seen,
            trainer.batch_size,
            half_life_images=trainer.ema_half_life_images,
            rampup=trainer.ema_rampup,
        )
        state.ema.update(decay)
        scalars = {
            "train/loss": loss.loss.detach().mean(),
            "train/error": loss.error.mean(),
            "train/w": loss.w.mean(),
            "train/grad_norm": grad_norm,
            **{tag: value.mean() for tag, value in loss.terms.items()},
        }
        yield StepRecord(state.step, state.images_seen, scalars, learning_rate * factor, decay)
