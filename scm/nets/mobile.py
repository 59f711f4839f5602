"""The starting scripts' network, to compare with: encoder and decoder of ShuffleNet-v2 units.

Depthwise 3x3 and pointwise convolutions on two halves of the channels, which are then shuffled
(Ma et al. 2018, arXiv 1807.11164).  As in the starting scripts, time scales the features by
pnorm(1 + MLP(t)) once per resolution; group norm stands in for its batch norm.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scm.nets.embedding import TimeEmbedding
from scm.nets.layers import Conditioning, Conv2d, activations, check_inputs, modulation, zero


class Norm(nn.GroupNorm):
    """Group norm in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class Unit(nn.Module):
    """One ShuffleNet unit; stride 2 halves the resolution, and both branches see all channels."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, stride: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.split = stride == 1
        source = channels_in // 2 if self.split else channels_in
        inner = source if self.split else half

        def pointwise(a: int, b: int) -> list[nn.Module]:
            return [Conv2d(a, b, 1), Norm(groups, b), nn.SiLU()]

        def depthwise(a: int) -> list[nn.Module]:
            return [Conv2d(a, a, 3, stride=stride, padding=1, groups=a), Norm(groups, a)]

        self.short = nn.Sequential(*depthwise(source), *pointwise(source, half))
        self.long = nn.Sequential(
            *pointwise(source, inner), *depthwise(inner), *pointwise(inner, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1) if self.split else (x, x)
        h = torch.stack([self.short(a), self.long(b)], dim=2)  # interleaves the two branches
        return h.flatten(1, 2)


def units(channels_in: int, channels_out: int, groups: int, count: int) -> nn.Sequential:
    """count units of stride 1; the last one changes the number of channels."""
    widths = [channels_in] * count + [channels_out]
    return nn.Sequential(*(Unit(a, b, groups, stride=1) for a, b in pairwise(widths)))


class Encoder(nn.Module):
    """Four units, time, one step down: (B, c_out, H/2, W/2), and the skip (B, c_out/2, H, W)."""

    def __init__(self, c_in: int, c_out: int, groups: int, norm: str, dim: int) -> None:
        super().__init__()
        self.units = units(c_in, c_out // 2, groups, count=4)
        self.modulation = modulation(norm, c_out // 2, dim)
        self.down = Unit(c_out // 2, c_out, groups, stride=2)

    def forward(self, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.units(x)
        return self.down(F.silu(self.modulation(skip, e))), skip


class Decoder(nn.Module):
    """One step up, the skip joined, four units, time, one more unit."""

    def __init__(self, c_in: int, c_out: int, groups: int, norm: str, dim: int) -> None:
        super().__init__()
        self.units = units(c_in, c_in // 2, groups, count=4)
        self.modulation = modulation(norm, c_in // 2, dim)
        self.last = Unit(c_in // 2, c_out // 2, groups, stride=1)

    def forward(self, x: Tensor, skip: Tensor, e: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        h = self.units(torch.cat([x, skip], dim=1))
        return self.last(F.silu(self.modulation(h, e)))


class Mobile(nn.Module):
    """F(x, t) and w(t).  multipliers: widths after the first resolution, in units of width."""

    def __init__(
        self,
        *,
        image_shape: Sequence[int],  # (C, H, W)
        num_classes: int,  # 0: unconditional
        dropout: float,  # before the last convolution (the starting scripts have none)
        time_embedding: TimeEmbedding,  # (B,) -> (B, dim)
        width: int,
        multipliers: Sequence[int],
        groups: int,
        embedding_width: int,  # 0: the blocks get the time embedding itself
        second_time: bool,  # whether it is told s too
        norm: str,  # a key of layers.NORMS
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.image_shape = tuple(image_shape)
        factor = 2 ** len(multipliers)
        if len(self.image_shape) != 3 or any(n % factor for n in self.image_shape[1:]):
            raise ValueError(
                f"images {self.image_shape}: unet_mobile needs height and width divisible by "
                f"{factor}; use model=mlp for other data"
            )
        widths = [width, *(width * m for m in multipliers)]
        steps = list(pairwise(widths))
        channels = self.image_shape[0]
        self.conditioning = Conditioning(
            time_embedding=time_embedding,
            num_classes=num_classes,
            width=embedding_width,
            second_time=second_time,
        )
        common = (groups, norm, self.conditioning.width)
        self.stem = nn.Sequential(
            Conv2d(channels, width, 3, padding=1), Norm(groups, width), nn.SiLU()
        )
        self.encoder = nn.ModuleList(Encoder(a, b, *common) for a, b in steps)
        self.middle = units(widths[-1], widths[-1] // 2, groups, count=3)
        self.decoder = nn.ModuleList(Decoder(b, a, *common) for a, b in reversed(steps))
        self.dropout = nn.Dropout(dropout)
        self.out = zero(Conv2d(width // 2, channels, 1))

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As UNet.forward: x (B, C, H, W), t, label, s (B,) -> F (B, C, H, W), w (B,)."""
        check_inputs(x, t, self.image_shape)
        e, w = self.conditioning(t, label, s)
        h = activations(self.stem(x), self.compute_dtype)
        skips = []
        for encoder in self.encoder:
            h, skip = encoder(h, e)
            skips.append(skip)
        h = self.middle(h)
        for decoder, skip in zip(self.decoder, reversed(skips), strict=True):
            h = decoder(h, skip, e)
        return self.out(self.dropout(h).to(x.dtype)), w
