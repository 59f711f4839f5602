"""Closed forms to test against (float64): data where everything is known exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm.data.mixture import Mixture
from scm.method.trigflow import broadcast


class ExactNets:
    """The exact networks of data whose `velocity` and `consistency` are known."""

    def diffusion_net(self, x: Tensor, t: Tensor, label: Tensor | None = None):
        """(F, w) with sigma_data F = v*, as the exact diffusion model has it."""
        x_t = x * self.sigma_data
        return self.velocity(x_t, t) / self.sigma_data, torch.zeros_like(t)

    def consistency_net(self, x: Tensor, t: Tensor, label: Tensor | None = None):
        """(F, w) with F* = (cos t x_t - f*) / (sin t sd), as the exact consistency model has it."""
        x_t = x * self.sigma_data
        at = broadcast(t, x)
        F = (torch.cos(at) * x_t - self.consistency(x_t, t)) / (torch.sin(at) * self.sigma_data)
        return F, torch.zeros_like(t)


@dataclass(frozen=True)
class GaussianData(ExactNets):
    """x0 ~ N(0, s^2 I), noise std sd: x_t ~ N(0, V(t) I), V = s^2 cos^2 t + sd^2 sin^2 t."""

    s: float
    sigma_data: float

    def variance(self, t: Tensor) -> Tensor:
        """V(t)."""
        return self.s**2 * torch.cos(t) ** 2 + self.sigma_data**2 * torch.sin(t) ** 2

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v*(x, t) = x V'(t) / (2 V(t)), V' = 2 sin t cos t (sd^2 - s^2)."""
        t = broadcast(t, x)
        slope = 2 * torch.sin(t) * torch.cos(t) * (self.sigma_data**2 - self.s**2)
        return x * slope / (2 * self.variance(t))

    def consistency(self, x: Tensor, t: Tensor) -> Tensor:
        """f*(x, t) = s x / sqrt(V(t))."""
        return self.s * x / self.variance(broadcast(t, x)).sqrt()

    def flow_map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """f*(x, t, s) = sqrt(V(s) / V(t)) x."""
        return broadcast((self.variance(s) / self.variance(t)).sqrt(), x) * x

    def flow_net(self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None):
        """(F, w) with F* = (cos(d) x_t - f*) / (sin(d) sd), d = t - s; the velocity where d = 0."""
        s = torch.zeros_like(t) if s is None else s
        x_t, d = x * self.sigma_data, broadcast(t - s, x)
        sin = torch.where(d == 0, torch.ones_like(d), torch.sin(d))
        F = (torch.cos(d) * x_t - self.flow_map(x_t, t, s)) / (sin * self.sigma_data)
        on_diagonal = self.velocity(x_t, t) / self.sigma_data
        return torch.where(d == 0, on_diagonal, F), torch.zeros_like(t)


class ExactMixture(ExactNets, Mixture):
    """The toy's data with their exact networks."""


def smooth_net(x: Tensor, t: Tensor, label: Tensor | None = None):
    """Any smooth network: neither a velocity nor a consistency function."""
    at = broadcast(t, x)
    F = torch.sin(1.3 * x + at) * torch.cos(at * x) + 0.2 * x * at
    return F, torch.sin(t) - 0.3


class WeightedNet(nn.Module):
    """A small smooth network whose learned weight has a parameter of its own, in float64."""

    def __init__(self):
        super().__init__()
        gen = torch.Generator().manual_seed(3)
        self.kernel = nn.Parameter(0.3 * torch.randn(2, 2, 3, 3, generator=gen).double())
        self.slope = nn.Parameter(torch.tensor(0.7).double())

    def forward(self, x, t, label=None):
        wave = nn.functional.conv2d(x, self.kernel, padding=1) + t.view(-1, 1, 1, 1)
        return torch.sin(wave), self.slope * t


class TwoTimes(WeightedNet):
    """The same, told both times."""

    def forward(self, x, t, label=None, s=None):
        s = torch.zeros_like(t) if s is None else s
        wave = nn.functional.conv2d(x, self.kernel, padding=1)
        wave = wave + t.view(-1, 1, 1, 1) + torch.sin(2 * s).view(-1, 1, 1, 1)
        return torch.sin(wave), self.slope * t


def points(n: int = 6, *, shape=(2, 3, 3), sigma_data: float = 0.5, seed: int = 0):
    """x0, z (n, *shape) and t (n,) in float64, away from 0 and pi/2."""
    gen = torch.Generator().manual_seed(seed)
    x0 = 0.4 * torch.randn(n, *shape, generator=gen, dtype=torch.float64)
    z = sigma_data * torch.randn(n, *shape, generator=gen, dtype=torch.float64)
    t = 0.05 + 1.45 * torch.rand(n, generator=gen, dtype=torch.float64)
    return x0, z, t
