"""Paths and the tangents along them, on networks whose tangents are known."""

from itertools import pairwise

import pytest
import torch
from closed_forms import ExactMixture, GaussianData, smooth_net

from scm.evaluation import trajectories
from scm.evaluation.trajectories import ExactOde, LearnedOde, Pairs
from scm.method.samplers import Heun

SD = 0.5
TOY = ExactMixture(mean=0.4, std=0.25, sigma_data=SD)
DATA = GaussianData(s=0.9, sigma_data=SD)


def heun(steps):
    return Heun(steps=steps, sigma_min=0.002, sigma_max=80.0, rho=7.0, sigma_data=SD)


def learned(net, steps=64):
    return LearnedOde(net, None, heun(steps))


def numbers(n=12):
    return torch.linspace(-1, 1, n, dtype=torch.float64).view(-1, 1, 1, 1)


def paths():
    gen = torch.Generator().manual_seed(0)
    x0, z = (torch.randn(12, 1, 1, 1, generator=gen).double() for _ in range(2))
    return [ExactOde(TOY), learned(DATA.diffusion_net), Pairs(x0, z)]


@pytest.mark.parametrize("path", paths(), ids=lambda path: type(path).__name__)
def test_velocity_is_the_derivative_of_the_move(path):
    t, h = 0.7, 1e-4
    x = path.move(numbers(), t, t)  # a point of the path itself
    slope = (path.move(x, t, t + h) - path.move(x, t, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(x, t), slope, rtol=1e-6, atol=1e-7)


def test_states_of_a_learned_ode_end_where_the_exact_one_does():
    path, times = learned(TOY.diffusion_net), trajectories.fine_times(heun(64))
    *_, (t, end) = trajectories.states(path, numbers(), times)
    exact = TOY.consistency(numbers(), torch.full((12,), times[0]).double())
    assert t == 0 and (end - exact).abs().max() < 2e-3


def test_fine_times_fall_from_the_top_to_0_without_a_gap():
    times = trajectories.fine_times(heun(20))
    assert times[0] == heun(20).times[0] and times[-1] == 0
    assert all(0 < before - after < 0.08 for before, after in pairwise(times))
    assert set(heun(20).times) <= set(times)


@pytest.mark.parametrize("path", paths(), ids=lambda path: type(path).__name__)
def test_the_difference_converges_to_the_jvp(path):
    """Second order: a tenth of the step leaves a hundredth of the difference."""
    x = path.move(numbers(), 0.7, 0.7)
    errors = []
    for step in (0.02, 0.002):
        at = trajectories.tangents(smooth_net, path, x, 0.7, step=step, label=None, sigma_data=SD)
        errors.append(float((at.jvp - at.discrete).abs().max()))
    assert at.jvp.abs().max() > 0.01
    assert errors[1] < 1e-4 and 50 < errors[0] / errors[1] < 200


@pytest.mark.parametrize("t", [0.004, 0.7, 1.5645])
def test_the_exact_networks_tangents_are_0(t):
    at = trajectories.tangents(
        TOY.consistency_net,
        ExactOde(TOY),
        numbers(),
        t,
        step=0.01,
        label=None,
        sigma_data=SD,
    )
    assert at.jvp.abs().max() < 1e-11 and at.discrete.abs().max() < 1e-8


def measured(net, path, start, times):
    points = trajectories.states(path, start, times)
    return trajectories.measure(net, path, points, step=0.01, label=None, sigma_data=SD)


def test_measured_errors_are_those_of_the_function():
    """f* + 0.1 in place of f*: the consistency error is 0.1 at every time, the tangent stays 0."""

    def net(x, t, label=None):
        F, w = TOY.consistency_net(x, t)
        return F - 0.1 / (SD * torch.sin(t)).view(-1, 1, 1, 1), w

    times = trajectories.fine_times(heun(6))
    found = measured(net, ExactOde(TOY), numbers(), times)
    assert found.t.tolist() == pytest.approx(times[:-1])
    for values in (found.jvp, found.discrete, found.difference, found.from_end):
        assert values.shape == (len(times) - 1, 12)
    torch.testing.assert_close(found.from_end, torch.full_like(found.from_end, 0.1))
    assert found.jvp.max() < 1e-9


def test_paths_must_end_at_0():
    with pytest.raises(ValueError, match=r"end at t = 0.5, not at 0"):
        measured(smooth_net, ExactOde(TOY), numbers(), [1.0, 0.5])


def test_spherical_keeps_the_length_of_orthogonal_noises():
    a, b = torch.zeros(2, 1, 4, 4)
    a[0, 0, 0], b[0, 1, 1] = 2.0, 2.0
    between = trajectories.spherical(a, b, 5)
    torch.testing.assert_close(between[0], a)
    torch.testing.assert_close(between[-1], b, atol=1e-6, rtol=0)
    torch.testing.assert_close(between.flatten(1).norm(dim=1), torch.full((5,), 2.0))


def test_start_noises_are_noises():
    images = trajectories.start_noises(8, (1, 28, 28), sigma_data=SD, seed=0)
    assert images.shape == (8, 1, 28, 28)
    assert all(abs(float(noise.std()) - SD) < 0.05 for noise in images)
    one = trajectories.start_noises(1001, (1, 1, 1), sigma_data=SD, seed=0)
    assert abs(float(one.mean())) < 1e-6 and abs(float(one.std()) - SD) < 0.005
    assert (one.flatten().diff() > 0).all()
