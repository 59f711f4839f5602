"""How cost should grow: what is made larger, in a step and in a data set, and the exponents."""

import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmark.timing import Label
from scm.data.images import ImageDataset

WRITTEN = 512  # images in a set that a step is timed on


@dataclass(frozen=True)
class Axis:
    """Something that is made larger, and how cost should then grow: an exponent, and where."""

    values: tuple[int, ...]
    seconds: str
    bytes: str


BATCH, WIDTH, SIDE, IMAGES = "batch", "width", "image side", "images in the set"
AXES = {
    BATCH: Axis((8, 16, 32, 64, 128), "1", "1"),
    WIDTH: Axis((16, 32, 64, 128), "2 where wide", "1 (activations) to 2 (weights)"),
    SIDE: Axis((28, 32, 64), "2", "2"),
    IMAGES: Axis((10_000, 100_000, 1_000_000), "0", "1"),
}
STEP, DRAW, ORDER = "sct dual", "batch", "first batch of an epoch"
EXPECTED = {ORDER: "1"}  # seconds of a case, where they are not those of its axis


def overrides(label: Label, folder: Path) -> list[str]:
    """What a step at this place of its axis is made of, beside its batch size."""
    if label.grows == WIDTH:
        return [
            f"model.widths=[{label.at},{2 * label.at}]",
            f"model.embedding_width={4 * label.at}",
        ]
    return _written(folder, label.at) if label.grows == SIDE else []


def _written(folder: Path, side: int) -> list[str]:
    """Overrides that read images of this side, black and white at random, from files made here."""
    root = folder / f"side{side}"
    changes = [f"data.root={root}", f"data.image_shape=[1,{side},{side}]"]
    changes += [f"data.{part}_size={WRITTEN}" for part in ("train", "test")]
    root.mkdir(exist_ok=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        images, labels = _random(WRITTEN, side)
        for kind, content in (("images", images.squeeze(1)), ("labels", labels.to(torch.uint8))):
            rank = content.ndim
            header = struct.pack(f">HBB{rank}I", 0, 8, rank, *content.shape)
            file = root / f"{name}-{kind}-idx{rank}-ubyte"
            file.write_bytes(header + content.numpy().tobytes())
            changes.append(f"data.{part}_{kind}.sha256=null")
    return changes


def _random(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of black and white pixels, whose sigma_data is 0.5, and their labels."""
    gen = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (count, 1, side, side), dtype=torch.uint8, generator=gen)
    return images.mul_(255), torch.randint(0, 10, (count,), generator=gen)


def dataset(count: int) -> ImageDataset:
    """So many random images of 28x28."""
    return ImageDataset(
        name="random",
        image_shape=(1, 28, 28),
        num_classes=10,
        sigma_data=0.5,
        sigma_data_tolerance=0.1,
        train=_random(count, 28),
        test=_random(1, 28),
    )
