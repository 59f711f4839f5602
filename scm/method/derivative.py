"""The change of the consistency function along the path: by a JVP, or over one discrete interval.

Both give F and w, recorded for autograd, and the tangent g, not recorded. Shapes: images
(B, C, H, W), times (B,) in radians.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from scm.config.methods import Form, Rule
from scm.method import schedules, trigflow
from scm.method.network import Call
from scm.method.network import call as plain_call
from scm.method.tangent import (
    DISCRETE,
    JVPS,
    discrete_tangent,
    network_tangent,
    rearranged_tangent,
)


@dataclass(frozen=True)
class Path:
    """Where a batch stands on its way from data to noise."""

    t: Tensor  # (B,) radians
    x_t: Tensor  # (B, C, H, W)
    dxdt: Tensor  # (B, C, H, W) the velocity there
    along: Tensor  # (B, C, H, W) the direction that a JVP looks in: the velocity's, or another's
    label: Tensor | None  # (B,)
    s: Tensor | None = None  # (B,) where a flow map leads; None: the data


class Derivative(Protocol):
    """g = cos(t) df/dt along the path, its unstable part weighted by r."""

    def times(self, t: Tensor) -> Tensor:
        """The times (B,) that stand for the drawn ones."""
        ...

    def __call__(
        self, net: nn.Module, path: Path, r: float, step: int, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F (B, C, H, W) and w (B,), recorded for autograd, and g (B, C, H, W), not recorded."""
        ...

    def settled(self, step: int) -> bool:
        """Whether it is, at this training step, what it stays to the end."""
        ...

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """A copy whose own passes are compiled."""
        ...


class Jvp:
    """g is the rearranged tangent, by JVP: Algorithm 1 of Lu & Song 2025."""

    def __init__(self, *, form: str, sigma_data: float) -> None:
        self.jvp = JVPS[Form(form)]  # how dF/dt is computed
        self.sigma_data = sigma_data

    def times(self, t: Tensor) -> Tensor:
        """Time is continuous: the drawn ones."""
        return t

    def settled(self, step: int) -> bool:
        """From the start."""
        return True

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """A copy whose pass that carries the tangent is compiled."""
        mine = copy.copy(self)
        mine.jvp = compile(self.jvp)
        return mine

    def __call__(
        self, net: nn.Module, path: Path, r: float, step: int, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass with a JVP."""
        d = path.t if path.s is None else path.t - path.s
        at = network_tangent(
            lambda x, t: plain_call(net, x, t, path.label, path.s),
            path.x_t,
            path.t,
            path.along,
            sigma_data=self.sigma_data,
            jvp=self.jvp,
            d=d,
        )
        with torch.no_grad():
            g = rearranged_tangent(
                at.F, at.dF, path.x_t, path.dxdt, d, r=r, sigma_data=self.sigma_data
            )
        return at.F, at.w, g


class Discrete(ABC):
    """g is a difference of f over an interval [u, t] of the path: discrete time.

    `discrete_tangent` with the ways t - s and u - s that are left for a flow map. As u -> t it is
    the continuous g, and at u = s it is the diffusion loss's residual.
    """

    tangent = staticmethod(discrete_tangent)
    smallest = 1e-4  # the least time that a network is told: at u = 0 F is void

    def __init__(self, *, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    @abstractmethod
    def lower(self, t: Tensor, s: Tensor, step: int) -> Tensor:
        """The lower end u (B,) in [s, t] of the interval below t, at a training step."""

    def times(self, t: Tensor) -> Tensor:
        """Any."""
        return t

    def settled(self, step: int) -> bool:
        """From the start, unless intervals change."""
        return True

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """Itself: its passes are the objective's own."""
        return self

    def __call__(
        self, net: nn.Module, path: Path, r: float, step: int, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass at each end of the interval, both with the same dropout masks."""
        sd, t = self.sigma_data, path.t
        s = torch.zeros_like(t) if path.s is None else path.s
        u = self.lower(t, s, step)
        x_u = trigflow.step(path.x_t, path.dxdt, t, u)
        devices = [path.x_t.device] if path.x_t.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            F_u, _ = call(net, x_u / sd, u.clamp_min(self.smallest), path.label, path.s)
        F, w = call(net, path.x_t / sd, t, path.label, path.s)
        with torch.no_grad():
            g = self.tangent(F, F_u, path.x_t, path.dxdt, t - s, u - s, r=r, sigma_data=sd)
        return F, w, g


class Difference(Discrete):
    """Over one of the N intervals of EDM's grid.

    With `Raw` tangents this is the discrete-time loss ||f(x_t, t) - f^-(x_s, s)||^2 but for a
    weight of t, by `rule`: that which makes its gradient the continuous one as N grows.
    Raises ValueError where an interval has no length.
    """

    def __init__(
        self,
        *,
        N: int,
        rule: str,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        sigma_data: float,
    ) -> None:
        super().__init__(sigma_data=sigma_data)
        self.tangent = DISCRETE[Rule(rule)]
        self.grid = schedules.karras_times(
            N, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=sigma_data
        ).flip(0)  # (N + 1,) from 0 upwards
        self.smallest = float(self.grid[1])
        if not (self.grid.float().diff() > 0).all():
            raise ValueError(f"N={N}: times of its grid are equal in float32; lower N or sigma_max")

    def times(self, t: Tensor) -> Tensor:
        """The upper ends of the intervals that hold the drawn times."""
        return self.grid.to(t)[self._upper(t)]

    def lower(self, t: Tensor, s: Tensor, step: int) -> Tensor:
        """The grid's time below t."""
        return self.grid.to(t)[self._upper(t) - 1]

    def _upper(self, t: Tensor) -> Tensor:
        return torch.searchsorted(self.grid.to(t), t).clamp(1, len(self.grid) - 1)


class Shrinking(Discrete):
    """Over an interval that halves as training goes on: easy consistency tuning (Geng et al. 2024).

    sigma_u = sigma_t (1 - gap (1 + k sigmoid(-b sigma_t))), not below 0, the gap falling from
    `first` by half every `halving_steps` steps down to `last`. While sigma_u is 0 it is diffusion.
    """

    def __init__(
        self,
        *,
        first: float,
        last: float,
        halving_steps: int,
        k: float,
        b: float,
        sigma_data: float,
    ) -> None:
        super().__init__(sigma_data=sigma_data)
        self.first, self.last, self.halving_steps = first, last, halving_steps
        self.k, self.b = k, b

    def gap(self, step: int) -> float:
        """The part of sigma_t that an interval takes at high noise."""
        return max(self.last, self.first * 0.5 ** (step // self.halving_steps))

    def settled(self, step: int) -> bool:
        """From the last gap on."""
        return self.gap(step) == self.last

    def lower(self, t: Tensor, s: Tensor, step: int) -> Tensor:
        """The time of sigma_u, not below s."""
        sigma = trigflow.sigma_from_time(t, self.sigma_data)
        part = self.gap(step) * (1 + self.k * torch.sigmoid(-self.b * sigma))
        u = trigflow.time_from_sigma(sigma * (1 - part).clamp_min(0), self.sigma_data)
        return torch.minimum(torch.maximum(u, s), t)


class Annealed(Discrete):
    """From the whole way t - s to the JVP: alpha-Flow's path from flow matching to MeanFlow.

    u = t - alpha (t - s), alpha falling from 1 to 0 along a sigmoid over `steps` training steps
    (Zhang et al. 2025). At alpha = 1 it is flow matching, at 1/2 a shortcut model's step along the
    velocity, and below `clamp` the JVP takes over.
    """

    def __init__(
        self, *, steps: int, sharpness: float, clamp: float, form: str, sigma_data: float
    ) -> None:
        super().__init__(sigma_data=sigma_data)
        self.steps, self.sharpness, self.clamp = steps, sharpness, clamp
        self.jvp = Jvp(form=form, sigma_data=sigma_data)

    def alpha(self, step: int) -> float:
        """The part of the way that an interval takes."""
        falling = 1 / (1 + math.exp(min(self.sharpness * (step / self.steps - 0.5), 700)))
        if falling < self.clamp:
            return 0.0
        return 1.0 if falling > 1 - self.clamp else falling

    def settled(self, step: int) -> bool:
        """From the JVP on."""
        return self.alpha(step) == 0

    def lower(self, t: Tensor, s: Tensor, step: int) -> Tensor:
        """t - alpha (t - s)."""
        alpha = self.alpha(step)
        return s if alpha == 1 else torch.maximum(t - alpha * (t - s), s)

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """A copy whose pass that carries the tangent is compiled."""
        mine = copy.copy(self)
        mine.jvp = self.jvp.compiled(compile)
        return mine

    def __call__(
        self, net: nn.Module, path: Path, r: float, step: int, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass at each end, or one with a JVP."""
        if self.alpha(step) == 0:
            return self.jvp(net, path, r, step, call)
        return super().__call__(net, path, r, step, call)
