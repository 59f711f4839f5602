"""Paths from noise to data, and a network's tangent along them: by JVP, and by a difference.

A path is where a tangent is taken: the PF-ODE of a diffusion model, the exact one of the toy, or a
line between data and noise. Shapes: x (B, C, H, W); a time is one float for all.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from scm.config.methods import Norm
from scm.core import rng
from scm.data.mixture import Mixture
from scm.method import dual, trigflow
from scm.method.samplers import Heun
from scm.method.tangent import network_tangent, norm_of, rearranged_tangent

STEP = 0.01  # radians between the two ends of the discrete difference


class Path(Protocol):
    """dx/dt at a point, and the way from one time to another."""

    is_ode: bool  # whether each x_t has one path, whose end a consistency function can know

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """dx/dt at (x, t)."""
        ...

    def move(self, x: Tensor, s: float, t: float) -> Tensor:
        """The point at time t of the path through (x, s)."""
        ...


@dataclass(frozen=True)
class LearnedOde:
    """dx/dt = sigma_data F of a diffusion model; a move is one step of Heun's scheme."""

    net: nn.Module
    label: Tensor | None
    heun: Heun
    is_ode = True

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return self.heun.sigma_data * self._field(x, t)

    def move(self, x: Tensor, s: float, t: float) -> Tensor:
        return self.heun.step(self._field, x, s, t)

    def _field(self, x: Tensor, t: float) -> Tensor:
        return self.net(x / self.heun.sigma_data, filled(x, t), self.label)[0]


@dataclass(frozen=True)
class ExactOde:
    """The toy's own ODE, solved exactly; on the CPU, since not every device has float64."""

    mixture: Mixture
    is_ode = True

    def velocity(self, x: Tensor, t: float) -> Tensor:
        here = x.cpu()
        return self.mixture.velocity(here, filled(here, t)).to(x.device)

    def move(self, x: Tensor, s: float, t: float) -> Tensor:
        here = x.cpu()
        return self.mixture.flow(here, filled(here, s), filled(here, t)).to(x.device)


@dataclass(frozen=True)
class Pairs:
    """x_t = cos(t) x0 + sin(t) z: what consistency training sees instead of an ODE."""

    x0: Tensor
    z: Tensor
    is_ode = False

    def velocity(self, x: Tensor, t: float) -> Tensor:
        return trigflow.velocity(self.x0, self.z, filled(x, t))

    def move(self, x: Tensor, s: float, t: float) -> Tensor:
        return trigflow.interpolate(self.x0, self.z, filled(x, t))


@dataclass(frozen=True)
class Tangents:
    """f and g = cos(t) df/dt at points of one time, each (B, C, H, W)."""

    f: Tensor
    jvp: Tensor
    discrete: Tensor


@dataclass(frozen=True)
class Measured:
    """Root mean squares over an image's values at T times of N paths, each (T, N), on the CPU."""

    t: Tensor  # (T,)
    jvp: Tensor  # of g by JVP
    discrete: Tensor  # of g by the difference
    difference: Tensor  # of one less the other
    from_end: Tensor  # of f(x_t, t) less the path's end: on an ODE, the consistency error


def filled(x: Tensor, t: float) -> Tensor:
    """(B,): the time of every sample of x."""
    return torch.full((len(x),), t, device=x.device, dtype=x.dtype)


def fine_times(heun: Heun) -> list[float]:
    """The scheme's own times, on which it is accurate, and as many even ones, so that none is far.

    Falling from its first to 0.
    """
    even = torch.linspace(heun.times[0], 0, len(heun.times), dtype=torch.float64)
    return sorted({*heun.times, *even.tolist()}, reverse=True)


def states(path: Path, x: Tensor, times: list[float]) -> Iterator[tuple[float, Tensor]]:
    """(t, x_t) at all `times`, falling, of the paths that begin with x at the first."""
    yield times[0], x
    for s, t in pairwise(times):
        x = path.move(x, s, t)
        yield t, x


def consistency_of(
    net: nn.Module, x: Tensor, t: Tensor, label: Tensor | None, sigma_data: float
) -> Tensor:
    """f(x, t) of the network, t (B,)."""
    F, _ = net(x / sigma_data, t, label)
    return trigflow.consistency(x, F, t, sigma_data)


def tangents(
    net: nn.Module,
    path: Path,
    x: Tensor,
    t: float,
    *,
    sigma_data: float,
    label: Tensor | None = None,
    step: float = STEP,
) -> Tangents:
    """g from the JVP, and cos(t) (f(x_{t+h}, t + h) - f(x_{t-h}, t - h)) / (2 h) along the path.

    h = `step` / 2, less where 0 or pi/2 is near. The difference is central, because in float32 h
    cannot be small: at h = 0.005 rounding and curvature each cost about a thousandth.
    """
    time = filled(x, t)
    dxdt = path.velocity(x, t)
    at = network_tangent(
        lambda x, t: net(x, t, label), x, time, dxdt, sigma_data=sigma_data, jvp=dual.jvp
    )
    g = rearranged_tangent(at.F, at.dF, x, dxdt, time, r=1.0, sigma_data=sigma_data)
    h = min(step, t, torch.pi / 2 - t) / 2
    after, before = (
        consistency_of(net, path.move(x, t, to), filled(x, to), label, sigma_data)
        for to in (t + h, t - h)
    )
    slope = (after - before) / (2 * h)
    return Tangents(
        f=trigflow.consistency(x, at.F, time, sigma_data),
        jvp=g,
        discrete=trigflow.broadcast(time.cos(), slope) * slope,
    )


@torch.no_grad()
def measure(
    net: nn.Module,
    path: Path,
    points: Iterable[tuple[float, Tensor]],
    *,
    sigma_data: float,
    label: Tensor | None = None,
    step: float = STEP,
) -> Measured:
    """Follow `points`, as `states` yields them, to the one at t = 0, and take tangents on the way.

    Raises ValueError where the points do not end at t = 0.
    """
    end, found = torch.nan, {}
    for t, x in points:
        if t > 0:
            found[t] = tangents(net, path, x, t, step=step, label=label, sigma_data=sigma_data)
        end = t
    if end != 0:
        raise ValueError(f"the paths end at t = {end}, not at 0")
    return Measured(
        t=torch.tensor(list(found)),
        jvp=_rms(at.jvp for at in found.values()),
        discrete=_rms(at.discrete for at in found.values()),
        difference=_rms(at.jvp - at.discrete for at in found.values()),
        from_end=_rms(at.f - x for at in found.values()),
    )


def start_noises(
    n: int, image_shape: tuple[int, int, int], *, sigma_data: float, seed: int
) -> Tensor:
    """(n, C, H, W): an arc between two noises; for single numbers, noises at even quantiles."""
    if image_shape == (1, 1, 1):
        quantiles = (torch.arange(n).double() + 0.5) / n
        return sigma_data * torch.special.ndtri(quantiles).float().view(-1, 1, 1, 1)
    gen = rng.generator(seed, "trajectories", device="cpu")
    a, b = sigma_data * torch.randn(2, *image_shape, generator=gen)
    return spherical(a, b, n)


def spherical(a: Tensor, b: Tensor, n: int) -> Tensor:
    """(n, C, H, W) from a to b (C, H, W) along a great circle: each is as long as a noise is.

    x_k = cos(k) a + sin(k) b for n angles from 0 to pi/2. Two independent noises are nearly
    orthogonal and equally long, so each mixture is as likely a noise as they are.
    """
    angle = torch.linspace(0, torch.pi / 2, n, device=a.device, dtype=a.dtype)
    return trigflow.interpolate(a.expand(n, *a.shape), b.expand(n, *b.shape), angle)


def _rms(images: Iterable[Tensor]) -> Tensor:
    """T of (N, C, H, W) -> (T, N) on the CPU: root mean square over an image's values."""
    return torch.stack([norm_of(x, Norm.rms) for x in images]).cpu()
