"""The networks' common parts: norms, time modulation, mixed-precision layers, the conditioning.

Weights stay in float32; Linear and Conv2d cast them to their input's dtype.  So a network chooses
its precision by casting activations, and what must be exact (time, w, first and last convolution)
simply stays in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scm.nets.embedding import TimeEmbedding

EPS = 1e-5  # added to every mean square before the square root
SHORT = 256  # keys up to which attention in 16 bits is written out on a CPU


def pixel_norm(a: Tensor, dim: int = 1) -> Tensor:
    """pnorm(a) = a / sqrt(mean_channels a^2 + eps)  (Lu & Song 2025, sec. 4); channels: dim."""
    return a * torch.rsqrt(a.square().mean(dim=dim, keepdim=True) + EPS)


def channel_norm(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels (dim 1) of each sample and place.

    A layer norm of the channels-last view: one fused kernel with no copy, forward, backward and
    tangent alike (a group norm in channels_last took three times as long on a CPU).
    """
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), eps=EPS).movedim(-1, 1)


class Linear(nn.Linear):
    """A linear layer in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv2d(nn.Conv2d):
    """A convolution in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient (B, C) in x's dtype, shaped to multiply x (B, C, ...)."""
    shape = coefficient.shape + (1,) * (x.ndim - 2)
    return coefficient.to(x.dtype).reshape(shape)


class DoubleNorm(nn.Module):
    """Adaptive double normalisation: y = norm(x) pnorm(s(t)) + pnorm(b(t)) (Lu & Song, sec. 4).

    s starts near 1 and b near a random vector of unit RMS, both moving little with t: pnorm has
    no derivative at 0, so a zero shift would start training where its tangent explodes.
    """

    def __init__(self, channels: int, embedding_width: int) -> None:
        super().__init__()
        self.affine = Linear(embedding_width, 2 * channels)
        with torch.no_grad():
            self.affine.weight.mul_(0.5)
            self.affine.bias[:channels] = 1.0
            self.affine.bias[channels:].normal_()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        s, b = self.affine(e).chunk(2, dim=1)
        s, b = _over(pixel_norm(s), x), _over(pixel_norm(b), x)
        return torch.addcmul(b, channel_norm(x), s)


class AdaGN(nn.Module):
    """Plain adaptive normalisation, y = norm(x) (1 + s(t)) + b(t): the unstable baseline."""

    def __init__(self, channels: int, embedding_width: int) -> None:
        super().__init__()
        self.affine = Linear(embedding_width, 2 * channels)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        s, b = self.affine(e).chunk(2, dim=1)
        return torch.addcmul(_over(b, x), channel_norm(x), _over(1 + s, x))


class SeedScale(nn.Module):
    """The starting scripts' layer, y = x pnorm(1 + MLP(t)): no norm of x and no shift."""

    def __init__(self, channels: int, embedding_width: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.mlp = nn.Sequential(
            Linear(embedding_width, hidden), nn.SiLU(), Linear(hidden, channels)
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return x * _over(pixel_norm(1 + self.mlp(e)), x)


NORMS: dict[str, type[nn.Module]] = {"double": DoubleNorm, "adagn": AdaGN, "seed": SeedScale}


def modulation(norm: str, channels: int, embedding_width: int) -> nn.Module:
    """The layer (x, e) -> y by which time enters a block; norm is a key of NORMS."""
    if norm not in NORMS:
        raise ValueError(f"model.norm={norm!r}: use one of {', '.join(NORMS)}")
    return NORMS[norm](channels, embedding_width)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each (B, heads, L, d).

    On a CPU in 16 bits the fused kernel's backward takes 3 to 10 times as long as that of attention
    written out, which is used there up to `SHORT` keys (docs/performance.md, "Attention").
    """
    if q.device.type == "cpu" and q.dtype.itemsize == 2 and k.shape[-2] <= SHORT:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v among tokens (B, L, C), in heads of d channels; starts at zero.

    qk_norm: q and k have unit RMS in each head, so that no logit exceeds sqrt(d).
    """

    def __init__(self, channels: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"model.attention_heads={heads}: must divide the width {channels}")
        self.heads = heads
        self.qk_norm = qk_norm
        self.qkv = Linear(channels, 3 * channels, bias=False)
        self.out = zero(Linear(channels, channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, d)
        if self.qk_norm:
            q, k = pixel_norm(q, dim=-1), pixel_norm(k, dim=-1)
        mixed = attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, channels))


class Conditioning(nn.Module):
    """(t, s, label) -> (e, w): the features that steer every block, and the learned log weight.

    width: of a two-layer perceptron on the time embedding; 0: the embedding itself, unlearned.
    second_time: whether the network is told the time s that its flow map leads to. It enters by a
    layer that starts at zero, as the classes do, so weights without s or without classes are the
    same network at every s and for every class.
    """

    def __init__(
        self, *, time_embedding: TimeEmbedding, num_classes: int, width: int, second_time: bool
    ) -> None:
        super().__init__()
        dim = time_embedding.dim
        self.width = width or dim
        self.num_classes = num_classes
        self.time_embedding = time_embedding
        perceptron = [Linear(dim, width), nn.SiLU(), Linear(width, width)] if width else []
        self.mlp = nn.Sequential(*perceptron)
        self.label = zero(nn.Embedding(num_classes, self.width)) if num_classes else None
        self.second = zero(Linear(dim, self.width)) if second_time else None
        self.log_weight = zero(Linear(self.width, 1))

    def forward(self, t: Tensor, label: Tensor | None, s: Tensor | None) -> tuple[Tensor, Tensor]:
        """t (B,) radians, label (B,) int64 or None -> e (B, width), w (B,), both in float32.

        s (B,) radians; None: 0, the data.
        """
        e = self.mlp(self.time_embedding(t))
        if self.second is not None:
            e = e + self.second(self.time_embedding(torch.zeros_like(t) if s is None else s))
        elif s is not None:
            raise ValueError("s given to a network of one time: set model.second_time=true")
        if self.label is None and label is not None:
            raise ValueError("label given to an unconditional network: set model.num_classes")
        if self.label is not None:
            if label is None:
                raise ValueError(f"label missing: model.num_classes={self.num_classes} needs one")
            e = e + self.label(label).to(e.dtype)
        e = F.silu(e)
        return e, self.log_weight(e).squeeze(1)


def check_inputs(x: Tensor, t: Tensor, image_shape: tuple[int, ...]) -> None:
    """ValueError unless x is (B, *image_shape) and t is (B,)."""
    if tuple(x.shape[1:]) != image_shape or tuple(t.shape) != tuple(x.shape[:1]):
        expected = ", ".join(str(n) for n in image_shape)
        raise ValueError(
            f"x {tuple(x.shape)} and t {tuple(t.shape)}: expected x (B, {expected}) and t (B,)"
        )


def activations(x: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """x in compute_dtype where that is a 16-bit type; float32 means: as precise as the input."""
    return x.to(compute_dtype) if compute_dtype.itemsize == 2 else x
