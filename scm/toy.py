"""The toy's network beside the exact solution: errors as metrics, and pictures over x and t.

Every input follows from the run's seed. The exact solution is computed in float64 on the CPU.
Knows nothing of training or of files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scm import plots, rng, samplers, trigflow
from scm.data import Dataset
from scm.exact import Mixture
from scm.plots import Lines, Panel
from scm.samplers import Sampler
from scm.trajectories import ExactOde, LearnedOde, Tangents, start_noises, states, tangents

DrawTimes = Callable[..., Tensor]  # (n, generator, device) -> (n,) times of the proposal
POINTS = 4096  # of every error: its own spread is then about a hundredth
LINES = 15  # trajectories in a picture
TIMES = 64  # of a trajectory, and of a map
PLACES = 80  # x values of a map
REACH = 3.0  # a map shows |x| up to this many sigma_data
T_MAX = float(np.arctan(80 / 0.5))  # where sampling starts (Lu & Song 2025)
UNITS = "the data's units"
STEP = 0.01  # radians between the two ends of the discrete difference


@dataclass(frozen=True)
class Toy:
    """Compares networks of one objective with the closed forms of their data."""

    exact: Mixture
    name: str  # the objective's
    learns_velocity: bool  # and whether its networks are diffusion models
    seed: int
    device: torch.device

    @property
    def learns(self) -> str:
        """What f(x, t) is to become."""
        return "denoiser" if self.learns_velocity else "consistency"

    def truth(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact denoiser, or the exact consistency function: (B, ...), (B,) -> (B, ...)."""
        if self.learns_velocity:
            return self.exact.posterior_mean(x, t)
        return self.exact.consistency(x, t)

    @torch.no_grad()
    def metrics(
        self, net: nn.Module, chosen: dict[str, Sampler], dataset: Dataset, draw_times: DrawTimes
    ) -> dict[str, float]:
        """Root mean square errors, in the data's units.

        Of f over noised data at the proposal's times, and of the image that a sampler makes of a
        noise x_T against the exact ODE's end, for samplers that draw no further noise.
        """
        x0 = dataset.test_batch(POINTS).x0.cpu()
        noise = rng.generator(self.seed, "toy-noise", device="cpu")
        times = rng.generator(self.seed, "toy-times", device="cpu")
        z = torch.randn(x0.shape, generator=noise) * self.exact.sigma_data
        t = draw_times(POINTS, generator=times, device="cpu")
        x = trigflow.interpolate(x0, z, t)
        found = {f"eval/toy/{self.learns}_rms": _rms(self._f(net, x, t) - self.truth(x, t))}
        for name, sampler in chosen.items():
            if sampler.follows_start:
                found[f"eval/toy/{name}_rms"] = self._sampler_error(net, sampler)
        return found

    def _sampler_error(self, net: nn.Module, sampler: Sampler) -> float:
        noise = samplers.noise_blocks(
            self.seed, 0, POINTS, image_shape=(1, 1, 1), sigma_data=self.exact.sigma_data
        )
        made = sampler(net, lambda k: noise(k).to(self.device), None).cpu()
        return _rms(
            made - self.exact.consistency(noise(0), torch.full((POINTS,), sampler.times[0]))
        )

    def _f(self, net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """The network's f on the CPU."""
        F, _ = net(x.to(self.device) / self.exact.sigma_data, t.to(self.device), None)
        return trigflow.consistency(x, F.cpu(), t, self.exact.sigma_data)

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
        heun = samplers.Heun(
            steps=TIMES, sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=self.exact.sigma_data
        )
        points = list(states(ExactOde(self.exact), start, heun.times))
        t = torch.tensor(heun.times)
        x = torch.stack([x for _, x in points])
        at = t.repeat_interleave(LINES)
        learned = self._f(net, x.flatten(0, 1), at)
        if self.learns_velocity:
            ode = LearnedOde(net, None, heun)
            ends = [x.cpu() for _, x in states(ode, start.to(self.device), heun.times)]
            beside = Lines("learned", torch.stack(ends), "--")
        else:
            end = torch.full_like(x, torch.nan)
            end[-1] = learned[:LINES]
            beside = Lines("f(x_T, T), learned", end, "o")
        panels = [
            Panel("trajectories", f"x_t ({UNITS})", [Lines("exact", x), beside]),
            Panel(
                f"{self.learns} along the exact trajectories",
                f"f(x_t, t) ({UNITS})",
                [
                    Lines("exact", self.truth(x.flatten(0, 1), at).view_as(x)),
                    Lines("learned", learned.view_as(x), "--"),
                ],
            ),
        ]
        return plots.over_time(t, panels, f"{self.name}: exact and learned trajectories")

    def _plane(self, net: nn.Module) -> np.ndarray:
        """f over the plane, learned and exact."""
        x, t = self._axes(0.0)
        places, times = x.repeat(TIMES).view(-1, 1, 1, 1), t.repeat_interleave(PLACES)
        maps = {"learned": self._f(net, places, times), "exact": self.truth(places, times)}
        return self._map(x, t, maps, f"{self.name}: {self.learns} f(x, t)", UNITS)

    def _tangents(self, net: nn.Module) -> np.ndarray:
        """g of the network along the exact ODE, by JVP and by a difference."""
        x, t = self._axes(0.02)
        places = x.view(-1, 1, 1, 1)
        found = [self.tangents_at(net, places, time) for time in t.tolist()]
        maps = {
            "JVP": torch.stack([point.jvp.cpu() for point in found]),
            "discrete": torch.stack([point.discrete.cpu() for point in found]),
        }
        return self._map(
            x, t, maps, f"{self.name}: tangent g = cos(t) df/dt", f"{UNITS} per radian"
        )

    def tangents_at(self, net: nn.Module, x: Tensor, t: float) -> Tangents:
        """Tangents of the network at (x, t) along the exact ODE."""
        return tangents(
            net,
            ExactOde(self.exact),
            x.to(self.device),
            t,
            step=STEP,
            label=None,
            sigma_data=self.exact.sigma_data,
        )

    def _axes(self, t_min: float) -> tuple[Tensor, Tensor]:
        reach = REACH * self.exact.sigma_data
        return torch.linspace(-reach, reach, PLACES), torch.linspace(t_min, T_MAX, TIMES)

    def _map(
        self, x: Tensor, t: Tensor, maps: dict[str, Tensor], title: str, unit: str
    ) -> np.ndarray:
        """Values in the order of (time, place) as maps with t to the right and x upwards."""
        return plots.compared_maps(
            t,
            x,
            {name: values.reshape(TIMES, PLACES).T for name, values in maps.items()},
            xlabel=plots.TIME,
            ylabel=f"x_t ({UNITS})",
            unit=unit,
            title=title,
        )


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
