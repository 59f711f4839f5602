"""The default network: a small UNet whose work is done at 14x14 and 7x7, where it is cheap.

Pixel-unshuffle replaces the first resolution, additions replace concatenating skips, and every
tensor stays channels-last.  First and last convolution run in float32: at low noise x_t holds
the noise in its last bits, which bfloat16 would round away.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scm.nets.embedding import TimeEmbedding
from scm.nets.layers import (
    Conditioning,
    Conv2d,
    SelfAttention,
    activations,
    channel_norm,
    check_inputs,
    modulation,
    zero,
)


class Attention(SelfAttention):
    """x + attention(norm(x)) among the places of an image."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = channel_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(tokens).transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """x + conv(silu(modulated norm(conv(silu(norm(x)))))), then attention if it has heads.

    The second convolution starts at zero, so a new block is the identity.
    """

    def __init__(
        self, channels: int, embedding_width: int, norm: str, dropout: float, heads: int
    ) -> None:
        super().__init__()
        self.conv0 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.modulation = modulation(norm, channels, embedding_width)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = zero(Conv2d(channels, channels, 3, padding=1, bias=False))
        self.attention = Attention(channels, heads) if heads else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv0(F.silu(channel_norm(x)))
        h = self.conv1(self.dropout(F.silu(self.modulation(h, e))))
        return self.attention(x + h)


class Stack(nn.ModuleList):
    """Blocks, one after the other."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for block in self:
            x = block(x, e)
        return x


class Up(nn.Module):
    """Twice the resolution: a 1x1 convolution to 4 x channels, each group of 4 becoming 2x2."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels_in, 4 * channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).movedim(1, -1)
        batch, height, width, _ = h.shape
        h = h.reshape(batch, height, width, 2, 2, -1).transpose(2, 3)
        return h.reshape(batch, 2 * height, 2 * width, -1).movedim(-1, 1)


class UNet(nn.Module):
    """F(x, t) and w(t).  widths and blocks: one entry per resolution, finest first.

    blocks[i] residual blocks at resolution i on the way down and again on the way up; at the last
    resolution once.  attention_heads > 0 adds self-attention after each block of the last one.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],  # (C, H, W)
        num_classes: int,  # 0: unconditional
        dropout: float,
        time_embedding: TimeEmbedding,  # (B,) -> (B, dim)
        patch: int,  # side of the pixel-unshuffle before the first convolution
        widths: Sequence[int],
        blocks: Sequence[int],
        attention_heads: int,
        embedding_width: int,  # 0: the blocks get the time embedding itself
        second_time: bool,  # whether it is told s too
        norm: str,  # a key of layers.NORMS
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.image_shape = tuple(image_shape)
        self.patch = patch
        if len(widths) != len(blocks):
            raise ValueError(f"model.widths={list(widths)}, model.blocks={list(blocks)}: one each")
        self._check_resolution(patch * 2 ** (len(widths) - 1))

        def stack(level: int, heads: int = 0) -> Stack:
            return Stack(
                Block(widths[level], self.conditioning.width, norm, dropout, heads)
                for _ in range(blocks[level])
            )

        pixels = self.image_shape[0] * patch**2
        steps = list(pairwise(widths))  # (fine, coarse)
        self.conditioning = Conditioning(
            time_embedding=time_embedding,
            num_classes=num_classes,
            width=embedding_width,
            second_time=second_time,
        )
        self.stem = Conv2d(pixels, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(stack(level) for level in range(len(steps)))
        self.down = nn.ModuleList(
            Conv2d(fine, coarse, 3, stride=2, padding=1, bias=False) for fine, coarse in steps
        )
        self.middle = stack(-1, attention_heads)
        self.up = nn.ModuleList(Up(coarse, fine) for fine, coarse in steps)
        self.decoder = nn.ModuleList(stack(level) for level in range(len(steps)))
        self.out = zero(Conv2d(widths[0], pixels, 3, padding=1))

    def _check_resolution(self, factor: int) -> None:
        if len(self.image_shape) != 3 or any(n % factor for n in self.image_shape[1:]):
            raise ValueError(
                f"images {self.image_shape}: this UNet needs height and width divisible by "
                f"{factor}; use model=mlp for other data"
            )

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) = x_t / sigma_data, t (B,) radians, label (B,) -> F (B, C, H, W), w (B,).

        s (B,) radians, of a network with a second time: where its flow map leads; None: 0.

        ValueError: wrong shapes, or a label missing or given in vain.
        """
        check_inputs(x, t, self.image_shape)
        e, w = self.conditioning(t, label, s)
        h = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = activations(self.stem(h), self.compute_dtype)
        skips = []
        for stack, down in zip(self.encoder, self.down, strict=True):
            h = stack(h, e)
            skips.append(h)
            h = down(h)
        h = self.middle(h, e)
        for stack, up, skip in reversed(list(zip(self.decoder, self.up, skips, strict=True))):
            h = stack(up(h) + skip, e)
        h = self.out(F.silu(channel_norm(h)).to(x.dtype))
        return F.pixel_shuffle(h, self.patch).contiguous(), w
