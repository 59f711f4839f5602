"""EQUATIONS of the toy, where all is known: two Gaussians with equal weights in one dimension.

The data are x0 ~ N(+-m, s^2), the noise is z ~ N(0, sigma_data^2). Shapes: x (B, ...), times (B,)
in radians. All is computed in float64 and returned in x's dtype.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scm.method.trigflow import broadcast, velocity

BISECTIONS = 24  # halvings of a bracket about 2 wide, to 1e-7; two steps of Newton's do the rest


@dataclass(frozen=True)
class Mixture:
    """The toy's distribution, its denoiser, its PF-ODE and its consistency function."""

    mean: float  # m
    std: float  # s
    sigma_data: float

    def posterior_mean(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t] = (cos(t) s^2 x + sd^2 sin^2(t) m tanh(a)) / V,  a = cos(t) m x / V.

        V = s^2 cos^2(t) + sd^2 sin^2(t) is each component's variance; (1 + tanh(a)) / 2 is the
        probability that x comes from the right one. Bayes' rule for two Gaussians.
        """
        return self._means(x, t)[0].to(x.dtype)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = cos(t) E[z | x_t] - sin(t) E[x0 | x_t], the PF-ODE's exact velocity."""
        x0, z = self._means(x, t)
        return velocity(x0, z, t.double()).to(x.dtype)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), p_t = (N(-cos(t) m, V) + N(cos(t) m, V)) / 2."""
        left, right, deviation = self._standardised(x.double(), t)
        both = torch.logaddexp(-left.square() / 2, -right.square() / 2)
        return (both - torch.log(deviation) - math.log(2 * math.sqrt(2 * math.pi))).to(x.dtype)

    def flow(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The point at time t of the PF-ODE's trajectory through (x, s): CDF_t(y) = CDF_s(x).

        In one dimension trajectories cannot cross, so each keeps its quantile. The inverse is found
        by bisection and Newton's method, whose last step also makes the derivatives right.
        """
        x64, s64, t64 = x.double(), s.double(), t.double()
        flipped = torch.where(x64 > 0, -1.0, 1.0)  # the mirrored point: its CDF is at most 1/2
        left_half = flipped * x64
        goal = self._log_cdf(left_half, s64)
        with torch.no_grad():
            y = self._inverse(goal, left_half, s64, t64)
            y = y - self._newton(y, goal, t64)
        y = y - self._newton(y, goal, t64)
        return (flipped * y).to(x.dtype)

    def consistency(self, x: Tensor, t: Tensor) -> Tensor:
        """f*(x, t), the end at t = 0 of the trajectory through (x, t)."""
        return self.flow(x, t, torch.zeros_like(t))

    def _means(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t] and E[z | x_t] = sd^2 sin(t) / V (x - cos(t) m tanh(a)), regular at 0."""
        x, at = x.double(), broadcast(t, x).double()
        cos, sin = torch.cos(at), torch.sin(at)
        noise = self.sigma_data**2 * sin
        variance = self.std**2 * cos**2 + noise * sin
        sign = torch.tanh(cos * self.mean * x / variance)
        x0 = (cos * self.std**2 * x + noise * sin * self.mean * sign) / variance
        return x0, noise / variance * (x - cos * self.mean * sign)

    def _standardised(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x + cos(t) m) / sqrt(V), (x - cos(t) m) / sqrt(V), sqrt(V)."""
        at = broadcast(t, x).double()
        shift = torch.cos(at) * self.mean
        deviation = torch.hypot(self.std * torch.cos(at), self.sigma_data * torch.sin(at))
        return (x + shift) / deviation, (x - shift) / deviation, deviation

    def _log_cdf(self, x: Tensor, t: Tensor) -> Tensor:
        """log CDF_t(x), exact far into the left tail."""
        left, right, _ = self._standardised(x, t)
        return torch.logaddexp(
            torch.special.log_ndtr(left), torch.special.log_ndtr(right)
        ) - math.log(2)

    def _newton(self, y: Tensor, goal: Tensor, t: Tensor) -> Tensor:
        """(log CDF_t(y) - goal) / its derivative, which counts as a constant."""
        log_cdf = self._log_cdf(y, t)
        with torch.no_grad():
            slope = torch.exp(self.log_density(y, t) - log_cdf)
        return (log_cdf - goal) / slope

    def _inverse(self, goal: Tensor, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """y with log CDF_t(y) = goal = log CDF_s(x), by bisection.

        A mixture's CDF lies between its components', whose inverses are known: that is the bracket.
        """
        left, right, _ = self._standardised(x, s)
        shift, _, deviation = self._standardised(torch.zeros_like(x), t)
        centre = shift * deviation
        low, high = deviation * right - centre, deviation * left + centre
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self._log_cdf(middle, t) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2
