"""The path's velocity dx/dt: of one data and noise pair, or of a diffusion teacher.

It is the direction in which a consistency function shall not change, and what a diffusion model
learns. Shapes: images (B, C, H, W), times (B,) in radians.
"""

from typing import Protocol

from torch import Tensor, nn

from scm.method import trigflow
from scm.method.network import Call, Draw


class Velocity(Protocol):
    """dx/dt (B, C, H, W) at (x_t, t) of the draw, to be taken without gradients."""

    def __call__(self, x_t: Tensor, draw: Draw, call: Call) -> Tensor: ...


class Pair:
    """v_t = cos(t) z - sin(t) x0, the velocity of consistency training (Lu & Song 2025, sec. 4)."""

    def __call__(self, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/dt = cos(t) z - sin(t) x0."""
        return trigflow.velocity(draw.x0, draw.z, draw.t)


class Teacher:
    """sigma_data F of a diffusion model, the velocity of distillation (Lu & Song 2025, sec. 4)."""

    def __init__(self, *, teacher: nn.Module, sigma_data: float) -> None:
        self.teacher = teacher
        self.sigma_data = sigma_data

    def __call__(self, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/dt = sigma_data F_teacher(x_t / sigma_data, t)."""
        F, _ = call(self.teacher, x_t / self.sigma_data, draw.t, draw.label)
        return self.sigma_data * F
