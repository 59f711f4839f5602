"""The path's velocity dx/dt: of one data and noise pair, or of a diffusion teacher.

It is the direction in which a consistency function shall not change, and what a diffusion model
learns. Shapes: images (B, C, H, W), times (B,) in radians.
"""

from typing import Protocol

from torch import Tensor, nn

from scm.method import trigflow
from scm.method.network import Call, Draw


class Velocity(Protocol):
    """dx/dt (B, C, H, W), to be taken without gradients."""

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """At (x_t, t) of the draw."""
        ...

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """At any other point (x, s) of a path, where it is known there."""
        ...


class Pair:
    """v_t = cos(t) z - sin(t) x0, the velocity of consistency training (Lu & Song 2025, sec. 4)."""

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/dt = cos(t) z - sin(t) x0."""
        return trigflow.velocity(draw.x0, draw.z, draw.t)

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """A pair has a velocity on its own line alone."""
        raise ValueError("a pair's velocity is known on its own line alone; use own or teacher")


class Own(Pair):
    """The network's own diagonal sigma_data F(x, s, s); of the pair where that is being learned.

    So a flow map distils itself (Boffi et al. 2025): at (x_t, t) of the draw it learns the pair's.
    """

    def __init__(self, *, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/ds = sigma_data F(x / sigma_data, s, s)."""
        F, _ = call(net, x / self.sigma_data, s, draw.label, s)
        return self.sigma_data * F


class Teacher:
    """sigma_data F of a diffusion model, the velocity of distillation (Lu & Song 2025, sec. 4)."""

    def __init__(self, *, teacher: nn.Module, sigma_data: float) -> None:
        self.teacher = teacher
        self.sigma_data = sigma_data

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/dt = sigma_data F_teacher(x_t / sigma_data, t)."""
        return self.at(net, x_t, draw.t, draw, call)

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """The same at any point."""
        F, _ = call(self.teacher, x / self.sigma_data, s, draw.label)
        return self.sigma_data * F
