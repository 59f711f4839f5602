"""Distribution matching: samples move to where the data are more likely than the samples are.

The gradient of KL(samples || data), seen through noise, is the difference of two scores (Wang et
al. 2023, VSD; Yin et al. 2024, DMD). The data's is a diffusion model's; the samples' is learned on
the way by a second network, the score network. Shapes: images (B, C, H, W), times (B,).
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scm.method import trigflow
from scm.method.network import Call, Draw
from scm.method.objective import Regression, mean_square
from scm.method.times import Times
from scm.method.velocity import Pair, Velocity
from scm.method.weighting import Unit

SMALLEST_ERROR = 1e-6  # of a denoiser, below which nothing is divided by it


class Dmd:
    """A loss beside an objective's: ||x - (x + gap)^-||^2 / 2D of samples x of the network's own.

    gap = (D_data(x_t) - D_samples(x_t)) / mean |x - D_data(x_t)|, D being denoisers and x_t the
    sample in fresh noise (Yin et al. 2024, eq. 7 and 8). Sample i takes 1 + i mod K calls, as when
    it is drawn for use; the last call is recorded, those before it are not (Yin et al. 2024, DMD2).
    Raises ValueError where the times of further calls do not fall from below sigma_max's.
    """

    def __init__(
        self,
        *,
        score: nn.Module,  # a diffusion model of the samples
        weight: float,  # of this loss beside the objective's
        score_steps: int,  # of the score network for each of the student's
        calls_at: list[float],  # times of the K - 1 further calls in radians, falling
        sigma_max: float,  # noise level of the first call
        velocity: Velocity,  # of the data
        times: Times,  # at which the two are compared, and the score network learns
        sigma_data: float,
    ) -> None:
        self.score = score
        self.weight, self.score_steps = weight, score_steps
        top = float(trigflow.time_from_sigma(torch.tensor(sigma_max).double(), sigma_data))
        self.calls_at = [top, *calls_at]
        if sorted({*self.calls_at, 0.0}, reverse=True) != [*self.calls_at, 0.0]:
            raise ValueError(f"calls_at={calls_at}: must fall from below {top:.4f} rad to above 0")
        self.velocity, self.draw_times = velocity, times
        self.sigma_data = sigma_data

    @property
    def calls(self) -> int:
        """K, the most calls that a sample takes."""
        return len(self.calls_at)

    def of_samples(self, net: nn.Module) -> "SamplesScore":
        """The objective of the score network, which learns the samples of `net`."""
        return SamplesScore(self, net)

    def samples(self, net: nn.Module, draw: Draw, call: Call) -> Tensor:
        """x = f(x_t, t) at each sample's last call, recorded where gradients are."""
        assert draw.noise is not None
        sd, x_t = self.sigma_data, draw.noise[:, 0]
        t = x_t.new_full((len(x_t),), self.calls_at[0])
        for k, time in enumerate(self.calls_at[1:], 1):
            rows = [i for i in range(len(t)) if (draw.first + i) % self.calls >= k]
            label = None if draw.label is None else draw.label[rows]
            with torch.no_grad():
                F, _ = call(net, x_t[rows] / sd, t[rows], label)
                x = trigflow.consistency(x_t[rows], F, t[rows], sd)
                x_t, t = x_t.clone(), t.clone()
                t[rows] = time
                x_t[rows] = trigflow.interpolate(x, draw.noise[rows, k], t[rows])
        F, _ = call(net, x_t / sd, t, draw.label)
        return trigflow.consistency(x_t, F, t, sd)

    @torch.no_grad()
    def gap(self, net: nn.Module, x: Tensor, draw: Draw, call: Call) -> Tensor:
        """Where samples x are to move, in units of the data's denoising error."""
        t, zero = draw.t, torch.zeros_like(draw.t)
        x_t = trigflow.interpolate(x, draw.z, t)
        F, _ = call(self.score, x_t / self.sigma_data, t, draw.label)
        samples = trigflow.consistency(x_t, F, t, self.sigma_data)
        data = trigflow.step(x_t, self.velocity.at(net, x_t, t, draw, call), t, zero)
        error = (x - data).abs().flatten(1).mean(1).clamp_min(SMALLEST_ERROR)
        return (data - samples) / trigflow.broadcast(error, x)

    def loss(self, net: nn.Module, draw: Draw, call: Call) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) to add to an objective's loss, and terms to log."""
        x = self.samples(net, draw, call)
        gap = self.gap(net, x.detach(), draw, call)
        loss = self.weight / 2 * mean_square(x - (x.detach() + gap))
        return loss, {"matching/gap": mean_square(gap).sqrt()}


class SamplesScore(Regression):
    """The score network's objective: the diffusion loss on samples of another network."""

    def __init__(self, matching: Dmd, net: nn.Module) -> None:
        super().__init__(
            velocity=Pair(),
            times=matching.draw_times,
            adaptive_weight=False,
            weighting=Unit(sigma_data=matching.sigma_data),
            sigma_data=matching.sigma_data,
        )
        self.made_by = matching
        self.net = net  # whose samples; it does not change

    def path(self, net: nn.Module, draw: Draw) -> tuple[Draw, Tensor, Any]:
        """The draw with samples in its images' place, x_t and dx/dt."""
        x0 = self.made_by.samples(self.net, draw, self.call)
        return super().path(net, replace(draw, x0=x0))
