"""The toy's network beside the exact solution: errors as metrics, and pictures over x and t.

Every input follows from the run's seed. The exact solution is computed in float64 on the CPU.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scm.config.parts import Kind
from scm.core import rng
from scm.data.dataset import Dataset
from scm.data.mixture import Mixture
from scm.evaluation import pictures
from scm.evaluation.pictures import Lines, Panel
from scm.evaluation.trajectories import (
    ExactOde,
    LearnedOde,
    consistency_of,
    start_noises,
    states,
    tangents,
)
from scm.method import samplers, schedules, trigflow
from scm.method.samplers import Sampler
from scm.method.times import Times

POINTS = 4096  # of every error: its own spread is then about a hundredth
LINES = 15  # trajectories in a picture
TIMES = 64  # of a trajectory, and of a map
PLACES = 80  # x values of a map
REACH = 3.0  # a map shows |x| up to this many sigma_data
T_MAX = float(np.arctan(schedules.SIGMA_MAX / 0.5))  # where sampling starts (Lu & Song 2025)
UNITS = "the data's units"


@dataclass(frozen=True)
class Toy:
    """Compares networks of one objective with the closed forms of their data."""

    exact: Mixture
    name: str  # the objective's
    kind: Kind  # what its networks learn
    seed: int
    device: torch.device

    @property
    def learns(self) -> str:
        """What f(x, t) is to become."""
        return "denoiser" if self.kind is Kind.velocity else "consistency"

    def truth(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact denoiser, or the exact consistency function: (B, ...), (B,) -> (B, ...)."""
        if self.kind is Kind.velocity:
            return self.exact.posterior_mean(x, t)
        return self.exact.consistency(x, t)

    @torch.no_grad()
    def metrics(
        self, net: nn.Module, chosen: dict[str, Sampler], dataset: Dataset, draw_times: Times
    ) -> dict[str, float]:
        """Root mean square errors, in the data's units.

        Of f over noised data at the proposal's times, and of the image that a sampler makes of a
        noise x_T against the exact ODE's end, for samplers that draw no further noise.
        """
        sd = self.exact.sigma_data
        x0 = dataset.test_batch(POINTS).x0.cpu()
        noise = rng.generator(self.seed, "toy-noise", device="cpu")
        times = rng.generator(self.seed, "toy-times", device="cpu")
        t = draw_times(POINTS, generator=times, device="cpu")
        x = trigflow.interpolate(x0, torch.randn(x0.shape, generator=noise) * sd, t)
        found = {f"{self.learns}_rms": _rms(self._f(net, x, t) - self.truth(x, t))}
        z = samplers.noise_blocks(self.seed, 0, POINTS, image_shape=(1, 1, 1), sigma_data=sd)
        for name, sampler in chosen.items():
            if sampler.follows_start:
                made = sampler(net, lambda k: z(k).to(self.device), None).cpu()
                end = self.exact.consistency(z(0), torch.full((POINTS,), sampler.times[0]))
                found[f"{name}_rms"] = _rms(made - end)
        return {f"eval/toy/{name}": value for name, value in found.items()}

    def _f(self, net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """The network's f on the CPU."""
        x, t = x.to(self.device), t.to(self.device)
        return consistency_of(net, x, t, None, self.exact.sigma_data).cpu()

    @torch.no_grad()
    def pictures(self, net: nn.Module) -> dict[str, np.ndarray]:
        """Trajectories over t, f over the (x, t) plane, and the tangent field."""
        return {
            "toy_trajectories": self._trajectories(net),
            f"toy_{self.learns}": self._plane(net),
            "toy_tangent": self._tangents(net),
        }

    def _trajectories(self, net: nn.Module) -> np.ndarray:
        """The exact ODE's trajectories from noises at even quantiles, and what f says on them."""
        start = start_noises(LINES, (1, 1, 1), sigma_data=self.exact.sigma_data, seed=self.seed)
        heun = samplers.Heun(steps=TIMES, sigma_data=self.exact.sigma_data)
        t = torch.tensor(heun.times)
        x = torch.stack([x for _, x in states(ExactOde(self.exact), start, heun.times)])
        at = t.repeat_interleave(LINES)
        learned = self._f(net, x.flatten(0, 1), at)
        if self.kind is Kind.velocity:
            points = states(LearnedOde(net, None, heun), start.to(self.device), heun.times)
            beside = Lines("learned", torch.stack([x.cpu() for _, x in points]), "--")
        else:
            end = torch.full_like(x, torch.nan)
            end[-1] = learned[:LINES]
            beside = Lines("f(x_T, T), learned", end, "o")
        truth = Lines("exact", self.truth(x.flatten(0, 1), at).view_as(x))
        panels = [
            Panel("trajectories", f"x_t ({UNITS})", [Lines("exact", x), beside]),
            Panel(
                f"{self.learns} along the exact trajectories",
                f"f(x_t, t) ({UNITS})",
                [truth, Lines("learned", learned.view_as(x), "--")],
            ),
        ]
        return pictures.over_time(t, panels, f"{self.name}: exact and learned trajectories")

    def _plane(self, net: nn.Module) -> np.ndarray:
        """f over the plane, learned and exact."""
        t = torch.linspace(0, T_MAX, TIMES)
        x, at = self._places().repeat(TIMES, 1, 1, 1), t.repeat_interleave(PLACES)
        maps = {"learned": self._f(net, x, at), "exact": self.truth(x, at)}
        return self._map(t, maps, f"{self.learns} f(x, t)", UNITS)

    def _tangents(self, net: nn.Module) -> np.ndarray:
        """g of the network along the exact ODE, by JVP and by a difference."""
        t, x = torch.linspace(0.02, T_MAX, TIMES), self._places().to(self.device)
        ode, sd = ExactOde(self.exact), self.exact.sigma_data
        found = [tangents(net, ode, x, time, sigma_data=sd) for time in t.tolist()]
        maps = {
            "JVP": torch.stack([at.jvp for at in found]).cpu(),
            "discrete": torch.stack([at.discrete for at in found]).cpu(),
        }
        return self._map(t, maps, "tangent g = cos(t) df/dt", f"{UNITS} per radian")

    def _places(self) -> Tensor:
        reach = REACH * self.exact.sigma_data
        return torch.linspace(-reach, reach, PLACES).view(-1, 1, 1, 1)

    def _map(self, t: Tensor, maps: dict[str, Tensor], what: str, unit: str) -> np.ndarray:
        """Values in the order of (time, place) as maps with t to the right and x upwards."""
        return pictures.compared_maps(
            t,
            self._places().flatten(),
            {name: values.reshape(TIMES, PLACES).T for name, values in maps.items()},
            xlabel=pictures.TIME,
            ylabel=f"x_t ({UNITS})",
            unit=unit,
            title=f"{self.name}: {what}",
        )


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
