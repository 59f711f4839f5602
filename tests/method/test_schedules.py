"""Grids, proposals, warm-ups and averages against their definitions."""

import math

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


@pytest.mark.parametrize("batch_size", [1, 64, 500])
def test_after_a_half_life_an_old_weight_counts_half(batch_size):
    weight, half_life = 1.0, 32_000
    for seen in range(0, half_life, batch_size):
        weight *= schedules.ema_decay(seen, batch_size, half_life_images=half_life, rampup=None)
    assert weight == pytest.approx(0.5, abs=1e-9)


def test_ema_rampup_bounds_the_half_life_by_the_images_seen():
    def decay(seen):
        return schedules.ema_decay(seen, 100, half_life_images=1e6, rampup=0.05)

    assert decay(0) < 1e-9  # the first step takes over the trained weights
    assert decay(2000) == pytest.approx(0.5)  # half-life 0.05 * 2000 images: one batch
    assert decay(10**9) == pytest.approx(0.5 ** (100 / 1e6))
