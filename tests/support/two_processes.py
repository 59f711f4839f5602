"""Run by `test_distributed.py` through torchrun: each process checks itself against one alone.

Then both are `python run.py`, with the same arguments.
"""

import runpy
import sys

import torch
from test_loop import BATCH, OBJECTIVES, draw, gradients

from scm.core.distributed import World, world
from scm.core.errors import UserError
from scm.training.loop import parts_of


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
    world().first(lambda: print("gradients agree", flush=True))
    sys.argv[0] = "run.py"
    runpy.run_path("run.py", run_name="__main__")
