"""EQUATIONS of the tangent: the network's JVP, the rearranged tangent g, and what keeps it tame.

Shapes: images (B, C, H, W), times (B,). All coefficients are computed in the times' own precision
(float32 or float64), whatever the network computes in.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm.config.methods import Form, Norm, Rule
from scm.method import dual
from scm.method.trigflow import broadcast, consistency, step

SMALLEST_TURN = 1e-6  # of sin(d) as a divisor: shorter ways are float32's rounding

Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x_t / sigma_data, t) -> (F, w)
Jvp = Callable[..., tuple[Any, Any]]  # (function, primals, tangents) -> (value, tangent)


@dataclass(frozen=True)
class NetworkTangent:
    """The network's value at (x_t, t) and its change along the path."""

    F: Tensor  # (B, C, H, W), recorded for autograd
    w: Tensor  # (B,) learned log weight, recorded for autograd
    dF: Tensor  # (B, C, H, W) cos(t) sin(t) dF/dt, not recorded


def split_jvp(
    fn: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Any, Any]:
    """The reference: `torch.func.jvp` without gradients, then a second pass that records the value.

    The random state is restored between the passes, so that dropout draws the same mask in both.
    """
    devices = [primals[0].device] if primals[0].is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), differentiable_attention():
        tangent = torch.func.jvp(fn, primals, tangents)[1]
    return fn(*primals), tangent


def differentiable_attention() -> AbstractContextManager[None]:
    """While entered, attention is written out: the fused kernels know no `torch.func.jvp`."""
    return sdpa_kernel(SDPBackend.MATH)


JVPS: dict[Form, Jvp] = {Form.dual: dual.jvp, Form.split: split_jvp}


def network_tangent(
    net: Network,
    x_t: Tensor,
    t: Tensor,
    dxdt: Tensor,
    *,
    sigma_data: float,
    jvp: Jvp,
    d: Tensor | None = None,
) -> NetworkTangent:
    """F, w and cos(d) sin(d) dF/dt along dx/dt  (Lu & Song 2025, sec. 4.1, "JVP rearrangement").

    d (B,) is the way t - s that a flow map goes; None: t, to the data. cos(d) sin(d) is multiplied
    into the input tangents, where it is harmless; multiplied onto dF/dt it would meet an overflow
    near 0 and pi/2.
    """
    d = t if d is None else d
    cos_sin = torch.cos(d) * torch.sin(d)
    tangents = (broadcast(cos_sin, x_t) * dxdt / sigma_data, cos_sin)
    (F, w), (dF, _) = jvp(net, (x_t / sigma_data, t), tangents)
    return NetworkTangent(F=F, w=w, dF=dF.detach())


def rearranged_tangent(
    F: Tensor, dF: Tensor, x_t: Tensor, dxdt: Tensor, t: Tensor, *, r: float, sigma_data: float
) -> Tensor:
    """g = -cos^2(t) (sd F - dx/dt) - r (cos(t) sin(t) x_t + sd dF)  (Lu & Song 2025, Algorithm 1).

    `dF` is cos(t) sin(t) dF/dt, as `network_tangent` gives it. At r = 1, g = cos(t) df/dt; at r =
    0 it is the diffusion loss's residual times -cos^2(t). Of a flow map f(x_t, t, s), `t` is the
    way d = t - s, and g = cos(d) df/dt; on the diagonal d = 0 it is the diffusion loss's.
    """
    t = broadcast(t, x_t)
    cos, sin = torch.cos(t), torch.sin(t)
    return -(cos**2) * (sigma_data * F - dxdt) - r * (cos * sin * x_t + sigma_data * dF)


def difference_tangent(
    F: Tensor,
    F_s: Tensor,
    x_t: Tensor,
    dxdt: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    r: float,
    sigma_data: float,
) -> Tensor:
    """g = r cos(t) (f(x_t, t) - f(x_s, s)) / (t - s) - (1 - r) cos^2(t) (sd F - dx/dt).

    `rearranged_tangent` with a difference for df/dt (Song et al. 2023, discrete time): both are
    the same in the limit s -> t, at every r. `F_s` is F(x_s, s), s < t.
    """
    x_s = step(x_t, dxdt, t, s)
    f_t, f_s = consistency(x_t, F, t, sigma_data), consistency(x_s, F_s, s, sigma_data)
    t, s = broadcast(t, x_t), broadcast(s, x_t)
    change = torch.cos(t) * (f_t - f_s) / (t - s)
    return r * change - (1 - r) * torch.cos(t) ** 2 * (sigma_data * F - dxdt)


def discrete_tangent(
    F: Tensor,
    F_s: Tensor,
    x_t: Tensor,
    dxdt: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    r: float,
    sigma_data: float,
) -> Tensor:
    """g = -cos^2(s) (sd F - dx/dt) - r cos(s) sin(s) (x_t + sd dF), d = t - s.

    dF = (cos(d) F - F_s) / sin(d): `rearranged_tangent` in discrete time, in the manner of Lu &
    Song 2025, Algorithm 2. `F_s` is F(x_s, s), x_s the DDIM step from x_t to s < t. At r = 1,
    g = cos(s) (f(x_t, t) - f(x_s, s)) / sin(d); as s -> t it is Algorithm 1's at every r. Of a flow
    map, `t` and `s` are the ways that are left to its end; on its diagonal both are 0, F is F_s,
    and g is the diffusion loss's.
    """
    s, d = broadcast(s, x_t), broadcast(t - s, x_t)
    cos, sin = torch.cos(s), torch.sin(s)
    change = (torch.cos(d) * F - F_s) / torch.sin(d).clamp_min(SMALLEST_TURN)
    return -(cos**2) * (sigma_data * F - dxdt) - r * cos * sin * (x_t + sigma_data * change)


def lagrangian_tangent(
    F: Tensor, dF: Tensor, x_t: Tensor, dxds: Tensor, d: Tensor, *, sigma_data: float
) -> Tensor:
    """g = -cos(d) (cos(d) sd F - dx/ds) - cos(d) sin(d) x_t + sd dF = -cos(d) (df/ds - dx/ds).

    `dF` is cos(d) sin(d) dF/ds, d = t - s, and `dxds` the velocity at the map's end (f(x_t, t, s),
    s): the end is to move along the ODE (Boffi et al. 2025, the Lagrangian condition). On the
    diagonal d = 0 it is the diffusion loss's residual.
    """
    d = broadcast(d, x_t)
    cos, sin = torch.cos(d), torch.sin(d)
    return -cos * (cos * sigma_data * F - dxds) - cos * sin * x_t + sigma_data * dF


DISCRETE = {Rule.lu_song: discrete_tangent, Rule.song: difference_tangent}


def norm_of(g: Tensor, norm: Norm) -> Tensor:
    """(B, C, H, W) -> (B,): the L2 norm over an image's values, or their root mean square."""
    squares = g.square().flatten(1)
    return (squares.mean(1) if norm is Norm.rms else squares.sum(1)).sqrt()


class TangentControl(Protocol):
    """What is done to g before it becomes a target: (B, C, H, W) -> (B, C, H, W)."""

    def __call__(self, g: Tensor) -> Tensor: ...


class Normalize:
    """g / (||g|| + c)  (Lu & Song 2025, sec. 4.1). With D values per image and the L2 norm,
    c sqrt(D) in place of c gives the same direction, and a length smaller by sqrt(D) (28 on MNIST).
    """

    def __init__(self, *, c: float, norm: Norm | str) -> None:
        self.c = c
        self.norm = Norm(norm)

    def __call__(self, g: Tensor) -> Tensor:
        return g / (broadcast(norm_of(g, self.norm), g) + self.c)


class Power:
    """g / (||g||^2 + c)^p: MeanFlow's adaptive weight, seen as a length of g (Geng et al. 2025).

    The loss ||F - F^- - g||^2 has the gradient of -2 <F, g>, so a weight of it is one of g.
    """

    def __init__(self, *, p: float, c: float, norm: Norm | str) -> None:
        self.p, self.c = p, c
        self.norm = Norm(norm)

    def __call__(self, g: Tensor) -> Tensor:
        return g / broadcast((norm_of(g, self.norm).square() + self.c) ** self.p, g)


class Clip:
    """Every value of g held in [-bound, bound], the alternative (Lu & Song 2025, sec. 4.1)."""

    def __init__(self, *, bound: float) -> None:
        self.bound = bound

    def __call__(self, g: Tensor) -> Tensor:
        return g.clamp(-self.bound, self.bound)


class Raw:
    """g as it is: what the paper's figure 5a shows to fail."""

    def __call__(self, g: Tensor) -> Tensor:
        return g
