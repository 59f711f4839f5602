"""Which times training sees: draws of t, and of s for a flow map, from a generator alone."""

from typing import Protocol

import torch
from torch import Tensor

from scm.method import trigflow


class Times(Protocol):
    """Times in (0, pi/2), float32, on `device`, the generator's own."""

    def __call__(self, n: int, *, generator: torch.Generator, device: torch.device | str) -> Tensor:
        """n times t."""
        ...

    def second(self, t: Tensor, *, generator: torch.Generator) -> Tensor | None:
        """A time s <= t for each t; None: all lead to the data, s = 0."""
        ...


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

    def second(self, t: Tensor, *, generator: torch.Generator) -> Tensor | None:
        """The data."""
        return None


class AnyPair(LogNormal):
    """t as above, s uniform in [0, t] but for two shares: s = t and s = 0.

    On the diagonal s = t a flow map is the diffusion network and learns its own velocity (Boffi et
    al. 2025; MeanFlow's share of flow matching); at s = 0 it is the consistency function, which
    one-step samples need.
    """

    def __init__(
        self, *, diagonal: float, to_data: float, P_mean: float, P_std: float, sigma_data: float
    ) -> None:
        super().__init__(P_mean=P_mean, P_std=P_std, sigma_data=sigma_data)
        if diagonal + to_data > 1:
            raise ValueError(f"diagonal={diagonal:g} and to_data={to_data:g}: more than 1 together")
        self.diagonal, self.to_data = diagonal, to_data

    def second(self, t: Tensor, *, generator: torch.Generator) -> Tensor:
        """(n,) times s in [0, t]."""
        u, share = torch.rand(2, len(t), generator=generator, device=t.device)
        s = torch.where(share < self.diagonal, t, u * t)
        return torch.where(share > 1 - self.to_data, torch.zeros_like(t), s)


class TwoLogNormals(LogNormal):
    """t as above, s = min(t, one more draw of its own log-normal), but for a share s = t.

    MeanFlow's: its times on a straight line are logit-normal, which is log-normal in sigma (Geng et
    al. 2025).
    """

    def __init__(
        self,
        *,
        diagonal: float,
        second_P_mean: float,
        second_P_std: float,
        P_mean: float,
        P_std: float,
        sigma_data: float,
    ) -> None:
        super().__init__(P_mean=P_mean, P_std=P_std, sigma_data=sigma_data)
        self.diagonal = diagonal
        self.ends = LogNormal(P_mean=second_P_mean, P_std=second_P_std, sigma_data=sigma_data)

    def second(self, t: Tensor, *, generator: torch.Generator) -> Tensor:
        """(n,) times s in (0, t]."""
        s = torch.minimum(t, self.ends(len(t), generator=generator, device=t.device))
        share = torch.rand(len(t), generator=generator, device=t.device)
        return torch.where(share < self.diagonal, t, s)
