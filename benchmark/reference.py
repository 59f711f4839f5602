"""What the device reaches at most: a matrix product, and the 3x3 convolutions that the nets use."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from benchmark.timing import Case, Label, Work
from scm.config.schema import Precision
from scm.core.machine import find_dtype

MODEL = "reference"  # stands where other rows have their model
MATRIX_PRODUCT, CONVOLUTION = "matrix product", "convolution 3x3"
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
BATCH = {"cpu": 128, "cuda": 4096}  # of the convolutions: enough to fill the device
CONVOLUTIONS = ((64, 14), (128, 7), (32, 14), (64, 7))  # (channels, side): unet and unet_small


def cases(precision: Precision, device: torch.device) -> Iterator[Case]:
    """One matrix product and a few convolutions; the fastest convolution is the peak."""
    dtype = find_dtype(precision.name, device)
    side, batch = SIDE.get(device.type, SIDE["cpu"]), BATCH.get(device.type, BATCH["cpu"])
    label = Label(MODEL, precision.name, batch, "")
    yield Case(
        replace(label, batch_size=1, case=f"{MATRIX_PRODUCT} {side}"),
        partial(matrix_product, side, dtype, device),
    )
    for channels, size in CONVOLUTIONS:
        yield Case(
            replace(label, case=f"{CONVOLUTION} {channels}@{size}x{size}"),
            partial(convolution, batch, channels, size, dtype, device),
        )


def matrix_product(side: int, dtype: torch.dtype, device: torch.device) -> Work:
    """A square matrix product: 2 side^3 FLOPs."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)

    def call() -> None:
        a @ b

    return Work(call, counted=True)


def convolution(
    batch: int, channels: int, size: int, dtype: torch.dtype, device: torch.device
) -> Work:
    """A 3x3 convolution without gradients, channels last: 18 B C^2 size^2 FLOPs."""
    last = torch.channels_last
    x = torch.randn(batch, channels, size, size, device=device).to(dtype, memory_format=last)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype, memory_format=last)

    def call() -> None:
        F.conv2d(x, weight, padding=1)

    return Work(call, counted=True)
