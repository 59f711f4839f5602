"""Times cases in turn, so that whatever else the machine does hits all of them alike.

A case is a label and a function that builds the work.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from tqdm import tqdm

try:
    import resource
except ImportError:  # not POSIX: too large a case ends the process there
    resource = None  # type: ignore[assignment]

aten = torch.ops.aten
WARM_UP_CALLS = 2  # after those that count FLOPs and compile
MIN_SECONDS = 0.1  # of a sample: shorter work is repeated within it
MAX_CALLS = 2000


@dataclass(frozen=True)
class Label:
    """What a row is about. Rows that differ in `case` and `compiled` alone are compared."""

    model: str
    precision: str
    batch_size: int
    case: str
    compiled: str = ""  # eager, or how it is compiled
    threads: int | None = None  # None: as many as the program chooses
    grows: str = ""  # what is larger from row to row, of `benchmark.growth`
    at: int = 0  # how large it is here
    tokens: int | None = None  # of attention by itself

    @property
    def eager(self) -> "Label":
        """The row of the same work, not compiled."""
        return replace(self, compiled="")

    @property
    def baseline(self) -> "Label":
        """The row that this one is compared with: the diffusion step, eager."""
        return replace(self, case="diffusion", compiled="")


@dataclass(frozen=True)
class Work:
    """Something to time."""

    call: Callable[[], Any]  # may leave work queued on the device
    images: int = 0  # per call; 0: this work has no images
    counted: bool = False  # whether its FLOPs are counted, in its first call


@dataclass(frozen=True)
class Case:
    """A row to be: `build` is called once, and its work many times."""

    label: Label
    build: Callable[[], Work]


@dataclass
class Timing:
    """What came of a case: seconds per call, one sample a round, or why it failed."""

    label: Label
    images: int = 0
    flops: int = 0  # per call, of convolutions and matrix products; 0: not counted
    seconds: list[float] = field(default_factory=list)
    error: str = ""


def measure(cases: Iterable[Case], *, rounds: int, device: torch.device) -> list[Timing]:
    """Build and warm up every case, then time all of them in turn, `rounds` times.

    A case that fails (out of memory, an operation that is not there) is a row with its error.
    """
    runners = [_Runner(case, device) for case in cases]
    with tqdm(total=len(runners) * (rounds + 1), unit="sample", smoothing=0) as bar:
        bar.mininterval = 0.1 if sys.stderr.isatty() else 20.0
        for step in [_Runner.warm_up] + rounds * [_Runner.sample]:
            for runner in runners:
                name = f"{runner.label.model} {runner.label.case}"
                bar.set_description(name, refresh=sys.stderr.isatty())
                runner.attempt(step)
                bar.update()
    return [runner.timing for runner in runners]


class _Runner:
    """One case while it is measured."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.label = case.label
        self.timing = Timing(case.label)
        self._case, self._device = case, device
        self._threads = case.label.threads or torch.get_num_threads()
        self._work: Work | None = None

    def attempt(self, step: Callable[["_Runner"], None]) -> None:
        """Take a step unless one has failed before."""
        if self.timing.error:
            return
        torch.set_num_threads(self._threads)
        try:
            step(self)
        except RuntimeError as error:  # CUDA's OutOfMemoryError and the compiler's errors are such
            self.timing.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            self._work = None  # and with it the memory it holds

    def warm_up(self) -> None:
        """Build the work; find how many calls make a sample."""
        self._work = work = self._case.build()
        torch.set_num_threads(self._threads)  # building has set its own number
        self.timing.images = work.images
        if work.counted:
            self.timing.flops = count_flops(work.call)
        work.call()
        seconds = min(self._time(work, 1) for _ in range(WARM_UP_CALLS))
        self._calls = min(MAX_CALLS, math.ceil(MIN_SECONDS / max(seconds, 1e-9)))

    def sample(self) -> None:
        """One untimed call, for the case before has left caches and heap its own way; a sample."""
        assert self._work is not None
        self._work.call()
        self.timing.seconds.append(self._time(self._work, self._calls))

    def _time(self, work: Work, calls: int) -> float:
        """Seconds per call, waiting for the device at both ends only."""
        synchronize(self._device)
        started = time.perf_counter()
        for _ in range(calls):
            work.call()
        synchronize(self._device)
        return (time.perf_counter() - started) / calls


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs (2 per multiply-add) that the convolutions and matrix products of one call execute."""
    formulas = {
        aten.convolution_backward: _convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        call()
    return counter.get_total_flops()


class _NoModules(nullcontext):
    """In place of the counter's tracker, whose hooks the dual pass' tensors do not pass through."""

    parents = frozenset({"Global"})


def _convolution_backward(
    dy: Any, x: Any, weight: Any, bias: Any, *more: Any, **kwargs: Any
) -> int:
    """Each gradient costs what the forward pass does; torch 2.14's formula forgets the groups."""
    _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = more
    return sum(wanted[:2]) * conv_flop_count(x, weight, dy, transposed=transposed)


def _attention(q: Any, k: Any, v: Any, *more: Any, **kwargs: Any) -> int:
    """Two products of matrices; torch 2.14 has formulas for the GPU's kernels only."""
    return sdpa_flop_count(q, k, v)


def _attention_backward(dy: Any, q: Any, k: Any, v: Any, *more: Any, **kwargs: Any) -> int:
    """Five: q k^T anew, and one for each of dv, dP, dq, dk."""
    return sdpa_backward_flop_count(dy, q, k, v)


@contextmanager
def memory_limit(device: torch.device) -> Iterator[None]:
    """Make a CPU allocation beyond the free memory an exception: else the kernel kills somebody."""
    statm, meminfo = Path("/proc/self/statm"), Path("/proc/meminfo")
    if resource is None or device.type != "cpu" or not (statm.exists() and meminfo.exists()):
        yield
        return
    in_use = int(statm.read_text().split()[5]) * resource.getpagesize()
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [in_use + free, *(limit for limit in (soft, hard) if limit >= 0)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
