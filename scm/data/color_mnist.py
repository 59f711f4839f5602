"""MNIST in colour: each digit is drawn in an ink of its own on a paper of its own.

The colours of image i follow from (colour_seed, part, i) alone and all arithmetic is in whole
numbers, so the set is the same on every machine.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from scm.core.errors import UserError
from scm.core.rng import generator
from scm.data.dataset import to_float
from scm.data.images import ImageDataset, idx_parts
from scm.data.readers import FileSource, IdxFolder

PAIRS = 8  # colours drawn for each image, of which the first with enough contrast is taken
PIECE = 4096  # images coloured at once


class ColorMnist(ImageDataset):
    """Grey images of idx files, surrounded by `pad` pixels of paper and coloured.

    The label is the digit; the colours are no classes. `train_targets` and `test_targets` (N, 6)
    are ink and paper in [-0.5, 0.5], which a feature network learns to read beside the digit.

    Raises UserError as `IdxImages` does.
    """

    def __init__(
        self,
        *,
        root: str,
        image_shape: tuple[int, int, int] | list[int],
        pad: int,
        colour_seed: int,
        contrast: float,
        train_size: int,
        test_size: int,
        train_images: FileSource,
        train_labels: FileSource,
        test_images: FileSource,
        test_labels: FileSource,
        remedy: str,
        **described: Any,  # the other arguments of `ImageDataset`
    ) -> None:
        channels, height, width = image_shape
        if channels != 3 or min(height, width) <= 2 * pad:
            raise UserError(
                f"data.image_shape={list(image_shape)}: must have three channels and more than "
                f"2 data.pad = {2 * pad} pixels a side"
            )
        grey = (height - 2 * pad, width - 2 * pad)
        parts, targets = {}, {}
        for part, (images, labels) in idx_parts(
            IdxFolder(root=root, remedy=remedy),
            grey,
            train=(train_images, train_labels, train_size),
            test=(test_images, test_labels, test_size),
        ).items():
            ink, paper = colours(len(images), part, colour_seed, contrast)
            parts[part] = coloured(images, ink, paper, pad), labels
            targets[part] = to_float(torch.cat([ink, paper], 1))
        super().__init__(
            image_shape=image_shape, train=parts["train"], test=parts["test"], **described
        )
        self.train_targets, self.test_targets = targets["train"], targets["test"]


def colours(n: int, part: str, seed: int, contrast: float) -> tuple[Tensor, Tensor]:
    """Ink and paper of the first n images, each uint8 (n, 3).

    Both are uniform in the RGB cube, given that they are `contrast` apart (Euclidean, of 0..255 a
    channel): else many digits could not be seen. Where no pair is, which at 128 happens to 3 of
    60,000, the first stands. Each image takes the same number of draws, so the colours of the
    first n do not depend on n.
    """
    gen = generator(seed, f"colours-{part}", device="cpu")
    drawn = torch.randint(256, (n, PAIRS, 2, 3), generator=gen)
    squares = (drawn[:, :, 0] - drawn[:, :, 1]).square().sum(-1)
    first = (squares >= contrast**2).int().argmax(1)  # of equal ones argmax gives the first
    taken = drawn[torch.arange(n), first].to(torch.uint8)
    return taken[:, 0], taken[:, 1]


def coloured(grey: Tensor, ink: Tensor, paper: Tensor, pad: int) -> Tensor:
    """round((u ink + (255 - u) paper) / 255) per channel, for grey u (N, 1, H, W) on 0.

    Returns uint8 (N, 3, H + 2 pad, W + 2 pad).
    """
    made = []
    for some in torch.arange(len(grey)).split(PIECE):
        u = padded(grey[some], [pad] * 4).int()
        a, b = (colour[some, :, None, None].int() for colour in (ink, paper))
        made.append(((u * a + (255 - u) * b + 127) // 255).to(torch.uint8))
    return torch.cat(made)
