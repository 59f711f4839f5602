"""The feature networks, in whose features the quality metrics compare images.

Small classifiers; what their last layer looks at are the features. A number computed from them
means something only beside the network's hash, so both travel together. The second network is of
another architecture and gives one metric alone, by which no method is tuned.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scm.config.metrics import feature_weights
from scm.core.errors import UserError
from scm.core.files import reading
from scm.data.dataset import to_float
from scm.data.images import ImageDataset
from scm.storage import store

BATCH = 500  # images at once


class Seen(NamedTuple):
    """What the network sees in N images: features (N, D) and class probabilities (N, K)."""

    features: Tensor
    probabilities: Tensor


class FeatureNet(nn.Module):
    """A classifier: images to features to classes, and to `targets` further numbers if there are.

    A classifier of shapes alone would be blind to colours; numbers that a linear layer is to read
    from the features too are what it cannot be blind to.
    """

    layer: str  # what the features are, in words
    layers: nn.Module
    classes: nn.Linear
    targets: nn.Linear | None

    def read_by(self, features: int, num_classes: int, targets: int) -> None:
        """Make the linear layers that read so many features."""
        self.classes = nn.Linear(features, num_classes)
        self.targets = nn.Linear(features, targets) if targets else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of images (B, C, H, W) in [-0.5, 0.5]."""
        features = self.layers(x)
        return features, self.classes(features)


class Strided(FeatureNet):
    """Four convolutions, two of stride 2, a linear layer that gives the features, a linear layer.

    Args:
        image_shape: (C, H, W), H and W divisible by 4.
        widths: channels of the four convolutions.
        features: D.
    """

    layer = "ReLU after the first linear layer"

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int,
        widths: list[int],
        features: int,
        targets: int = 0,  # the shipped files of MNIST name none
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        a, b, c, d = widths
        self.layers = nn.Sequential(
            *_convolution(channels, a, size=5, stride=2),
            *_convolution(a, b, size=3, stride=1),
            *_convolution(b, c, size=3, stride=2),
            *_convolution(c, d, size=3, stride=1),
            nn.Flatten(),
            nn.Linear(d * (height // 4) * (width // 4), features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(),
        )
        self.read_by(features, num_classes, targets)


class Pooled(FeatureNet):
    """Residual blocks; the mean of each channel over the image is a feature (He et al. 2016).

    Args:
        image_shape: (C, H, W).
        widths: channels of the first convolution and of each block; every block but the last
            halves the image.
    """

    layer = "mean over the image after the last block"

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] | list[int],
        num_classes: int,
        widths: list[int],
        targets: int = 0,
    ) -> None:
        super().__init__()
        strides = [2] * (len(widths) - 2) + [1]
        blocks = [
            _Residual(a, b, stride)
            for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        ]
        self.layers = nn.Sequential(
            *_convolution(image_shape[0], widths[0], size=3, stride=1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.read_by(widths[-1], num_classes, targets)


class _Residual(nn.Module):
    def __init__(self, in_: int, out: int, stride: int) -> None:
        super().__init__()
        first, second = (
            _convolution(a, out, size=3, stride=step) for a, step in ((in_, stride), (out, 1))
        )
        self.branch = nn.Sequential(*first, *second[:-1])  # the last ReLU is after the sum
        self.skip = nn.Conv2d(in_, out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.skip(x))


ARCHITECTURES: dict[str, type[FeatureNet]] = {"strided": Strided, "pooled": Pooled}


def _convolution(in_: int, out: int, *, size: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_, out, size, stride=stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


@dataclass(frozen=True)
class FeatureNetwork:
    """A trained feature network, in eval mode, and what is known of it."""

    net: FeatureNet
    sha256: str  # of the weights, the same wherever they were trained alike
    facts: dict[str, Any]  # data, seed, accuracy, layer, command, network

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Seen:
        """See uint8 images (N, C, H, W); features float32 and probabilities, on the CPU."""
        device = next(self.net.parameters()).device
        features, probabilities = [], []
        for part in images.split(BATCH):
            h, logits = self.net(to_float(part.to(device)))
            features.append(h.cpu())
            probabilities.append(logits.softmax(1).cpu())
        return Seen(torch.cat(features), torch.cat(probabilities))


def train_command(data_name: str, *, second: bool = False) -> str:
    """The command that makes that file."""
    return f"python -m scm features --data {data_name}{' --second' * second}"


def lacking(dataset: ImageDataset) -> str | None:
    """Why there is no feature network for this set, and what to do; None where there is one."""
    if feature_weights(dataset.name).exists():
        return None
    if dataset.num_classes < 2:
        return (
            f"no quality metrics, since the images of {dataset.name} have no classes to tell apart"
        )
    command = train_command(dataset.told_as)
    return (
        f"there is no feature network for {dataset.name} yet, so no quality metrics; "
        f"make one with `{command}`"
    )


def load(path: Path, device: torch.device | str) -> FeatureNetwork:
    """Read and verify a feature network.

    Raises UserError, with the command that makes the weights, where they are missing or damaged.
    """
    name = path.stem.removeprefix("features_")
    if not path.exists():
        raise UserError(
            f"{path.name}: there is no feature network for {name} yet, so no quality metrics; "
            f"make one with `{train_command(name)}`"
        )
    weights, facts = store.read_weights(path)
    with reading(path, "a feature network of this project"):
        # the files of before have no architecture, there was but one
        net = ARCHITECTURES[facts.get("architecture", "strided")](**facts["network"])
        net.load_state_dict(weights)
    net.eval().requires_grad_(False)
    return FeatureNetwork(net.to(device), store.weights_digest(weights), facts)
