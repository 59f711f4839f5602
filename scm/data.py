"""Data sets as tensors on the device, and the batch that belongs to a step.

Step k's batch follows from (seed, k, batch_size) alone. Knows nothing of noise, times or networks.
"""

import copy
import functools
import logging
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor

from scm.errors import UserError
from scm.exact import Mixture
from scm.idx import IdxFolder, IdxSource
from scm.rng import generator

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
    """What training and evaluation ask of a data set."""

    name: str
    image_shape: tuple[int, int, int]  # (channels, height, width)
    num_classes: int
    sigma_data: float  # the configured one, which the whole method uses
    exact: Mixture | None = None  # the closed forms of an unconditional model, where there are any

    @abstractmethod
    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return the training batch of step 0, 1, ...; a pure function of its arguments."""

    def indices(self, seed: int, step: int, batch_size: int) -> list[int] | None:
        """Return which samples `batch` gives, None for a set that draws without end."""
        return None

    @abstractmethod
    def test_batch(self, n: int) -> Batch:
        """Return n held-out samples, always the same ones."""

    @abstractmethod
    def measured_sigma_data(self) -> float:
        """Return the training set's root mean square about zero."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Return this data set with its tensors on `device`."""

    def _check_sigma_data(self, tolerance: float) -> None:
        measured = self.measured_sigma_data()
        log.info(
            "%s: sigma_data %.4g configured, %.4g measured",
            self.name,
            self.sigma_data,
            measured,
        )
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
    position, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    while position < stop:
        epoch, offset = divmod(position, size)
        count = min(size - offset, stop - position)
        parts.append(epoch_order(seed, epoch, size, device)[offset : offset + count])
        position += count
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class IdxImages(Dataset):
    """Labelled images from four idx files (MNIST's format), whole and as uint8 on the device.

    Attributes:
        train, test: uint8 (N, C, H, W).
        train_labels, test_labels: int64 (N,).

    Raises:
        UserError: a file is missing or damaged, or sigma_data does not fit the images.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int,
        train_size: int,
        test_size: int,
        train_images: IdxSource,
        train_labels: IdxSource,
        test_images: IdxSource,
        test_labels: IdxSource,
        sigma_data: float,
        sigma_data_tolerance: float,
        torchvision: str | None,
        download: bool,
        remedy: str,
    ) -> None:
        channels, height, width = image_shape
        self.name = name
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        folder = IdxFolder(root=root, remedy=remedy)
        if download:
            folder.download(torchvision)
        self.train = folder.images(train_images, (train_size, *self.image_shape))
        self.train_labels = folder.labels(train_labels, train_size, num_classes)
        self.test = folder.images(test_images, (test_size, *self.image_shape))
        self.test_labels = folder.labels(test_labels, test_size, num_classes)
        self._sigma = _rms_about_zero(self.train)
        self._check_sigma_data(sigma_data_tolerance)

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        train = self.train
        index = batch_indices(seed, step, batch_size, len(train), train.device)
        return Batch(to_float(train[index]), self.train_labels[index])

    def indices(self, seed: int, step: int, batch_size: int) -> list[int]:
        return batch_indices(seed, step, batch_size, len(self.train), self.train.device).tolist()

    def test_batch(self, n: int) -> Batch:
        if not 0 < n <= len(self.test):
            raise ValueError(f"test_batch({n}): {self.name} has {len(self.test)} test images")
        return Batch(to_float(self.test[:n]), self.test_labels[:n])

    def measured_sigma_data(self) -> float:
        return self._sigma

    def to(self, device: torch.device | str) -> Self:
        moved = copy.copy(self)
        moved.train, moved.train_labels = (
            self.train.to(device),
            self.train_labels.to(device),
        )
        moved.test, moved.test_labels = (
            self.test.to(device),
            self.test_labels.to(device),
        )
        return moved


def _rms_about_zero(images: Tensor) -> float:
    """sqrt(E[(u / 255 - 0.5)^2]) from the histogram of u: exact, and no float copy of the set."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255 - 0.5
    return float((counts @ levels**2 / counts.sum()).sqrt())


class Bimodal(Dataset):
    """One-dimensional toy: Gaussians at -mean and +mean with equal weights, as (1, 1, 1) "images".

    Both are scaled by sigma_data / sqrt(mean^2 + std^2), which makes the mixture's standard
    deviation sigma_data. The label is the component, 0 (left) or 1. Values are not confined to
    [-0.5, 0.5].

    Attributes:
        scaled_means: the two components' means after scaling.
        scaled_std: the standard deviation of each after scaling.
        exact: denoiser, ODE and consistency function of this distribution.
    """

    exact: Mixture

    def __init__(
        self,
        *,
        name: str,
        image_shape: tuple[int, int, int] | list[int],
        mean: float,
        std: float,
        sigma_data: float,
        sigma_data_tolerance: float,
    ) -> None:
        if not (mean >= 0 and std > 0 and sigma_data > 0):
            raise UserError(
                f"data.mean={mean:g} data.std={std:g} data.sigma_data={sigma_data:g}: "
                "need mean >= 0, std > 0 and sigma_data > 0"
            )
        if tuple(image_shape) != (1, 1, 1):
            raise UserError(
                f"data.image_shape={list(image_shape)}: the toy's numbers are [1, 1, 1]"
            )
        self.name = name
        self.image_shape = (1, 1, 1)
        self.num_classes = 2
        self.sigma_data = sigma_data
        scale = sigma_data / (mean**2 + std**2) ** 0.5
        self.scaled_means = (-mean * scale, mean * scale)
        self.scaled_std = std * scale
        self.exact = Mixture(mean=mean * scale, std=std * scale, sigma_data=sigma_data)
        self.device = torch.device("cpu")
        self._check_sigma_data(sigma_data_tolerance)

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        return self._draw(generator(seed, "bimodal", step, device="cpu"), batch_size)

    def test_batch(self, n: int) -> Batch:
        return self._draw(generator(0, "bimodal-test", device="cpu"), n)

    def measured_sigma_data(self) -> float:
        x0, _ = self._draw(generator(0, "bimodal-sigma", device="cpu"), 2**16)
        return float(x0.double().square().mean().sqrt())

    def to(self, device: torch.device | str) -> Self:
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def _draw(self, gen: torch.Generator, n: int) -> Batch:
        """x0 = +-m + s e: drawn on the CPU, so that every device sees the same numbers."""
        labels = torch.randint(2, (n,), generator=gen)
        noise = torch.randn(n, generator=gen)
        x0 = torch.tensor(self.scaled_means)[labels] + self.scaled_std * noise
        return Batch(x0.reshape(n, 1, 1, 1).to(self.device), labels.to(self.device))
