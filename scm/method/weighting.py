"""EQUATIONS of the loss's weights: the prior weight of a noise level, and the learned one.

The paper's prior 1/sigma multiplies the *tangent*: it turns sigma_data sin(t) df/dt into cos(t)
df/dt, which is Algorithm 1's g. So g already contains it, and:

- `Unit`: nothing more, the paper's Algorithm 1;
- `InverseSigma`: another 1/sigma on the squared error, as the starting scripts, Sana-Sprint and
  FastGen have it;
- `NoPrior`: the tangent times sigma, which takes the paper's prior out again;
- `SinTangent`: the tangent times tan(t), the starting scripts' variant of that.
"""

from typing import Protocol

import torch
from torch import Tensor

from scm.method import trigflow


class Weighting(Protocol):
    """The prior weight of a noise level. Both methods: t (B,) in radians -> weights (B,)."""

    def on_loss(self, t: Tensor) -> Tensor:
        """The factor of the squared error."""
        ...

    def on_tangent(self, t: Tensor) -> Tensor:
        """The factor of the tangent g, before its normalisation."""
        ...


class Unit:
    """Outer weight 1: Algorithm 1 of Lu & Song 2025 as printed, its 1/sigma prior inside g."""

    def __init__(self, *, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def on_loss(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def on_tangent(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)


class InverseSigma(Unit):
    """An outer 1/sigma on the squared error, a second prior beside the one inside g."""

    def on_loss(self, t: Tensor) -> Tensor:
        """1 / sigma = 1 / (sigma_data tan(t))."""
        return 1 / trigflow.sigma_from_time(t, self.sigma_data)


class NoPrior(Unit):
    """No prior at all: g' = sigma g = sigma_data sin(t) df/dt."""

    def on_tangent(self, t: Tensor) -> Tensor:
        """sigma = sigma_data tan(t)."""
        return trigflow.sigma_from_time(t, self.sigma_data)


class SinTangent(Unit):
    """The starting scripts' toy: sin(t) for one cos(t), g' = tan(t) g = sin(t) df/dt.

    It is `NoPrior` divided by sigma_data: another c in the normalisation, else the same.
    """

    def on_tangent(self, t: Tensor) -> Tensor:
        """tan(t)."""
        return torch.tan(t)


def adaptive_loss(error: Tensor, w: Tensor) -> Tensor:
    """L = e^w error - w  (Lu & Song 2025, eq. 8; Karras et al. 2024 write w = -logvar).

    `error` (B,) is the weighted mean squared error of a sample, w (B,) the learned log weight. At
    the optimum e^w E[error] = 1, so that every noise level contributes alike.
    """
    return torch.exp(w) * error - w
