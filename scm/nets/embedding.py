"""Time embeddings: noise level t (radians) to features, never below float32 (B,) -> (B, dim).

The tangent dF/dt passes through here: an embedding's derivative is proportional to its frequency,
which is why the paper prefers the positional one (Lu & Song 2025, sec. 4 and fig. 4).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def c_noise_t(t: Tensor, sigma_data: float) -> Tensor:
    """c_noise(t) = t  (Lu & Song 2025, sec. 4: a bounded derivative everywhere)."""
    return t


def c_noise_log(t: Tensor, sigma_data: float) -> Tensor:
    """c_noise(t) = log(sigma) / 4, sigma = sigma_data tan t  (EDM, table 1); infinite at t = 0."""
    return 0.25 * torch.log(sigma_data * torch.tan(t))


C_NOISE: dict[str, Callable[[Tensor, float], Tensor]] = {"t": c_noise_t, "log": c_noise_log}


class TimeEmbedding(nn.Module):
    """[cos(f_k c), sin(f_k c)] of c = c_noise(t), with the subclass's frequencies f (dim / 2,)."""

    frequencies: Tensor

    def __init__(self, *, frequencies: Tensor, c_noise: str, sigma_data: float) -> None:
        super().__init__()
        if c_noise not in C_NOISE:
            raise ValueError(f"c_noise={c_noise!r}: use one of {', '.join(C_NOISE)}")
        self.dim = 2 * len(frequencies)
        self.c_noise = C_NOISE[c_noise]
        self.sigma_data = sigma_data
        self.register_buffer("frequencies", frequencies)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) in radians -> (B, dim), in t's dtype or float32, whichever is wider."""
        t = t.to(torch.promote_types(t.dtype, torch.float32))
        c = self.c_noise(t, self.sigma_data)
        phase = c.unsqueeze(1) * self.frequencies.to(c.dtype)
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Positional(TimeEmbedding):
    """f_k = max_positions^(-k/n), n = dim / 2: EDM's and the transformer's sin/cos features."""

    def __init__(self, *, dim: int, max_positions: float, c_noise: str, sigma_data: float) -> None:
        n = _half(dim)
        frequencies = max_positions ** (-torch.arange(n, dtype=torch.float32) / n)
        super().__init__(frequencies=frequencies, c_noise=c_noise, sigma_data=sigma_data)


class Fourier(TimeEmbedding):
    """f_k = 2 pi scale N(0, 1): random Fourier features, drawn from torch's global generator."""

    def __init__(self, *, dim: int, scale: float, c_noise: str, sigma_data: float) -> None:
        frequencies = 2 * math.pi * scale * torch.randn(_half(dim))
        super().__init__(frequencies=frequencies, c_noise=c_noise, sigma_data=sigma_data)


def _half(dim: int) -> int:
    if dim < 2 or dim % 2:
        raise ValueError(f"time_embedding.dim={dim}: must be an even number >= 2")
    return dim // 2
