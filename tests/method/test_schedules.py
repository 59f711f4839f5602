"""Grids, proposals, warm-ups and averages against their definitions."""

import math

import numpy as np
import pytest
import torch

from scm.method import schedules, trigflow

SD = 0.5


def test_karras_grid_is_its_definition():
    """Karras et al. 2022, eq. 5, written out, then 0."""
    steps, low, high, rho = 18, 0.002, 80.0, 7.0
    times = schedules.karras_times(steps, sigma_min=low, sigma_max=high, rho=rho, sigma_data=SD)
    for i, t in enumerate(times[:-1].tolist()):
        sigma = (
            high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))
        ) ** rho
        assert math.isclose(SD * math.tan(t), sigma, rel_tol=1e-9)
    assert times[-1] == 0 and times.dtype == torch.float64
    assert (times.diff() < 0).all()
    # The seed's grid stayed above sigma 73 for half of its steps: here the middle is at sigma 2.
    assert trigflow.sigma_from_time(times[9], SD) < 2.5


def test_karras_grid_of_one_step():
    times = schedules.karras_times(1, sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=SD)
    torch.testing.assert_close(times, torch.tensor([math.atan(160), 0.0], dtype=torch.float64))


def test_tangent_warmup():
    assert [schedules.tangent_warmup(k, 4) for k in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert schedules.tangent_warmup(0, 0) == 1


def test_lr_factor_rises_holds_and_falls():
    def factor(step, progress):
        return schedules.lr_factor(step, progress, warmup_steps=10, decay_fraction=0.25)

    assert factor(0, 0.0) == 0.1 and factor(9, 0.1) == 1 and factor(50, 0.75) == 1
    assert factor(50, 0.875) == 0.5 and factor(50, 1.0) == 0
    assert schedules.lr_factor(0, 1.0, warmup_steps=0, decay_fraction=0.0) == 1


@pytest.mark.parametrize("sigma_rel", [0.02, 0.063, 0.2])
def test_the_averages_relative_width_is_sigma_rel(sigma_rel):
    """The weights that the average of 20,000 steps gives to each of them, by what follows it."""
    n, exponent = 20_000, schedules.ema_exponent(sigma_rel)
    decays = np.array([schedules.ema_decay(k, exponent) for k in range(1, n + 1)])
    assert decays[0] == 0  # the first step takes over the trained weights
    kept = np.append(np.cumprod(decays[:0:-1])[::-1], 1.0)
    weights, steps = (1 - decays) * kept, np.arange(1, n + 1) / n
    assert weights.sum() == pytest.approx(1)
    mean = (weights * steps).sum()
    assert np.sqrt((weights * (steps - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-3)
    assert mean == pytest.approx((exponent + 1) / (exponent + 2), rel=1e-3)
