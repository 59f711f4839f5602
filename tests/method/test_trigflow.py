"""The path's equations against their definitions and closed forms, in float64."""

import math

import pytest
import torch
from closed_forms import GaussianData, points

from scm.method import trigflow

SD = 0.5


def test_the_path_runs_from_data_to_noise():
    x0, z, _ = points()
    at = torch.zeros(len(x0), dtype=torch.float64)
    assert torch.equal(trigflow.interpolate(x0, z, at), x0)
    end = trigflow.interpolate(x0, z, at + math.pi / 2)
    torch.testing.assert_close(end, z, atol=1e-15, rtol=0)


def test_velocity_is_the_paths_derivative():
    x0, z, t = points()
    h = 1e-5
    difference = trigflow.interpolate(x0, z, t + h) - trigflow.interpolate(x0, z, t - h)
    torch.testing.assert_close(trigflow.velocity(x0, z, t), difference / (2 * h), atol=1e-9, rtol=0)


def test_consistency_function_is_the_identity_at_0_for_every_network():
    x, F, _ = points()
    assert torch.equal(trigflow.consistency(x, 100 * F, torch.zeros(len(x)).double(), SD), x)


def test_consistency_and_noise_estimate_recover_data_and_noise_from_the_velocity():
    x0, z, t = points()
    x_t, F = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t) / SD
    torch.testing.assert_close(trigflow.consistency(x_t, F, t, SD), x0, atol=1e-14, rtol=0)
    torch.testing.assert_close(trigflow.noise_estimate(x_t, F, t, SD), z, atol=1e-14, rtol=0)


def test_denoiser_of_gaussian_data_is_the_posterior_mean():
    """E[x0 | x_t] = s^2 cos t / V(t) x_t, the textbook formula, from the exact velocity."""
    data = GaussianData(s=0.8, sigma_data=SD)
    x_t, _, t = points()
    F, _ = data.diffusion_net(x_t / SD, t)
    at = trigflow.broadcast(t, x_t)
    expected = data.s**2 * torch.cos(at) / data.variance(at) * x_t
    torch.testing.assert_close(trigflow.consistency(x_t, F, t, SD), expected, atol=1e-14, rtol=0)


def test_sigma_and_time_are_inverses_and_match_the_papers_t_max():
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    t = trigflow.time_from_sigma(sigma, SD)
    torch.testing.assert_close(trigflow.sigma_from_time(t, SD), sigma, rtol=1e-12, atol=0)
    assert t[1] == math.pi / 4
    assert abs(float(t[2]) - 1.56454) < 1e-5


@pytest.mark.parametrize("t", [torch.zeros(()), torch.zeros(3), torch.zeros(2, 1)])
def test_a_wrong_shape_of_time_is_named(t):
    with pytest.raises(ValueError, match=r"one time per image.*\(2, 1, 4, 4\)"):
        trigflow.interpolate(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), t)


def test_a_step_along_a_pairs_velocity_keeps_the_pair():
    x0, z, t = points()
    s = 0.3 * t
    x_t, v_t = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)
    torch.testing.assert_close(trigflow.step(x_t, v_t, t, s), trigflow.interpolate(x0, z, s))


def test_the_exact_velocitys_step_has_local_order_2():
    data = GaussianData(s=0.8, sigma_data=SD)
    _, x, t = points()
    errors = []
    for h in (0.02, 0.01):
        s = t - h
        exact = data.consistency(x, t) / data.consistency(torch.ones_like(x), s)
        errors.append(float((trigflow.step(x, data.velocity(x, t), t, s) - exact).abs().max()))
    assert 3.6 < errors[0] / errors[1] < 4.4
