"""EQUATIONS that depend on the step or on a grid alone: times, warm-ups, rates. Pure functions."""

import numpy as np
import torch
from torch import Tensor

from scm.method import trigflow

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # Karras et al. 2022, table 1


def karras_times(
    steps: int,
    *,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = SIGMA_MAX,
    rho: float = RHO,
    sigma_data: float,
) -> Tensor:
    """The sampling grid of Karras et al. 2022 (eq. 5) as times, ending at exactly 0.

    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for
    i = 0 .. N-1, then 0. Returns (steps + 1,) float64 times, strictly falling.
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = (high + ramp * (low - high)) ** rho
    return trigflow.time_from_sigma(torch.cat([sigma, sigma.new_zeros(1)]), sigma_data)


def tangent_warmup(step: int, warmup_steps: int) -> float:
    """r = min(1, step / H), the weight of g's unstable part (Lu & Song 2025, sec. 4.1)."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def lr_factor(step: int, progress: float, *, warmup_steps: int, decay_fraction: float) -> float:
    """The learning rate's factor: a linear rise over `warmup_steps`, a linear fall at the end.

    `progress` is the used part of the run's budget in [0, 1]; over its last `decay_fraction` the
    factor falls from 1 to 0. Step 0 already moves: its factor is 1 / warmup_steps.
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = min(1.0, (1 - min(1.0, progress)) / decay_fraction) if decay_fraction else 1.0
    return rise * fall


def ema_exponent(sigma_rel: float) -> float:
    """gamma of a power-function average of relative width sigma_rel (Karras et al. 2024, 3.1).

    sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)): the standard deviation of the
    averaged steps, as a part of all steps so far. Below 0.289, which is gamma = 0.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def ema_decay(steps: int, exponent: float) -> float:
    """beta = (1 - 1/k)^(gamma + 1), k = `steps` finished ones  (Karras et al. 2024, sec. 3.1).

    The average after k steps then weights step i by about i^gamma: it forgets its random start,
    and its length grows with training.
    """
    return (1 - 1 / steps) ** (exponent + 1)
