"""Run by `test_distributed.py` through torchrun: each process checks itself against one alone.

Then both are `python run.py`, with the same arguments.
"""

import runpy
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from runs import TINY, built
from test_loop import BATCH, OBJECTIVES, draw, gradients

from scm.core.distributed import World, world
from scm.core.errors import UserError
from scm.training.loop import parts_of, train_steps


def check_gradients() -> None:
    """Every objective, whole and in micro-batches: the joined batch's, in float64."""
    for name, objective in OBJECTIVES.items():
        expected = gradients(objective, draw(), [slice(0, BATCH)], World())
        for size in (None, 2):
            parts = parts_of(world().rows(BATCH), size)
            torch.testing.assert_close(
                gradients(objective, draw(), parts, world()),
                expected,
                rtol=1e-12,
                atol=1e-13,
                msg=lambda text, name=name, size=size: f"{name}, micro-batches of {size}: {text}",
            )


MATCHING = (
    *("data=bimodal", *TINY["mlp"], "matching=dmd", "matching.score_steps=2"),
    "objective/velocity@matching.velocity=exact",
)
COLOUR = ("data=color_mnist", *TINY["dit"], "trainer.precision=fp32", "objective.init=null")


def check_steps(*run: str) -> None:
    """The network, and one that scores its samples, after two steps: those of one process."""
    ends = []
    for processes in (World(), world()):
        with TemporaryDirectory() as folder:
            whole = (*run, "trainer.batch_size=9", "trainer.lr_warmup_steps=0")
            parts = built(Path(folder) / "run", *whole)
        learners = [learner for learner in (parts.learner, parts.score) if learner is not None]
        before = [deepcopy(learner.net.state_dict()) for learner in learners]
        task = replace(parts.task, world=processes)
        steps = train_steps(parts.learner, task, lambda: 0.0, parts.score)
        records = [next(steps).scalars for _ in range(2)]
        assert parts.score is None or parts.score.step == 4
        nets = [learner.net.state_dict() for learner in learners]
        for net, first in zip(nets, before, strict=True):
            assert any(not torch.equal(value, first[k]) for k, value in net.items())
        ends.append([*nets, *records])
    for mine, expected in zip(ends[1], ends[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)  # float32, another order


def check_agreement() -> None:
    """The largest, the first's value, and a failure of the first's that all hear of."""
    rank = world().rank
    assert world().size == 2
    assert world().largest(15 * rank) == 15 and world().largest(0.5 - rank) == 0.5
    assert world().share({"folder": rank}) == {"folder": 0}
    done = []
    world().first(lambda: done.append(rank))
    assert done == ([0] if rank == 0 else [])

    def fail() -> None:
        raise UserError("locked")

    try:
        world().first(fail)
    except UserError as error:
        assert str(error) == "locked"
    else:
        raise AssertionError(f"rank {rank} did not hear of it")


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_agreement()
    check_gradients()
    check_steps(*MATCHING)
    check_steps(*COLOUR)
    world().first(
        lambda: print("gradients, matching, colour and the transformer agree", flush=True)
    )
    sys.argv[0] = "run.py"
    runpy.run_path("run.py", run_name="__main__")
