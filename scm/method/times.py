"""Which noise levels training sees: draws of t, each (n,) in radians, from a generator alone."""

from typing import Protocol

import torch
from torch import Tensor

from scm.method import trigflow


class Times(Protocol):
    """n times in (0, pi/2), float32, on `device`, the generator's own."""

    def __call__(
        self, n: int, *, generator: torch.Generator, device: torch.device | str
    ) -> Tensor: ...


class LogNormal:
    """t = arctan(e^tau / sigma_data), tau ~ N(P_mean, P_std^2)  (Lu & Song 2025, sec. 3).

    tau = ln(sigma).
    """

    def __init__(self, *, P_mean: float, P_std: float, sigma_data: float) -> None:
        self.P_mean, self.P_std = P_mean, P_std
        self.sigma_data = sigma_data

    def __call__(self, n: int, *, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """(n,) times."""
        tau = self.P_mean + self.P_std * torch.randn(n, generator=generator, device=device)
        return trigflow.time_from_sigma(torch.exp(tau), self.sigma_data)
