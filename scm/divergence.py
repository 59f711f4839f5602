"""What led to a run of skipped steps, in a form that can be read and repeated.

A skipped step changes no weight, and a step's draw follows from (seed, step): so the last steps are
simply made again, sample by sample. Knows nothing of files.
"""

import math
from typing import Any

import torch
from torch import Tensor

from scm.data import Dataset
from scm.distributed import World
from scm.objectives import Objective
from scm.train import BatchLoss, TrainState, add_gradients, draw_for_step, parts_of

LAST_STEPS = 3  # steps shown in full


class Diverged(RuntimeError):
    """Loss or gradient have not been finite for too many steps in a row."""


def dump(
    state: TrainState,
    objective: Objective,
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    pass_size: int,  # images in one pass, as in training
    labels: bool,
) -> dict[str, Any]:
    """JSON of the last skipped steps. The network's gradients are overwritten.

    Per step: the samples' indices in the data set (null where it draws without end), times t
    (radians), losses, errors, log weights, and gradient norms of the parameters that have one.
    """
    in_a_row = int(state.skipped.in_a_row)
    first = state.step - min(in_a_row, LAST_STEPS)
    steps = []
    for step in range(first, state.step):
        draw = draw_for_step(
            objective, dataset, seed=seed, step=step, batch_size=batch_size, labels=labels
        )
        parts = parts_of(range(batch_size), pass_size)
        state.optimizer.zero_grad(set_to_none=True)
        add_gradients(
            BatchLoss(state.net, objective), draw, parts, seed=seed, step=step, world=World()
        )
        with torch.no_grad():
            losses = [objective.loss(state.net, draw.part(rows), step) for rows in parts]
        named = [(name, p.grad) for name, p in state.net.named_parameters() if p.grad is not None]
        steps.append(
            {
                "step": step + 1,  # as the log counts: finished steps, this one included
                "indices": dataset.indices(seed, step, batch_size),
                "t": numbers(draw.t),
                "loss": numbers(torch.cat([loss.loss for loss in losses])),
                "error": numbers(torch.cat([loss.error for loss in losses])),
                "w": numbers(torch.cat([loss.w for loss in losses])),
                "gradient_norms": norms(named),
            }
        )
    return {
        "step": state.step,
        "skipped_steps": int(state.skipped.total),
        "skipped_in_a_row": in_a_row,
        "steps": steps,
        "weight_norms": norms(list(state.net.named_parameters())),
    }


def numbers(values: Tensor) -> list[float | str]:
    """A list that JSON can hold: "nan", "inf" and "-inf" as words."""
    return [v if math.isfinite(v) else str(v) for v in values.detach().float().tolist()]


def norms(tensors: list[tuple[str, Tensor]]) -> dict[str, float | str]:
    """The L2 norm of each, under its name."""
    found = numbers(torch.stack([tensor.detach().float().norm() for _, tensor in tensors]))
    return dict(zip([name for name, _ in tensors], found, strict=True))
