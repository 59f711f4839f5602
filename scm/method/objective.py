"""The objectives: where path, velocity, tangent, weights and network meet in one loss.

A named method (diffusion, sCT, sCD, ...) is one yaml of conf/objective that puts these together. An
objective returns per-sample losses and named terms; steps and optimisers are the loop's.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from scm.config.methods import Form, Norm
from scm.method import schedules, trigflow
from scm.method.derivative import Derivative, Path
from scm.method.network import Call, Draw, call
from scm.method.samplers import Heun
from scm.method.tangent import (
    JVPS,
    SMALLEST_TURN,
    TangentControl,
    lagrangian_tangent,
    norm_of,
)
from scm.method.times import Times
from scm.method.velocity import Velocity
from scm.method.weighting import Weighting, adaptive_loss


@dataclass(frozen=True)
class Pull:
    """What the network says, recorded, and where it is to move, not recorded."""

    value: Tensor  # (B, C, H, W)
    target: Tensor  # (B, C, H, W)
    w: Tensor  # (B,) the learned log weight
    terms: dict[str, Tensor]  # further (B,) values worth logging, detached; keys are log tags


@dataclass(frozen=True)
class Loss:
    """What an objective makes of a batch, unreduced."""

    loss: Tensor  # (B,) what is minimised
    error: Tensor  # (B,) the unweighted mean squared error that the loss is about
    w: Tensor  # (B,) the log weight in force
    terms: dict[str, Tensor]  # as the pull's


class Matching(Protocol):
    """A loss on samples that a network makes itself, beside an objective's (`scm.method.matching`).

    A second network, the score network, learns these samples.
    """

    score: nn.Module
    score_steps: int  # for each step of the network itself
    draw_times: Times  # of the noise that samples are seen in

    @property
    def calls(self) -> int:
        """Of the network, that a sample takes at most."""
        ...

    def loss(self, net: nn.Module, draw: Draw, call: Call) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) to add, and terms to log."""
        ...

    def of_samples(self, net: nn.Module) -> "Objective":
        """What the score network is to learn: the samples of `net`."""
        ...


class Objective(ABC):
    """e^w ||value - target||^2 / D - w, per sample.

    A subclass says what the value and its target are: its residual.
    """

    def __init__(
        self,
        *,
        velocity: Velocity,  # dx/dt of the path
        times: Times,  # which noise levels training sees
        adaptive_weight: bool,  # e^w error - w, or the plain error
        weighting: Weighting,  # the prior weight of a noise level
        sigma_data: float,
    ) -> None:
        self.velocity = velocity
        self.draw_times = times
        self.adaptive_weight = adaptive_weight
        self.weighting = weighting
        self.sigma_data = sigma_data
        self.call = call
        self.matching: Matching | None = None

    @abstractmethod
    def pull(self, net: nn.Module, x_t: Tensor, dxdt: Tensor, draw: Draw, step: int) -> Pull:
        """What `net` says at (x_t, t), and where it is to move at training step `step`."""

    def times(self, t: Tensor) -> Tensor:
        """The times (B,) that stand for the drawn ones."""
        return t

    def path(self, net: nn.Module, draw: Draw) -> tuple[Draw, Tensor, Any]:
        """The draw, x_t and dx/dt: where the batch stands, and what its pull is to be told."""
        x_t = trigflow.interpolate(draw.x0, draw.z, draw.t)
        return draw, x_t, self.velocity(net, x_t, draw, self.call)

    def loss(self, net: nn.Module, draw: Draw, step: int) -> Loss:
        """The loss of `net` at training step `step`; w is 0 where the learned weight is off."""
        draw = replace(draw, t=self.times(draw.t))
        with torch.no_grad():
            draw, x_t, towards = self.path(net, draw)
        pull = self.pull(net, x_t, towards, draw, step)
        error = mean_square(pull.value - pull.target)
        w = pull.w if self.adaptive_weight else torch.zeros_like(pull.w)
        loss, terms = adaptive_loss(self.weighting.on_loss(draw.t) * error, w), pull.terms
        if self.matching is not None and draw.own is not None:
            further, more = self.matching.loss(net, draw.own, self.call)
            loss, terms = loss + further, terms | more
        return Loss(loss=loss, error=error.detach(), w=w.detach(), terms=terms)

    def beside(self, matching: Matching | None) -> Self:
        """A copy whose loss is the sum of its own and `matching`'s, where the draw is for both."""
        mine = copy.copy(self)
        mine.matching = matching
        return mine

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """A copy whose passes through networks are functions compiled by `compile`.

        The networks stay as they are, and with them every other user of them and the names of
        their weights.
        """
        mine = copy.copy(self)
        mine.call = compile(self.call)
        return mine


def mean_square(residual: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,): ||residual||^2 / D, in float32 or better."""
    return residual.square().flatten(1).mean(1)


class Regression(Objective):
    """sigma_data F is to be dx/dt: TrigFlow's diffusion loss (Lu & Song 2025, sec. 3)."""

    def pull(self, net: nn.Module, x_t: Tensor, dxdt: Tensor, draw: Draw, step: int) -> Pull:
        """||sigma_data F - v_t||^2."""
        F, w = self.call(net, x_t / self.sigma_data, draw.t, draw.label)
        return Pull(self.sigma_data * F, dxdt, w, {})


class Tangential(Objective):
    """F is to move along a tangent g: ||F - F^- - g||^2, F^- being F without gradient."""

    def __init__(
        self,
        *,
        tangent: TangentControl,  # what is done to g
        tangent_warmup_steps: int,  # H
        **common: Any,  # of every objective
    ) -> None:
        super().__init__(**common)
        self.tangent = tangent
        self.tangent_warmup_steps = tangent_warmup_steps

    def r(self, step: int) -> float:
        """The weight of g's unstable part at this step."""
        return schedules.tangent_warmup(step, self.tangent_warmup_steps)

    def along(self, F: Tensor, w: Tensor, g: Tensor, t: Tensor, r: float) -> Pull:
        """The pull of g. The squared error is ||g||^2 / D; its gradient is that of -<F, g>.

        `r` is logged: 0 while the tangent's size says nothing about a run (`scm.training.watch`).
        """
        with torch.no_grad():
            raw_norm = norm_of(g, Norm.rms)
            scale = self.weighting.on_tangent(t)
            target = F + self.tangent(trigflow.broadcast(scale, g) * g)
        terms = {"tangent/rms": raw_norm, "tangent/r": torch.full_like(raw_norm, r)}
        return Pull(F, target, w, terms)


class Eulerian(Tangential):
    """g is the tangent of f along the path (Lu & Song 2025, Algorithm 1), also of a flow map.

    Training and distillation differ in the velocity, continuous and discrete time in the
    derivative. Improved MeanFlow looks along the network's own direction, which has no noise of
    pairs, and has the pair's velocity in the residual alone (Geng et al. 2025).
    """

    def __init__(
        self,
        *,
        derivative: Derivative,  # how df/dt is found
        direction: Velocity | None,  # along which; None: the velocity's
        **tangential: Any,
    ) -> None:
        super().__init__(**tangential)
        self.derivative = derivative
        self.direction = direction

    def times(self, t: Tensor) -> Tensor:
        """Those of the derivative's grid, where it has one."""
        return self.derivative.times(t)

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """As above, with the pass that carries the tangent."""
        mine = super().compiled(compile)
        mine.derivative = self.derivative.compiled(compile)
        return mine

    def pull(self, net: nn.Module, x_t: Tensor, dxdt: Tensor, draw: Draw, step: int) -> Pull:
        """g = cos(t) df/dt at r = 1; with s, cos(t - s) df/dt."""
        r, along = self.r(step), dxdt
        if self.direction is not None:
            with torch.no_grad():
                along = self.direction.at(net, x_t, draw.t, draw, self.call)
        path = Path(draw.t, x_t, dxdt, along, draw.label, draw.s)
        F, w, g = self.derivative(net, path, r, step, self.call)
        return self.along(F, w, g, draw.t, r if self.derivative.settled(step) else 0.0)


class Lagrangian(Tangential):
    """g moves the map's end along the ODE: df/ds = dx/ds at (f(x_t, t, s), s).

    LSD with the network's own velocity, LMD with a teacher's (Boffi et al. 2025). The derivative is
    taken along s alone, by one pass that carries it. On the diagonal s = t the map learns the
    velocity of the draw. The Eulerian warm-up, a part of g, has no counterpart: without its sd dF
    g asks F for the velocity at the end of the way. So here r lengthens the way, from diffusion on.
    """

    def __init__(self, *, form: str, **tangential: Any) -> None:
        super().__init__(**tangential)
        self.jvp = JVPS[Form(form)]

    def compiled(self, compile: Callable[[Any], Any]) -> Self:
        """As above, with the pass that carries the tangent."""
        mine = super().compiled(compile)
        mine.jvp = compile(self.jvp)
        return mine

    def path(self, net: nn.Module, draw: Draw) -> tuple[Draw, Tensor, Any]:
        """As above; no dx/dt where the velocity at the map's end is it on the diagonal anyway."""
        if self.velocity.of_draw:
            return super().path(net, draw)
        return draw, trigflow.interpolate(draw.x0, draw.z, draw.t), None

    def pull(self, net: nn.Module, x_t: Tensor, dxdt: Tensor | None, draw: Draw, step: int) -> Pull:
        """g = -cos(d) (df/ds - dx/ds), d = r (t - s): the warm-up lengthens the way."""
        sd, t, r = self.sigma_data, draw.t, self.r(step)
        s = torch.zeros_like(t) if draw.s is None else draw.s
        s = s if r == 1 else t - r * (t - s)
        cos_sin = torch.cos(t - s) * torch.sin(t - s)
        (F, w), (dF, _) = self.jvp(lambda to: net(x_t / sd, t, draw.label, to), (s,), (cos_sin,))
        with torch.no_grad():
            end = trigflow.flow_map(x_t, F, t, s, sd)
            dxds = self.velocity.at(net, end, s, draw, self.call)
            if dxdt is not None:
                dxds = torch.where(trigflow.broadcast(s == t, end), dxdt, dxds)
            g = lagrangian_tangent(F, dF.detach(), x_t, dxds, t - s, sigma_data=sd)
        # a way that still lengthens says nothing: the tangent grows with it faster than r does
        return self.along(F, w, g, t, r if r == 1 else 0.0)


class Semigroup(Objective):
    """f(x_t, t, s) is to be f(f(x_t, t, u), u, s) for a u between them (PSD, shortcut models).

    u = (t + s) / 2. No derivative is needed; on the diagonal the map learns the draw's velocity.
    """

    def pull(self, net: nn.Module, x_t: Tensor, dxdt: Tensor, draw: Draw, step: int) -> Pull:
        """||sd F - (cos(d) x_t - f(f(x_t, t, u), u, s)) / sin(d)||^2; the velocity where d = 0."""
        sd, t, label = self.sigma_data, draw.t, draw.label
        s = torch.zeros_like(t) if draw.s is None else draw.s
        F, w = self.call(net, x_t / sd, t, label, s)
        with torch.no_grad():
            u = (t + s) / 2
            F_u, _ = self.call(net, x_t / sd, t, label, u)
            x_u = trigflow.flow_map(x_t, F_u, t, u, sd)
            F_s, _ = self.call(net, x_u / sd, u, label, s)
            end = trigflow.flow_map(x_u, F_s, u, s, sd)
            d = trigflow.broadcast(t - s, x_t)
            turned = (torch.cos(d) * x_t - end) / torch.sin(d).clamp_min(SMALLEST_TURN)
            target = torch.where(d == 0, dxdt, turned)
        return Pull(sd * F, target, w, {})


class Endpoint(Objective):
    """f is to be the end of the ODE's trajectory through x_t (CMT, Hu et al. 2025).

    The trajectories run from pure noise to data, by Heun's scheme on EDM's grid. Each is used at as
    many times as the scheme has steps, so that a sample costs about two calls of the velocity.
    Data are not needed: a draw gives noise, labels and times, which the grid's nearest stand for.
    """

    def __init__(self, *, steps: int, **common: Any) -> None:
        super().__init__(**common)
        self.solver = Heun(steps=steps, sigma_data=self.sigma_data)
        self.grid = torch.tensor(self.solver.times[:-1], dtype=torch.float64)  # falling

    def times(self, t: Tensor) -> Tensor:
        """The grid's nearest ones."""
        return self.grid.to(t)[self._nearest(t)]

    def _nearest(self, t: Tensor) -> Tensor:
        return (t[:, None] - self.grid.to(t)).abs().argmin(1)

    def path(self, net: nn.Module, draw: Draw) -> tuple[Draw, Tensor, Any]:
        """The draw with its trajectories' labels, x_t on them, and their ends."""
        starts = draw.part(slice(-(-len(draw.t) // len(self.grid))))
        x = starts.z

        def field(x: Tensor, time: float) -> Tensor:
            here = torch.full_like(starts.t, time)
            return self.velocity.at(net, x, here, starts, self.call) / self.sigma_data

        states = [x]
        for s, t in pairwise(self.solver.times):
            x = self.solver.step(field, x, s, t)
            states.append(x)
        mine = torch.arange(len(draw.t), device=x.device) % len(starts.t)
        x_t = torch.stack(states)[self._nearest(draw.t), mine]
        label = None if draw.label is None else draw.label[mine]
        return replace(draw, label=label), x_t, x[mine]

    def pull(self, net: nn.Module, x_t: Tensor, towards: Tensor, draw: Draw, step: int) -> Pull:
        """||f(x_t, t) - x_0||^2, x_0 being the end."""
        F, w = self.call(net, x_t / self.sigma_data, draw.t, draw.label)
        return Pull(trigflow.consistency(x_t, F, draw.t, self.sigma_data), towards, w, {})
