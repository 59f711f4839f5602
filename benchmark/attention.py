"""Attention with its tangent: time and memory of four ways to compute both.

`python -m benchmark.attention '{...}'` is a process that measures their memory at one length.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark import process
from benchmark.cases import FORMS
from benchmark.timing import Label, Work, memory_limit, synchronize
from scm.core import machine
from scm.method.tangent import Jvp

HEADS, CHANNELS = 2, 32  # of each head
BATCHES = {49: 128, 256: 16, 1024: 1, 4096: 1}  # tokens -> batch
LEAN = "lean"
PASSES = ("forward", "backward")  # value and tangent; and the value's gradient beside them


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


WAYS: dict[str, tuple[Jvp, Callable[..., Tensor]]] = {  # how it is derived, and what
    LEAN: (FORMS["dual"], F.scaled_dot_product_attention),
    "written out, dual pass": (FORMS["dual"], written_out),
    "written out, torch.func.jvp": (FORMS["naive"], written_out),
    "MATH kernel, torch.func.jvp": (FORMS["naive"], F.scaled_dot_product_attention),
}


@dataclass(frozen=True)
class Memory:
    """What one call of a way takes above what the process holds before, or why it took none."""

    above: int = 0  # bytes
    tangent_error: float = 0.0  # relative, against the lean way in float64
    error: str = ""


def labels(precision: str) -> list[Label]:
    """One per length and way."""
    return [
        Label("", precision, batch, case=way, tokens=tokens)
        for tokens, batch in BATCHES.items()
        for way in WAYS
    ]


def point(label: Label, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v (B, heads, tokens, d), each with a gradient to come, and their tangents."""
    generator = torch.Generator().manual_seed(0)
    assert label.tokens is not None
    shape = (label.batch_size, HEADS, label.tokens, CHANNELS)
    dtype = machine.find_dtype(label.precision, device)
    draws = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(6)]
    return [x.requires_grad_() for x in draws[:3]], draws[3:]


def work(label: Label, passes: str, device: torch.device) -> Work:
    """A call of the way `label.case`: without gradients, or with the value's."""
    (jvp, attend), (primals, tangents) = WAYS[label.case], point(label, device)
    cotangent = tangents[0]

    def forward() -> tuple[Tensor, Tensor]:
        return jvp(attend, tuple(primals), tuple(tangents))

    def backward() -> None:
        torch.autograd.grad(forward()[0], primals, cotangent)

    return Work(torch.no_grad()(forward) if passes == "forward" else backward)


def measure(labels: Sequence[Label], device: torch.device) -> list[Memory]:
    """The memory of each way and pass of one length, in a fresh process of this length."""
    request = {
        "labels": [asdict(label) for label in labels],
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    try:
        return [Memory(**found) for found in process.asked("benchmark.attention", request)]
    except process.Failed as failure:
        return [Memory(error=str(failure)) for _ in product(labels, PASSES)]


def calls(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The fresh process: its ways and passes, one after the other."""
    device = machine.find_device(given["device"])
    torch.set_num_threads(given["threads"])
    labels = [Label(**label) for label in given["labels"]]
    with memory_limit(device):
        return [asdict(call(label, passes, device)) for label, passes in product(labels, PASSES)]


def call(label: Label, passes: str, device: torch.device) -> Memory:
    """The memory of a second call in this process, above what it holds before.

    The first loads what torch loads late; what it has freed is given back to the system.
    """
    try:
        measured = work(label, passes, device)
        measured.call()
        base = machine.reset_peak_memory(device)
        made = measured.call()
        synchronize(device)
        above = machine.peak_memory_bytes(device) - base
        error = tangent_error(label, made[1], device) if passes == "forward" else 0.0
    except RuntimeError as failure:  # it does not fit
        return Memory(error=str(failure).splitlines()[0])
    return Memory(above, error)


def tangent_error(label: Label, tangent: Tensor, device: torch.device) -> float:
    """||tangent - exact|| / ||exact||, the exact one in float64 from the same rounded numbers."""
    jvp, attend = WAYS[LEAN]
    primals, tangents = ([x.detach().double() for x in xs] for xs in point(label, device))
    _, exact = jvp(attend, tuple(primals), tuple(tangents))
    return float((tangent.double() - exact).norm() / exact.norm())


if __name__ == "__main__":
    process.answer(calls)
