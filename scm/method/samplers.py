"""Samplers: from noise to images, by a consistency function's jumps or along the PF-ODE.

A sampler is a small object, called with the network and a source of noise. Its state is in float32
whatever the network computes in. Noise has standard deviation sigma_data, as everywhere.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scm.core import rng
from scm.method import schedules, trigflow

Noise = Callable[[int], Tensor]  # k -> the k-th noise (B, C, H, W) of a batch; 0 is the start
Field = Callable[[Tensor, float], Tensor]  # (x, time) -> F, the network at one time
NOISE_BLOCK = 64  # images that share a noise generator: image i's noise depends on (seed, i) alone


class Sampler(ABC):
    """Turns noise into images with a fixed number of network calls."""

    times: list[float]  # radians, falling; sampling starts at the first
    calls: int  # of the network, per image
    follows_start: bool  # true where the first noise alone decides the image, as along the ODE

    @abstractmethod
    def __call__(self, net: nn.Module, noise: Noise, label: Tensor | None) -> Tensor:
        """Images (B, C, H, W), float32, about in [-0.5, 0.5]."""


class ConsistencySteps(Sampler):
    """x = f(x_T, T), then for every further time: noise it again, x = f(x_t, t).

    `times` are the intermediate ones in radians, falling: none is one-step sampling, [1.1] the
    paper's two-step sampling (Lu & Song 2025, sec. 5).
    Raises ValueError where they do not fall strictly within (0, T).
    """

    def __init__(self, *, times: list[float], sigma_max: float, sigma_data: float) -> None:
        t_max = float(trigflow.time_from_sigma(torch.tensor(sigma_max).double(), sigma_data))
        self.times = [t_max, *times]
        if not all(before > after for before, after in pairwise([*self.times, 0.0])):
            raise ValueError(
                f"sampler times {times} must fall strictly from below {t_max:.4f} rad to above 0"
            )
        self.calls = len(self.times)
        self.follows_start = self.calls == 1  # every further step draws noise
        self.sigma_data = sigma_data

    def __call__(self, net: nn.Module, noise: Noise, label: Tensor | None) -> Tensor:
        """x_T is pure noise: cos(T) is 0.006, and the sampler knows no data to put there."""
        x = x_t = noise(0)
        for k, time in enumerate(self.times):
            t = torch.full((len(x),), time, device=x.device, dtype=x.dtype)
            if k > 0:
                x_t = trigflow.interpolate(x, noise(k), t)
            F, _ = net(x_t / self.sigma_data, t, label)
            x = trigflow.consistency(x_t, F, t, self.sigma_data)
        return x


class FlowSteps(ConsistencySteps):
    """x_s = f(x_t, t, s) from each time to the next and to 0: a flow map's steps.

    With gamma above 0 a step leads further, to the noise level sqrt(1 - gamma^2) sigma_s, and noise
    makes up for it (Kim et al. 2024, CTM). 0 draws none, 1 is `ConsistencySteps`.
    """

    def __init__(
        self, *, times: list[float], gamma: float, sigma_max: float, sigma_data: float
    ) -> None:
        super().__init__(times=times, sigma_max=sigma_max, sigma_data=sigma_data)
        self.gamma = gamma
        self.follows_start = gamma == 0 or self.calls == 1

    def __call__(self, net: nn.Module, noise: Noise, label: Tensor | None) -> Tensor:
        """x_s = cos(s) (x_u / cos(u) + gamma tan(s) z), tan(u) = sqrt(1 - gamma^2) tan(s)."""
        x = noise(0)
        for k, (time, end) in enumerate(pairwise([*self.times, 0.0]), 1):
            jump = math.atan(math.sqrt(1 - self.gamma**2) * math.tan(end)) if self.gamma else end
            t, u = (torch.full((len(x),), v, device=x.device, dtype=x.dtype) for v in (time, jump))
            F, _ = net(x / self.sigma_data, t, label, u)
            x = trigflow.flow_map(x, F, t, u, self.sigma_data)
            if self.gamma and end > 0:
                x = math.cos(end) / math.cos(jump) * x + self.gamma * math.sin(end) * noise(k)
        return x


class OdeSampler(Sampler):
    """Integrates the PF-ODE dx/dt = sigma_data F from the Karras grid's top down to 0.

    Raises ValueError where the grid's times do not fall strictly.
    """

    follows_start = True

    def __init__(
        self,
        *,
        steps: int,
        sigma_min: float = schedules.SIGMA_MIN,
        sigma_max: float = schedules.SIGMA_MAX,
        rho: float = schedules.RHO,
        sigma_data: float,
    ) -> None:
        self.times = schedules.karras_times(
            steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, sigma_data=sigma_data
        ).tolist()
        if not all(before > after for before, after in pairwise(self.times)):
            raise ValueError(
                f"steps={steps}: times of its grid are equal; lower steps or sigma_max"
            )
        self.calls = steps
        self.sigma_data = sigma_data

    def __call__(self, net: nn.Module, noise: Noise, label: Tensor | None) -> Tensor:
        """Start at pure noise, step through the grid."""
        x = noise(0)

        def field(x_t: Tensor, time: float) -> Tensor:
            t = torch.full((len(x_t),), time, device=x_t.device, dtype=x_t.dtype)
            return net(x_t / self.sigma_data, t, label)[0]

        for s, t in pairwise(self.times):
            x = self.step(field, x, s, t)
        return x

    @abstractmethod
    def step(self, field: Field, x_s: Tensor, s: float, t: float) -> Tensor:
        """One step from time s down to time t."""

    def _rotate(self, x_s: Tensor, F: Tensor, s: float, t: float) -> Tensor:
        """x_t = cos(s - t) x_s - sin(s - t) sigma_data F  (Lu & Song 2025, sec. 3)."""
        turn = torch.tensor(s - t, dtype=torch.float64)
        return float(turn.cos()) * x_s - float(turn.sin()) * self.sigma_data * F


class Ddim(OdeSampler):
    """First order: denoiser and noise estimate held over the step, which is DDIM."""

    def step(self, field: Field, x_s: Tensor, s: float, t: float) -> Tensor:
        """x_t = cos(s - t) x_s - sin(s - t) sigma_data F(x_s, s)."""
        return self._rotate(x_s, field(x_s, s), s, t)


class Heun(OdeSampler):
    """Second order: EDM's Heun scheme (Karras et al. 2022, Algorithm 1), written for TrigFlow.

    EDM's variables are y = x / cos(t) and sigma = sigma_data tan(t), in which dy/dsigma is the
    noise estimate divided by sigma_data; the scheme averages it over both ends of a step. The last
    step, to 0, is of first order, so N steps take 2N - 1 network calls.
    """

    def __init__(self, **grid: Any) -> None:
        super().__init__(**grid)
        self.calls = 2 * self.calls - 1

    def step(self, field: Field, x_s: Tensor, s: float, t: float) -> Tensor:
        """y_t = y_s + (sigma_t - sigma_s) (d_s + d_t) / 2."""
        F_s = field(x_s, s)
        euler = self._rotate(x_s, F_s, s, t)
        if t == 0:
            return euler
        d_s = self._noise(x_s, F_s, s)
        d_t = self._noise(euler, field(euler, t), t)
        tan_s, tan_t = (torch.tensor([s, t], dtype=torch.float64).tan()).tolist()
        cos_s, cos_t = (torch.tensor([s, t], dtype=torch.float64).cos()).tolist()
        return cos_t * (x_s / cos_s + (tan_t - tan_s) * (d_s + d_t) / 2)

    def _noise(self, x_t: Tensor, F: Tensor, time: float) -> Tensor:
        t = torch.full((len(x_t),), time, device=x_t.device, dtype=x_t.dtype)
        return trigflow.noise_estimate(x_t, F, t, self.sigma_data)


def noise_blocks(
    seed: int, start: int, stop: int, *, image_shape: tuple[int, int, int], sigma_data: float
) -> Noise:
    """The noise of images start .. stop - 1 of seed `seed`, drawn on the CPU.

    It is drawn in blocks of fixed size, so that image i gets the same noise whatever the batch is.
    """
    first, last = start // NOISE_BLOCK, -(-stop // NOISE_BLOCK)

    def noise(k: int) -> Tensor:
        blocks = [
            torch.randn(
                NOISE_BLOCK,
                *image_shape,
                generator=rng.generator(seed, "sample", k, b, device="cpu"),
            )
            for b in range(first, last)
        ]
        offset = first * NOISE_BLOCK
        return sigma_data * torch.cat(blocks)[start - offset : stop - offset]

    return noise
