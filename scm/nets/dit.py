"""A small diffusion transformer (DiT, Peebles & Xie 2023) with the stabilisers of Lu & Song 2025.

An image is cut into patches, each patch a token. What differs from DiT: the double norm steers the
blocks in place of adaLN's scale, shift and gate; q and k are normalised; and the last layer of each
branch starts at zero, so that every block starts as the identity. First and last layer run in
float32, as the UNet's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scm.nets.embedding import TimeEmbedding
from scm.nets.layers import (
    Conditioning,
    Linear,
    SelfAttention,
    activations,
    check_inputs,
    modulation,
    zero,
)

LOWEST = 10_000  # the lowest frequency of a position is 1 / LOWEST (Peebles & Xie 2023)


def positions(height: int, width: int, channels: int) -> Tensor:
    """(height * width, channels): sines and cosines of a patch's row, then of its column.

    A quarter of the channels each, with the frequencies LOWEST^(-k/n), n = channels / 4.
    """
    n = channels // 4
    frequencies = LOWEST ** (-torch.arange(n, dtype=torch.float64) / n)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phases = (place.flatten()[:, None] * frequencies for place in (row, column))
    return torch.cat([wave for x in phases for wave in (x.sin(), x.cos())], dim=1).float()


class TokenNorm(nn.Module):
    """The modulated norm of layers.NORMS over the channels of tokens (B, L, C)."""

    def __init__(self, norm: str, width: int, embedding_width: int) -> None:
        super().__init__()
        self.modulation = modulation(norm, width, embedding_width)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.modulation(x.transpose(1, 2), e).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)); both norms modulated by e."""

    def __init__(
        self,
        width: int,
        embedding_width: int,
        *,
        norm: str,
        heads: int,
        expansion: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm0 = TokenNorm(norm, width, embedding_width)
        self.attention = SelfAttention(width, heads, qk_norm=True)
        self.norm1 = TokenNorm(norm, width, embedding_width)
        self.linear0 = Linear(width, expansion * width)
        self.dropout = nn.Dropout(dropout)
        self.linear1 = zero(Linear(expansion * width, width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = x + self.attention(self.norm0(x, e))
        h = F.gelu(self.linear0(self.norm1(x, e)), approximate="tanh")
        return x + self.linear1(self.dropout(h))


class DiT(nn.Module):
    """F(x, t) and w(t), by transformer blocks on patches of patch x patch pixels."""

    def __init__(
        self,
        *,
        image_shape: Sequence[int],  # (C, H, W)
        num_classes: int,  # 0: unconditional
        dropout: float,
        time_embedding: TimeEmbedding,  # (B,) -> (B, dim)
        patch: int,  # side of a patch in pixels
        width: int,  # channels of a token
        blocks: int,
        attention_heads: int,
        expansion: int,  # hidden features of a block's perceptron / width
        embedding_width: int,  # 0: the blocks get the time embedding itself
        second_time: bool,  # whether it is told s too
        norm: str,  # a key of layers.NORMS
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.image_shape = tuple(image_shape)
        self.patch = patch
        if width % 4:
            raise ValueError(f"model.width={width}: must be divisible by 4, for the positions")
        height, across = self._grid()
        pixels = self.image_shape[0] * patch**2
        self.conditioning = Conditioning(
            time_embedding=time_embedding,
            num_classes=num_classes,
            width=embedding_width,
            second_time=second_time,
        )
        e_width = self.conditioning.width
        self.register_buffer("positions", positions(height, across, width), persistent=False)
        self.stem = Linear(pixels, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                e_width,
                norm=norm,
                heads=attention_heads,
                expansion=expansion,
                dropout=dropout,
            )
            for _ in range(blocks)
        )
        self.norm = TokenNorm(norm, width, e_width)
        self.out = zero(Linear(width, pixels))

    def _grid(self) -> tuple[int, int]:
        """Patches from top to bottom, and from left to right."""
        if len(self.image_shape) != 3 or any(n % self.patch for n in self.image_shape[1:]):
            raise ValueError(
                f"images {self.image_shape}, model.patch={self.patch}: height and width must be "
                f"divisible by the patch; use another patch, or model=mlp for other data"
            )
        height, width = (n // self.patch for n in self.image_shape[1:])
        return height, width

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As UNet.forward: x (B, C, H, W), t, label, s (B,) -> F (B, C, H, W), w (B,)."""
        check_inputs(x, t, self.image_shape)
        e, w = self.conditioning(t, label, s)
        patches = F.pixel_unshuffle(x, self.patch)  # (B, C patch^2, height, width)
        tokens = self.stem(patches.flatten(2).transpose(1, 2)) + self.positions
        tokens = activations(tokens, self.compute_dtype)
        for block in self.blocks:
            tokens = block(tokens, e)
        tokens = self.out(self.norm(tokens.to(x.dtype), e))
        return F.pixel_shuffle(tokens.transpose(1, 2).reshape(patches.shape), self.patch), w
