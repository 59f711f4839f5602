"""The contract of a data set, and which samples belong to a step.

Step k's batch follows from (seed, k, batch_size) alone, so that a run can go on as if it had never
stopped. A new set of images inherits from `scm.data.images.ImageDataset`, a set of another kind
from `Dataset`.
"""

import copy
import functools
import logging
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor

from scm.core.errors import UserError
from scm.core.rng import generator
from scm.data.mixture import Mixture

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Clean samples x0 (B, C, H, W) float32 and their labels (B,) int64, on the set's device."""

    x0: Tensor
    labels: Tensor


def to_float(images: Tensor) -> Tensor:
    """x = u / 255 - 0.5: uint8 (N, C, H, W) -> float32 in [-0.5, 0.5]."""
    return images.float().div_(255).sub_(0.5)


def to_uint8(x: Tensor) -> Tensor:
    """u = round(255 (x + 0.5)), clipped to 0..255: the inverse of `to_float`, for any float x."""
    return x.float().add(0.5).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


class Dataset(ABC):
    """What training and evaluation ask of a data set.

    Samples are float32 (C, H, W) whose root mean square about zero is about `sigma_data`; images
    are in [-0.5, 0.5]. Labels are 0 .. num_classes - 1. The class is made from the `data` group of
    the config, whose keys are its arguments; it calls `_check_sigma_data` when it has its samples.
    """

    name: str  # also of its feature network, pretrained/features_NAME.safetensors
    image_shape: tuple[int, int, int]  # (channels, height, width)
    num_classes: int
    sigma_data: float  # the configured one, which the whole method uses
    device = torch.device("cpu")
    exact: Mixture | None = None  # the closed forms of an unconditional model, where there are any

    @abstractmethod
    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the training batch of step 0, 1, ...; a pure function of its arguments."""

    def indices(self, seed: int, step: int, batch_size: int) -> list[int] | None:
        """Return which samples `batch` gives, None for a set that draws without end."""
        return None

    def training_set(self) -> Batch:
        """Return all training samples. Raises UserError for a set that draws without end."""
        raise UserError(
            f"data.name={self.name}: draws its samples without end, so there is no mean over them; "
            "use objective/velocity=pair"
        )

    @abstractmethod
    def test_batch(self, n: int) -> Batch:
        """Return n held-out samples, always the same ones."""

    @abstractmethod
    def measured_sigma_data(self) -> float:
        """Return the training set's root mean square about zero."""

    def to(self, device: torch.device | str) -> Self:
        """Return this data set with its tensors, and so its batches, on `device`."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def _check_sigma_data(self, tolerance: float) -> None:
        measured = self.measured_sigma_data()
        log.info("%s: sigma_data %.4g, measured %.4g", self.name, self.sigma_data, measured)
        if abs(measured - self.sigma_data) > tolerance * self.sigma_data:
            raise UserError(
                f"data.sigma_data={self.sigma_data:g}: {self.name} measures {measured:.4g} (root "
                f"mean square about zero), more than {tolerance:.0%} away; set "
                f"data.sigma_data={measured:.3g}"
            )


@functools.lru_cache(maxsize=2)  # a batch sees at most two epochs unless the set is tiny
def epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    """Return the order of `size` samples in this epoch, (size,) int64; callers must not write it.

    Drawn on the CPU, so that every device sees the same order.
    """
    order = torch.randperm(size, generator=generator(seed, "order", epoch, device="cpu"))
    return order.to(device)


def batch_indices(seed: int, step: int, batch_size: int, size: int, device: torch.device) -> Tensor:
    """Return step's sample indices (B,): numbers k B .. k B + B - 1 of the epochs laid end to end.

    Each sample comes exactly once per epoch, also where a batch crosses the border between two.
    """
    if step < 0 or batch_size < 1:
        raise ValueError(f"step={step}, batch_size={batch_size}: need step >= 0, batch_size >= 1")
    begin, end = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(begin // size, (end - 1) // size + 1):  # views: no order is copied whole
        order, zero = epoch_order(seed, epoch, size, device), epoch * size
        parts.append(order[max(0, begin - zero) : end - zero])
    return torch.cat(parts)
