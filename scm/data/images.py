"""Labelled images as uint8 tensors on one device, and the batch that belongs to a step."""

from typing import Any, Self

import torch
from torch import Tensor

from scm.core.errors import UserError
from scm.core.rng import generator
from scm.data.dataset import Batch, Dataset, batch_indices, to_float
from scm.data.readers import FileSource, IdxFolder

PIECE = 2**26  # pixels counted at once: a mapped set is not read whole
LARGEST_ON_DEVICE = 2**31  # bytes of images; more stay on the CPU, and batches are copied


class ImageDataset(Dataset):
    """A set of images in a tensor, in memory or mapped: what a new one hands to this constructor.

    With `horizontal_flips` each image of a batch is mirrored with probability 1/2, which follows
    from (seed, step) as the batch does.

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
        horizontal_flips: bool = False,
    ) -> None:
        channels, height, width = image_shape
        self.name = name
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        self.horizontal_flips = horizontal_flips
        for images, labels in (train, test):
            self._check(images, labels)
        self.train, self.train_labels = train
        self.test, self.test_labels = test
        self._sigma = _rms_about_zero(self.train)
        self._check_sigma_data(sigma_data_tolerance)

    @property
    def told_as(self) -> str:
        """How a command is told of this set after --data."""
        return self.name

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
        x0 = to_float(self._here(self.train[index]))
        if self.horizontal_flips:
            gen = generator(seed, "flips", step, device="cpu")  # the same on every device
            flip = (torch.rand(batch_size, generator=gen) < 0.5).to(x0.device)
            x0 = torch.where(flip[:, None, None, None], x0.flip(-1), x0)
        return Batch(x0, self._here(self.train_labels[index]))

    def indices(self, seed: int, step: int, batch_size: int) -> list[int]:
        return batch_indices(seed, step, batch_size, len(self.train), self.train.device).tolist()

    def training_set(self) -> Batch:
        """With horizontal flips each image twice, as training sees it.

        Raises UserError where the images are so many that they stay on the CPU.
        """
        if self.train.nbytes > LARGEST_ON_DEVICE:
            raise UserError(
                f"data.name={self.name}: {self.train.nbytes / 2**30:.0f} GiB of images are too "
                "many for a mean over all of them; use objective/velocity=pair"
            )
        x0, labels = to_float(self.train), self.train_labels
        if self.horizontal_flips:
            return Batch(torch.cat([x0, x0.flip(-1)]), labels.repeat(2))
        return Batch(x0, labels)

    def test_batch(self, n: int) -> Batch:
        if not 0 < n <= len(self.test):
            raise ValueError(f"test_batch({n}): {self.name} has {len(self.test)} test images")
        return Batch(to_float(self._here(self.test[:n])), self._here(self.test_labels[:n]))

    def to(self, device: torch.device | str) -> Self:
        """On `device`; a part of more than `LARGEST_ON_DEVICE` bytes stays, with its labels."""
        moved = super().to(device)
        for part in ("train", "test"):
            if getattr(self, part).nbytes > LARGEST_ON_DEVICE:
                for name in (part, f"{part}_labels"):
                    setattr(moved, name, getattr(self, name))
        return moved

    def _here(self, x: Tensor) -> Tensor:
        """On this set's device; to a GPU from pinned memory, so that nothing waits for the copy."""
        if x.device.type == self.device.type:
            return x
        return (x.pin_memory() if self.device.type == "cuda" else x).to(
            self.device, non_blocking=True
        )

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
        train_images: FileSource,
        train_labels: FileSource,
        test_images: FileSource,
        test_labels: FileSource,
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
    folder: IdxFolder, size: tuple[int, int], **parts: tuple[FileSource, FileSource, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Images uint8 (n, 1, H, W) and labels (n,) of each part: (images' file, labels' file, n)."""
    return {
        name: (folder.read(images, (n, *size)).unsqueeze(1), folder.read(labels, (n,)).long())
        for name, (images, labels, n) in parts.items()
    }


def _rms_about_zero(images: Tensor) -> float:
    """sqrt(E[(u / 255 - 0.5)^2]) from the histogram of u: exact, and no float copy of the set."""
    parts = images.flatten().split(PIECE)
    counts = torch.stack([torch.bincount(part, minlength=256) for part in parts]).sum(0).double()
    levels = torch.arange(256, dtype=torch.float64) / 255 - 0.5
    return float((counts @ levels**2 / counts.sum()).sqrt())
