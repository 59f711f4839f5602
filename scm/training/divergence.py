"""The end of a run whose steps are skipped one after another, and what led to it.

A skipped step changes no weight, and a step's draw follows from (seed, step): so the last steps are
simply made again, sample by sample, and written in a form that can be read and repeated.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm.core.distributed import World
from scm.core.files import write_json
from scm.method.objective import Loss
from scm.training.learner import Learner
from scm.training.loop import BatchLoss, Task, add_gradients, parts_of

LAST_STEPS = 3  # steps shown in full


class Diverged(RuntimeError):
    """Loss or gradient have not been finite for too many steps in a row."""


def check(learner: Learner, task: Task, file: Path, score: Learner | None = None) -> None:
    """Raise Diverged, with a dump in `file`, after too many skipped steps in a row.

    To be called after every step; on a GPU it looks only where a log record waits anyway.
    """
    skipped, trainer = learner.skipped, task.trainer
    if skipped.total.device.type != "cpu" and learner.step % trainer.log_every:
        return
    if score is not None and int(score.skipped.in_a_row) >= trainer.max_skipped_steps:
        raise Diverged(
            f"the score network's loss or gradient not finite in {int(score.skipped.in_a_row)} "
            f"steps in a row, at step {learner.step}; lower matching.optimizer.lr={score.lr}"
        )
    if (in_a_row := int(skipped.in_a_row)) < trainer.max_skipped_steps:
        return
    task.world.first(lambda: write_json(file, _dump(learner, task)))
    raise Diverged(
        f"loss or gradient not finite in {in_a_row} steps in a row, at step {learner.step} "
        f"({int(skipped.total)} skipped in all): training has diverged; see {file}, lower "
        f"optimizer.lr={learner.lr} or lengthen the warm-ups"
    )


def _dump(learner: Learner, task: Task) -> dict[str, Any]:
    """JSON of the last skipped steps. The network's gradients are overwritten.

    Per step: the samples' indices in the data set (null where it draws without end), times t
    (radians), losses, errors, log weights, and gradient norms of the parameters that have one.
    """
    in_a_row = int(learner.skipped.in_a_row)
    first = learner.step - min(in_a_row, LAST_STEPS)
    return {
        "step": learner.step,
        "skipped_steps": int(learner.skipped.total),
        "skipped_in_a_row": in_a_row,
        "steps": [_repeated(learner, task, step) for step in range(first, learner.step)],
        "weight_norms": _norms(dict(learner.net.named_parameters())),
    }


def _repeated(learner: Learner, task: Task, step: int) -> dict[str, Any]:
    """A step made again by this process alone, in passes as large as those of training."""
    net, objective, batch_size = learner.net, task.objective, task.trainer.batch_size
    draw = task.draw(step)
    in_one_pass = task.trainer.micro_batch_size or len(task.world.rows(batch_size))
    parts = parts_of(range(batch_size), in_one_pass)
    learner.optimizer.zero_grad(set_to_none=True)
    batch_loss, losses = BatchLoss(net, objective), list[Loss]()
    batch_loss.register_forward_hook(lambda module, given, loss: losses.append(loss))
    add_gradients(batch_loss, draw, parts, seed=task.seed, step=step, world=World())
    return {
        "step": step + 1,  # as the log counts: finished steps, this one included
        "indices": task.dataset.indices(task.seed, step, batch_size),
        "t": _numbers(draw.t),
        "loss": _numbers(torch.cat([loss.loss for loss in losses])),
        "error": _numbers(torch.cat([loss.error for loss in losses])),
        "w": _numbers(torch.cat([loss.w for loss in losses])),
        "gradient_norms": _norms(
            {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        ),
    }


def _numbers(values: Tensor) -> list[float | str]:
    """A list that JSON can hold: "nan", "inf" and "-inf" as words."""
    return [v if math.isfinite(v) else str(v) for v in values.detach().float().tolist()]


def _norms(tensors: dict[str, Tensor]) -> dict[str, float | str]:
    """The L2 norm of each, under its name."""
    found = torch.stack([tensor.detach().float().norm() for tensor in tensors.values()])
    return dict(zip(tensors, _numbers(found), strict=True))
