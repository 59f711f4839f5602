"""The processes of one job: which of them this is, what they share, where they wait for each other.

`torchrun --nproc-per-node 2 run.py ...` starts several. Each makes the same draw of the whole batch
and trains on its own rows of it, so loss and gradient do not depend on how many there are, and
neither does a checkpoint. Without torchrun a process is alone and every method is the trivial one.
Torch is imported when there are several, not before: `scm.commands.train` asks here first.
"""

import atexit
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from scm.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


class World:
    """A process that is alone."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs, evaluates, saves and shows."""
        return self.rank == 0

    def check(self, batch_size: int, device: "torch.device") -> None:
        """Raise UserError where a process would have no rows, or no GPU."""

    def rows(self, batch_size: int) -> range:
        """This process' rows of the whole batch; the parts differ by at most one row."""
        return range(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    def parallel(self, loss: "nn.Module", *, uses_all: bool) -> "nn.Module":
        """`loss` with gradients averaged over the processes in `backward`.

        `uses_all`: whether every parameter always gets a gradient.
        """
        return loss

    def passes(self, loss: "nn.Module", parts: Sequence[T]) -> Iterator[T]:
        """The parts in turn, for one forward and backward each; gradients travel in the last."""
        yield from parts

    def sums(self, scalars: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """The sums of 0-dim tensors over the processes, without waiting for a GPU."""
        return scalars

    def largest(self, value: T) -> T:
        """The largest of the processes' numbers: all take the same decision by it."""
        return value

    def share(self, value: T) -> T:
        """The first process' value."""
        return value

    def first(self, action: Callable[[], object]) -> None:
        """Let the first process do it; the others wait, and fail as it fails."""
        action()


class Processes(World):
    """One of several that torchrun has started. Gloo carries what is on CPUs, NCCL what is on GPUs.

    Every method but `rows` must be called by all of them, in the same order.
    """

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist = torch, dist
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(dist.get_node_local_rank() % torch.cuda.device_count())
        dist.init_process_group(backend)
        atexit.register(dist.destroy_process_group)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if not self.is_first:
            logging.disable(logging.WARNING)

    def check(self, batch_size: int, device: "torch.device") -> None:
        if batch_size < self.size:
            raise UserError(
                f"trainer.batch_size={batch_size}: the whole batch, which {self.size} processes "
                f"share; needs at least {self.size}, or a smaller --nproc-per-node"
            )
        if device.type != "cuda":
            return
        there = self._torch.cuda.device_count()
        if self._dist.get_node_local_rank() >= there:
            raise UserError(
                f"trainer.device=cuda: each process needs its own GPU and there are {there}; "
                f"start with --nproc-per-node {there}, or use trainer.device=cpu"
            )

    def parallel(self, loss: "nn.Module", *, uses_all: bool) -> "nn.Module":
        parallel = self._torch.nn.parallel.DistributedDataParallel
        return parallel(loss, find_unused_parameters=not uses_all)

    def passes(self, loss: "nn.Module", parts: Sequence[T]) -> Iterator[T]:
        with loss.no_sync():  # type: ignore[operator]  # DistributedDataParallel's
            yield from parts[:-1]
        yield parts[-1]

    def sums(self, scalars: "dict[str, Tensor]") -> "dict[str, Tensor]":
        totals = self._torch.stack(list(scalars.values()))
        self._dist.all_reduce(totals)
        return dict(zip(scalars, totals, strict=True))

    def largest(self, value: T) -> T:
        largest = self._torch.tensor(value, dtype=self._torch.float64)
        self._dist.all_reduce(largest, self._dist.ReduceOp.MAX)
        return type(value)(largest.item())  # type: ignore[call-arg]

    def share(self, value: T) -> T:
        box = [value]
        self._dist.broadcast_object_list(box, device=self._torch.device("cpu"))
        self.largest(0)  # a barrier: the first does not run ahead, or end, before it has arrived
        return box[0]

    def first(self, action: Callable[[], object]) -> None:
        error: Exception | None = None
        self.largest(0)  # what the others still had to do comes before
        try:
            if self.is_first:
                action()
        except Exception as failure:
            error = failure
        if (failed := self.share(error)) is not None:
            raise error or failed


def several() -> bool:
    """Whether torchrun has started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@functools.cache
def world() -> World:
    """The processes of this job, which are joined when one first asks."""
    return Processes() if several() else World()
