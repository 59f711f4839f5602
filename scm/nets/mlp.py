"""A residual multilayer perceptron, for the one-dimensional toy (any image shape, flattened)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scm.nets.embedding import TimeEmbedding
from scm.nets.layers import (
    Conditioning,
    Linear,
    activations,
    channel_norm,
    check_inputs,
    modulation,
    zero,
)


class Block(nn.Module):
    """x + linear(silu(modulated norm(linear(silu(norm(x)))))), the UNet's block without space."""

    def __init__(self, width: int, embedding_width: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.linear0 = Linear(width, width)
        self.modulation = modulation(norm, width, embedding_width)
        self.dropout = nn.Dropout(dropout)
        self.linear1 = zero(Linear(width, width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.linear0(F.silu(channel_norm(x)))
        return x + self.linear1(self.dropout(F.silu(self.modulation(h, e))))


class MLP(nn.Module):
    """F(x, t) and w(t) of a flattened x."""

    def __init__(
        self,
        *,
        image_shape: Sequence[int],  # (C, H, W)
        num_classes: int,  # 0: unconditional
        dropout: float,
        time_embedding: TimeEmbedding,  # (B,) -> (B, dim)
        width: int,
        blocks: int,
        embedding_width: int,  # 0: the blocks get the time embedding itself
        second_time: bool,  # whether it is told s too
        norm: str,  # a key of layers.NORMS
    ) -> None:
        super().__init__()
        self.compute_dtype = torch.float32
        self.image_shape = tuple(image_shape)
        pixels = math.prod(image_shape)
        self.conditioning = Conditioning(
            time_embedding=time_embedding,
            num_classes=num_classes,
            width=embedding_width,
            second_time=second_time,
        )
        self.stem = Linear(pixels, width)
        self.blocks = nn.ModuleList(
            Block(width, self.conditioning.width, norm, dropout) for _ in range(blocks)
        )
        self.out = zero(Linear(width, pixels))

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As UNet.forward: x (B, C, H, W), t, label, s (B,) -> F (B, C, H, W), w (B,)."""
        check_inputs(x, t, self.image_shape)
        e, w = self.conditioning(t, label, s)
        h = activations(self.stem(x.flatten(1)), self.compute_dtype)
        for block in self.blocks:
            h = block(h, e)
        h = self.out(F.silu(h).to(x.dtype))
        return h.reshape(x.shape), w
