"""The change of the consistency function along the path: by a JVP, or over one discrete interval.

Both give F and w, recorded for autograd, and the tangent g, not recorded. Shapes: images
(B, C, H, W), times (B,) in radians.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from scm.config.methods import Form, Rule
from scm.method import schedules, trigflow
from scm.method.network import Call
from scm.method.network import call as plain_call
from scm.method.tangent import DISCRETE, JVPS, network_tangent, rearranged_tangent


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
        self, net: nn.Module, path: Path, r: float, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """F (B, C, H, W) and w (B,), recorded for autograd, and g (B, C, H, W), not recorded."""
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

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """A copy whose pass that carries the tangent is compiled."""
        mine = copy.copy(self)
        mine.jvp = compile(self.jvp)
        return mine

    def __call__(
        self, net: nn.Module, path: Path, r: float, call: Call
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


class Difference:
    """g is a difference of f over one of the N intervals of EDM's grid: discrete time.

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
        self.sigma_data = sigma_data
        self.tangent = DISCRETE[Rule(rule)]
        self.grid = schedules.karras_times(
            N, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=sigma_data
        ).flip(0)  # (N + 1,) from 0 upwards
        if not (self.grid.float().diff() > 0).all():
            raise ValueError(f"N={N}: times of its grid are equal in float32; lower N or sigma_max")

    def times(self, t: Tensor) -> Tensor:
        """The upper ends of the intervals that hold the drawn times."""
        return self.grid.to(t)[self._upper(t)]

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """Itself: its passes are the objective's own."""
        return self

    def _upper(self, t: Tensor) -> Tensor:
        return torch.searchsorted(self.grid.to(t), t).clamp(1, len(self.grid) - 1)

    def __call__(
        self, net: nn.Module, path: Path, r: float, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass at each end of the interval, both with the same dropout masks.

        At s = 0, where log(sigma) is infinite, F counts nothing: the net is told another time.
        """
        sd, grid = self.sigma_data, self.grid.to(path.t)
        s = grid[self._upper(path.t) - 1]
        x_s = trigflow.step(path.x_t, path.dxdt, path.t, s)
        devices = [path.x_t.device] if path.x_t.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            F_s, _ = call(net, x_s / sd, s.clamp_min(grid[1]), path.label)
        F, w = call(net, path.x_t / sd, path.t, path.label)
        with torch.no_grad():
            g = self.tangent(F, F_s, path.x_t, path.dxdt, path.t, s, r=r, sigma_data=sd)
        return F, w, g
