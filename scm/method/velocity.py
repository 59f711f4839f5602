"""The path's velocity dx/dt: of a data and noise pair, its mean over a data set, or a teacher's.

It is the direction in which a consistency function shall not change, and what a diffusion model
learns. Shapes: images (B, C, H, W), times (B,) in radians.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from scm.method import trigflow
from scm.method.guidance import Guided
from scm.method.network import Call, Draw


class Velocity(Protocol):
    """dx/dt (B, C, H, W), to be taken without gradients."""

    of_draw: bool  # whether at (x_t, t) it depends on the draw's data and noise too

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """At (x_t, t) of the draw."""
        ...

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """At any other point (x, s) of a path, where it is known there."""
        ...


class Pair:
    """v_t = cos(t) z - sin(t) x0, the velocity of consistency training (Lu & Song 2025, sec. 4)."""

    of_draw = True

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/dt = cos(t) z - sin(t) x0."""
        return trigflow.velocity(draw.x0, draw.z, draw.t)

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """A pair has a velocity on its own line alone."""
        raise ValueError("a pair's velocity is known on its own line alone; use own or teacher")


class DataMean(Pair):
    """E[v given x_t] over the training set where sigma > sigma_min; below it the pair's v.

    A pair's velocity is this mean and noise, and at high noise most of it is noise (Xu et al. 2023,
    stable target fields). At low noise the mean is that of the nearest image alone, which the pair
    gives without a search. With labels the mean is over images of the same class, and the pair's
    where `points` hold none.
    """

    def __init__(
        self,
        *,
        sigma_min: float,
        points: int | None,  # images that the mean is over, the first ones; None: all
        training_set: tuple[Tensor, Tensor],  # x0 (N, C, H, W), labels (N,)
        sigma_data: float,
    ) -> None:
        self.sigma_min, self.sigma_data = sigma_min, sigma_data
        self.x0, self.labels = (part[:points] for part in training_set)
        self.squares = squared_norms(self.x0)  # once: as dear as a product of the two

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """cot(t) x_t - E[x0 given x_t] / sin(t), or the pair's."""
        v = super().__call__(net, x_t, draw, call)
        high = trigflow.sigma_from_time(draw.t, self.sigma_data) > self.sigma_min
        if draw.label is not None:
            high &= torch.isin(draw.label, self.labels)
        if x_t.device.type != "cpu":  # to look which rows are meant would wait for the device
            return torch.where(trigflow.broadcast(high, v), self._mean(x_t, draw.t, draw.label), v)
        label = None if draw.label is None else draw.label[high]
        v[high] = self._mean(x_t[high], draw.t[high], label)
        return v

    def _mean(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        mine = None if label is None else label[:, None] == self.labels
        x0 = posterior_mean(
            x_t, t, self.x0, sigma_data=self.sigma_data, squares=self.squares, allowed=mine
        )
        t = trigflow.broadcast(t, x_t)
        return x_t / torch.tan(t) - x0 / torch.sin(t)


def squared_norms(points: Tensor) -> Tensor:
    """|x_i|^2 (N,) of `points` (N, C, H, W)."""
    return points.flatten(1).square().sum(1)


def posterior_mean(
    x_t: Tensor,
    t: Tensor,
    points: Tensor,
    *,
    sigma_data: float,
    squares: Tensor | None = None,
    allowed: Tensor | None = None,
    block: int = 2**14,
) -> Tensor:
    """E[x0 given x_t] of data that are `points` (N, C, H, W), each as likely: a softmax over them.

    The weight of x_i is that of z = (x_t - cos(t) x_i) / sin(t) ~ N(0, sigma_data^2 I). `allowed`
    (B, N) says which points count for whom. `squares` (N,), the points' `squared_norms`, saves
    finding them again. Memory is that of B x `block` numbers.
    """
    squares = squared_norms(points) if squares is None else squares
    x, cos = x_t.flatten(1), torch.cos(t)[:, None]
    variance = (sigma_data * torch.sin(t)[:, None]) ** 2
    top, total = x.new_full((len(x), 1), -1e30), x.new_zeros(len(x), 1)
    mean = torch.zeros_like(x)
    for start in range(0, len(points), block):
        y = points[start : start + block].flatten(1).to(x)
        square = squares[start : start + block].to(x)
        logits = (cos * (x @ y.T) - cos**2 / 2 * square) / variance
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, start : start + block], -torch.inf)
        before, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
        weights, kept = torch.exp(logits - top), torch.exp(before - top)
        total = kept * total + weights.sum(1, keepdim=True)
        mean = kept * mean + weights @ y
    return (mean / total).view_as(x_t)


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


class Field(ABC):
    """A velocity of the point and the time alone, whatever draw led there."""

    of_draw = False

    def __call__(self, net: nn.Module, x_t: Tensor, draw: Draw, call: Call) -> Tensor:
        """At (x_t, t) of the draw."""
        return self.at(net, x_t, draw.t, draw, call)

    @abstractmethod
    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """At any point."""


class Teacher(Field):
    """sigma_data F of a diffusion model, the velocity of distillation (Lu & Song 2025, sec. 4)."""

    def __init__(self, *, teacher: nn.Module, sigma_data: float) -> None:
        self.teacher = teacher
        self.sigma_data = sigma_data

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/ds = sigma_data F_teacher(x / sigma_data, s)."""
        F, _ = call(self.teacher, x / self.sigma_data, s, draw.label)
        return self.sigma_data * F


class GuidedTeacher(Teacher):
    """A teacher's velocity moved away from that of a weaker model, so that its samples are better.

    Both see the same (x, t); `scm.method.guidance.Guided` has the formula.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module,
        guide: str,  # where the weaker model is
        guidance: float,
        below: float | None,  # the noise level sigma, from which on it is the teacher's alone
        load_guide: Callable[[str], tuple[nn.Module, bool]],  # and whether it is told labels
        sigma_data: float,
    ) -> None:
        weaker, hears = load_guide(guide)
        guided = Guided(
            teacher,
            weaker,
            guidance=guidance,
            below=below,
            guide_hears_label=hears,
            sigma_data=sigma_data,
        )
        super().__init__(teacher=guided, sigma_data=sigma_data)


class Exact(Field):
    """The closed form of data that have one: of the toy, a teacher without an error."""

    def __init__(self, *, exact_velocity: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.exact_velocity = exact_velocity

    def at(self, net: nn.Module, x: Tensor, s: Tensor, draw: Draw, call: Call) -> Tensor:
        """dx/ds of the PF-ODE."""
        return self.exact_velocity(x, s)
