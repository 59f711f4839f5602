"""The toy's closed forms against quadrature, a Runge-Kutta scheme and each other, in float64."""

import math

import pytest
import torch
from closed_forms import ExactMixture

from scm.method import dual, tangent, trigflow

SD = 0.5
TOY = ExactMixture(mean=0.4, std=0.25, sigma_data=SD)


def points(n=200):
    """x (n,) from far left to far right, and as many times in (0, pi/2), in another order."""
    x = torch.linspace(-2, 2, n, dtype=torch.float64)
    t = 0.02 + 1.54 * torch.linspace(0, 1, n, dtype=torch.float64).mul(7).frac()
    return x, t


def normal(x, mean, std):
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def quadrature(x, t):
    """p_t(x) and E[x0 | x_t = x] by a sum over x0, from Bayes' rule alone."""
    x0 = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    prior = (normal(x0, -TOY.mean, TOY.std) + normal(x0, TOY.mean, TOY.std)) / 2
    likelihood = normal(x[:, None], t.cos()[:, None] * x0, SD * t.sin()[:, None])
    joint = prior * likelihood * (x0[1] - x0[0])
    return joint.sum(1), (joint * x0).sum(1) / joint.sum(1)


def test_density_and_posterior_mean_against_quadrature():
    x, t = points()
    wide = t > 0.1  # the sum resolves the likelihood there
    x, t = x[wide], t[wide]
    density, mean = quadrature(x, t)
    torch.testing.assert_close(TOY.log_density(x, t), density.log(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(TOY.posterior_mean(x, t), mean, rtol=1e-9, atol=1e-9)


def test_posterior_mean_and_score_fit():
    """Tweedie's formula: cos(t) E[x0 | x_t] = x + sd^2 sin^2(t) d/dx log p_t(x)."""
    x, t = points()
    x.requires_grad_()
    score = torch.autograd.grad(TOY.log_density(x, t).sum(), x)[0]
    x = x.detach()
    tweedie = (x + SD**2 * t.sin() ** 2 * score) / t.cos()
    torch.testing.assert_close(TOY.posterior_mean(x, t), tweedie, rtol=1e-9, atol=1e-9)


def test_the_exact_velocitys_denoiser_is_the_posterior_mean():
    x, t = points()
    F = TOY.velocity(x, t) / SD
    torch.testing.assert_close(trigflow.consistency(x, F, t, SD), TOY.posterior_mean(x, t))
    for end in (0.0, math.pi / 2):
        assert TOY.velocity(x, torch.full_like(t, end)).isfinite().all()


def test_consistency_function_is_the_identity_at_0_and_odd():
    x, t = points()
    at_0 = TOY.consistency(x, torch.zeros_like(t))
    torch.testing.assert_close(at_0, x, atol=1e-14, rtol=0)
    torch.testing.assert_close(TOY.consistency(-x, t), -TOY.consistency(x, t), atol=0, rtol=0)


def runge_kutta(x, t, steps):
    """The PF-ODE from t to 0 by the classical scheme of order 4, on the exact velocity."""
    h = -t / steps
    for k in range(steps):
        s = t + k * h
        k1 = TOY.velocity(x, s)
        k2 = TOY.velocity(x + h / 2 * k1, s + h / 2)
        k3 = TOY.velocity(x + h / 2 * k2, s + h / 2)
        k4 = TOY.velocity(x + h * k3, s + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def test_consistency_function_is_the_odes_end():
    """Two ways that share nothing but p_t: equal quantiles, and the velocity integrated."""
    x, t = points()
    torch.testing.assert_close(TOY.consistency(x, t), runge_kutta(x, t, 1000), atol=1e-11, rtol=0)


def test_flow_there_and_back():
    x, t = points()
    later = torch.full_like(t, 1.56)
    there = TOY.flow(x, t, later)
    torch.testing.assert_close(TOY.flow(there, later, t), x, atol=1e-12, rtol=0)


def test_f_does_not_change_along_the_exact_velocity():
    """df*/dt = 0, though the derivative in t alone is not."""
    x, t = points()
    one, none = torch.ones_like(t), torch.zeros_like(t)
    _, along = torch.func.jvp(TOY.consistency, (x, t), (TOY.velocity(x, t), one))
    assert along.abs().max() < 1e-12
    _, in_t = torch.func.jvp(TOY.consistency, (x, t), (none, one))
    assert in_t.abs().max() > 0.1


@pytest.mark.parametrize("jvp", [dual.jvp, tangent.split_jvp])
def test_g_of_the_exact_network_is_0(jvp):
    x, t = points()
    x = x.view(-1, 1, 1, 1)
    v = TOY.velocity(x, t)
    at = tangent.network_tangent(TOY.consistency_net, x, t, v, sigma_data=SD, jvp=jvp)
    g = tangent.rearranged_tangent(at.F, at.dF, x, v, t, r=1.0, sigma_data=SD)
    assert g.abs().max() < 1e-11


def test_float32_comes_back_as_float32():
    x, t = points()
    single = TOY.consistency(x.float(), t.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), TOY.consistency(x, t), atol=1e-5, rtol=0)
