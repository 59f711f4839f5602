"""Labelled images as uint8 tensors on one device, and the batch that belongs to a step."""

from typing import Any

import torch
from torch import Tensor

from scm.core.errors import UserError
from scm.data.dataset import Batch, Dataset, batch_indices, to_float
from scm.data.readers import IdxFolder, IdxSource


class ImageDataset(Dataset):
    """A set of images that fits into memory: what a new one hands over to this constructor.

    Attributes:
        train, test: uint8 (N, C, H, W), with (C, H, W) as data.image_shape says.
        train_labels, test_labels: int64 (N,), each in 0 .. num_classes - 1.
        train_targets, test_targets: float32 (N, T), further numbers that a feature network learns
            to read, for a set that knows any.

    Raises:
        UserError: image_shape, num_classes or sigma_data do not fit the images.
    """

    train_targets: Tensor | None = None
    test_targets: Tensor | None = None

    def __init__(
        self,
        *,
        name: str,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int,
        sigma_data: float,
        sigma_data_tolerance: float,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
    ) -> None:
        channels, height, width = image_shape
        self.name = name
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        for images, labels in (train, test):
            self._check(images, labels)
        self.train, self.train_labels = train
        self.test, self.test_labels = test
        self._sigma = _rms_about_zero(self.train)
        self._check_sigma_data(sigma_data_tolerance)

    def _check(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != self.image_shape:
            raise UserError(
                f"data.image_shape={list(self.image_shape)}: {self.name} has {images.dtype} of "
                f"{list(images.shape[1:])}; it must be uint8 of that shape"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels {labels.dtype} {tuple(labels.shape)}: one int64 per image")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise UserError(
                f"data.num_classes={self.num_classes}: {self.name} has labels from "
                f"{int(labels.min())} to {int(labels.max())}; set data.num_classes to fit them"
            )

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        index = batch_indices(seed, step, batch_size, len(self.train), self.train.device)
        return Batch(to_float(self.train[index]), self.train_labels[index])

    def indices(self, seed: int, step: int, batch_size: int) -> list[int]:
        return batch_indices(seed, step, batch_size, len(self.train), self.train.device).tolist()

    def training_set(self) -> Batch:
        return Batch(to_float(self.train), self.train_labels)

    def test_batch(self, n: int) -> Batch:
        if not 0 < n <= len(self.test):
            raise ValueError(f"test_batch({n}): {self.name} has {len(self.test)} test images")
        return Batch(to_float(self.test[:n]), self.test_labels[:n])

    def measured_sigma_data(self) -> float:
        return self._sigma


class IdxImages(ImageDataset):
    """Images of one channel from four idx files (MNIST's format).

    Raises UserError where a file is missing or damaged, or as `ImageDataset` does.
    """

    def __init__(
        self,
        *,
        root: str,
        image_shape: tuple[int, int, int] | list[int],
        train_size: int,
        test_size: int,
        train_images: IdxSource,
        train_labels: IdxSource,
        test_images: IdxSource,
        test_labels: IdxSource,
        torchvision: str | None,
        download: bool,
        remedy: str,
        **described: Any,  # the other arguments of `ImageDataset`
    ) -> None:
        channels, height, width = image_shape
        if channels != 1:
            raise UserError(f"data.image_shape={list(image_shape)}: idx images have one channel")
        folder = IdxFolder(root=root, remedy=remedy)
        if download:
            folder.download(torchvision)
        parts = idx_parts(
            folder,
            (height, width),
            train=(train_images, train_labels, train_size),
            test=(test_images, test_labels, test_size),
        )
        super().__init__(
            image_shape=image_shape, train=parts["train"], test=parts["test"], **described
        )


def idx_parts(
    folder: IdxFolder, size: tuple[int, int], **parts: tuple[IdxSource, IdxSource, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 (n, 1, H, W) and labels (n,) of each part: (images' file, labels' file, n)."""
    return {
        name: (folder.read(images, (n, *size)).unsqueeze(1), folder.read(labels, (n,)).long())
        for name, (images, labels, n) in parts.items()
    }


def _rms_about_zero(images: Tensor) -> float:
    """sqrt(E[(u / 255 - 0.5)^2]) from the histogram of u: exact, and no float copy of the set."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255 - 0.5
    return float((counts @ levels**2 / counts.sum()).sqrt())
