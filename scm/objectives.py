"""The objectives: diffusion, consistency training (sCT), distillation (sCD), and both with N steps.

The one place where path, tangent, weights and network meet. An objective returns per-sample losses
and named terms; it knows nothing of steps of an optimiser, of logging or of files.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from scm import schedules, trigflow
from scm.config import Jvp, Norm
from scm.tangent import (
    JVPS,
    TangentControl,
    difference_tangent,
    network_tangent,
    norm_of,
    rearranged_tangent,
)
from scm.weighting import Weighting, adaptive_loss


@dataclass(frozen=True)
class Draw:
    """One step's draw of data, noise and times. Noise is z ~ N(0, sigma_data^2 I)."""

    x0: Tensor  # (B, C, H, W) images in [-0.5, 0.5]
    z: Tensor  # (B, C, H, W)
    t: Tensor  # (B,) radians
    label: Tensor | None  # (B,) int64, None for an unconditional network

    def part(self, rows: slice) -> "Draw":
        """These rows of the batch."""
        label = None if self.label is None else self.label[rows]
        return Draw(self.x0[rows], self.z[rows], self.t[rows], label)


@dataclass(frozen=True)
class Loss:
    """What an objective makes of a batch, unreduced."""

    loss: Tensor  # (B,) what is minimised
    error: Tensor  # (B,) the unweighted mean squared error that the loss is about
    w: Tensor  # (B,) the log weight in force
    terms: dict[str, Tensor]  # further (B,) values worth logging, detached; keys are log tags


def call(net: nn.Module, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """One pass: F (B, C, H, W), w (B,)."""
    return net(x, t, label)


class Objective(ABC):
    """A loss of the network F(x_t / sigma_data, t) at log-normally drawn noise levels."""

    name: str
    learns_velocity: bool  # true where sigma_data F is the ODE's velocity, as ODE samplers need

    def __init__(
        self,
        *,
        P_mean: float,  # mean of ln(sigma) in the proposal
        P_std: float,  # and its standard deviation
        adaptive_weight: bool,  # e^w error - w, or the plain error
        weighting: Weighting,
        sigma_data: float,
    ) -> None:
        self.weighting = weighting
        self.adaptive_weight = adaptive_weight
        self.sigma_data = sigma_data
        self.call = call
        self.draw_times = partial(
            schedules.proposal_times, P_mean=P_mean, P_std=P_std, sigma_data=sigma_data
        )

    @abstractmethod
    def loss(self, net: nn.Module, draw: Draw, step: int) -> Loss:
        """The loss of `net` on `draw` at training step `step`."""

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """A copy whose passes through networks are functions compiled by `compile`.

        The networks stay as they are, and with them every other user of them and the names of
        their weights.
        """
        mine = copy.copy(self)
        mine.call = compile(self.call)
        return mine

    def _weighted(self, error: Tensor, w: Tensor, t: Tensor, terms: dict[str, Tensor]) -> Loss:
        """error (B,), w (B,) -> the weighted loss; w is 0 where the adaptive weight is off."""
        if not self.adaptive_weight:
            w = torch.zeros_like(w)
        loss = adaptive_loss(self.weighting.on_loss(t) * error, w)
        return Loss(loss=loss, error=error.detach(), w=w.detach(), terms=terms)


def mean_square(residual: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,): ||residual||^2 / D, in float32 or better."""
    return residual.square().flatten(1).mean(1)


class Diffusion(Objective):
    """||sigma_data F - v_t||^2 / D under the weights: TrigFlow (Lu & Song 2025, sec. 3)."""

    name = "diffusion"
    learns_velocity = True

    def loss(self, net: nn.Module, draw: Draw, step: int) -> Loss:
        """The network's squared distance from the velocity, per sample."""
        x_t = trigflow.interpolate(draw.x0, draw.z, draw.t)
        v_t = trigflow.velocity(draw.x0, draw.z, draw.t)
        F, w = self.call(net, x_t / self.sigma_data, draw.t, draw.label)
        return self._weighted(mean_square(self.sigma_data * F - v_t), w, draw.t, {})


@dataclass(frozen=True)
class Path:
    """Where a batch stands on its way from data to noise."""

    t: Tensor  # (B,) radians
    x_t: Tensor  # (B, C, H, W)
    dxdt: Tensor  # (B, C, H, W) the direction in which the consistency function shall not change


class Consistency(Objective):
    """e^w ||F - F^- - g||^2 / D - w, F^- being F without gradient and g a tangent of f.

    Training and distillation differ in `path_velocity`, continuous and discrete time in `tangent`.
    """

    learns_velocity = False

    def __init__(
        self,
        *,
        tangent_warmup_steps: int,  # H
        tangent: TangentControl,  # what is done to g
        **common: Any,  # of every objective
    ) -> None:
        super().__init__(**common)
        self.tangent_warmup_steps = tangent_warmup_steps
        self.tangent = tangent

    @abstractmethod
    def path_velocity(self, draw: Draw, x_t: Tensor) -> Tensor:
        """dx/dt (B, C, H, W) of the path along which the consistency function shall not change."""

    @abstractmethod
    def tangent_of(
        self, net: nn.Module, draw: Draw, path: Path, r: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F (B, C, H, W) and w (B,), recorded for autograd, and g (B, C, H, W), not recorded."""

    def times(self, t: Tensor) -> Tensor:
        """The times (B,) that stand for the drawn ones."""
        return t

    def loss(self, net: nn.Module, draw: Draw, step: int) -> Loss:
        """The network's squared distance from its own value moved by the tangent, per sample."""
        draw = replace(draw, t=self.times(draw.t))
        x_t = trigflow.interpolate(draw.x0, draw.z, draw.t)
        with torch.no_grad():
            path = Path(draw.t, x_t, self.path_velocity(draw, x_t))
        r = schedules.tangent_warmup(step, self.tangent_warmup_steps)
        F, w, g = self.tangent_of(net, draw, path, r)
        with torch.no_grad():
            raw_norm = norm_of(g, Norm.rms)
            scale = self.weighting.on_tangent(draw.t)
            target = F + self.tangent(trigflow.broadcast(scale, g) * g)
        terms = {"tangent/rms": raw_norm, "tangent/r": torch.full_like(raw_norm, r)}
        # The squared error's value is ||g||^2 / D: only its gradient, through F, is about F^-.
        return self._weighted(mean_square(F - target), w, draw.t, terms)


class Continuous(Consistency):
    """g is the rearranged tangent, by JVP: Algorithm 1 of Lu & Song 2025."""

    def __init__(self, *, jvp: Jvp | str, **consistency: Any) -> None:
        super().__init__(**consistency)
        self.jvp = JVPS[Jvp(jvp)]  # how dF/dt is computed

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """As above, with the pass that carries the tangent."""
        mine = super().compiled(compile)
        mine.jvp = compile(self.jvp)
        return mine

    def tangent_of(
        self, net: nn.Module, draw: Draw, path: Path, r: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass with a JVP."""
        at = network_tangent(
            lambda x, t: net(x, t, draw.label),
            path.x_t,
            path.t,
            path.dxdt,
            sigma_data=self.sigma_data,
            jvp=self.jvp,
        )
        with torch.no_grad():
            g = rearranged_tangent(
                at.F, at.dF, path.x_t, path.dxdt, path.t, r=r, sigma_data=self.sigma_data
            )
        return at.F, at.w, g


class Discrete(Consistency):
    """g is a difference of f over one of the N intervals of EDM's grid.

    With `Raw` tangents this is the discrete-time loss ||f(x_t, t) - f^-(x_s, s)||^2 (Song et al.
    2023) but for a weight of t: that which makes its gradient the continuous one as N grows.
    Raises ValueError where an interval has no length.
    """

    def __init__(
        self, *, N: int, sigma_min: float, sigma_max: float, rho: float, **consistency: Any
    ) -> None:
        super().__init__(**consistency)
        self.grid = schedules.karras_times(
            N, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=self.sigma_data
        ).flip(0)  # (N + 1,) from 0 upwards
        if not (self.grid.float().diff() > 0).all():
            raise ValueError(f"N={N}: times of its grid are equal in float32; lower N or sigma_max")

    def times(self, t: Tensor) -> Tensor:
        """The upper ends of the intervals that hold the drawn times."""
        grid = self.grid.to(t)
        return grid[self._upper(t)]

    def _upper(self, t: Tensor) -> Tensor:
        return torch.searchsorted(self.grid.to(t), t).clamp(1, len(self.grid) - 1)

    def tangent_of(
        self, net: nn.Module, draw: Draw, path: Path, r: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass at each end of the interval, both with the same dropout masks.

        At s = 0, where log(sigma) is infinite, F counts nothing: the net is told another time.
        """
        grid = self.grid.to(path.t)
        s = grid[self._upper(path.t) - 1]
        x_s = trigflow.step(path.x_t, path.dxdt, path.t, s)
        devices = [path.x_t.device] if path.x_t.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            F_s, _ = self.call(net, x_s / self.sigma_data, s.clamp_min(grid[1]), draw.label)
        F, w = self.call(net, path.x_t / self.sigma_data, path.t, draw.label)
        with torch.no_grad():
            sd = self.sigma_data
            f_s = trigflow.consistency(x_s, F_s, s, sd)
            g = difference_tangent(F, f_s, path.x_t, path.dxdt, path.t, s, r=r, sigma_data=sd)
        return F, w, g


class Training(Consistency):
    """The velocity of one data and noise pair (Lu & Song 2025, sec. 4)."""

    def path_velocity(self, draw: Draw, x_t: Tensor) -> Tensor:
        """dx/dt = cos(t) z - sin(t) x0."""
        return trigflow.velocity(draw.x0, draw.z, draw.t)


class Distillation(Consistency):
    """The velocity of a diffusion teacher (Lu & Song 2025, sec. 4)."""

    def __init__(self, *, teacher: nn.Module, **consistency: Any) -> None:
        super().__init__(**consistency)
        self.teacher = teacher

    def path_velocity(self, draw: Draw, x_t: Tensor) -> Tensor:
        """dx/dt = sigma_data F_teacher(x_t / sigma_data, t)."""
        F, _ = self.call(self.teacher, x_t / self.sigma_data, draw.t, draw.label)
        return self.sigma_data * F


class SCT(Continuous, Training):
    """Consistency training in continuous time."""

    name = "sct"


class SCD(Continuous, Distillation):
    """Consistency distillation in continuous time."""

    name = "scd"


class DiscreteCT(Discrete, Training):
    """Consistency training with N steps."""

    name = "discrete_ct"


class DiscreteCD(Discrete, Distillation):
    """Consistency distillation with N steps."""

    name = "discrete_cd"
