"""Prior weights against the paper's statement of them; the adaptive weight's optimum."""

import pytest
import torch
from closed_forms import points, smooth_net

from scm.method import dual, tangent, trigflow, weighting

SD = 0.5


def test_unit_and_inverse_sigma():
    t = torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64)
    sigma = SD * torch.tan(t)
    for kind, on_loss, on_tangent in (
        (weighting.Unit, torch.ones(3), torch.ones(3)),
        (weighting.InverseSigma, 1 / sigma, torch.ones(3)),
        (weighting.NoPrior, torch.ones(3), sigma),
        (weighting.SinTangent, torch.ones(3), torch.tan(t)),
    ):
        weights = kind(sigma_data=SD)
        torch.testing.assert_close(weights.on_loss(t), on_loss.double())
        torch.testing.assert_close(weights.on_tangent(t), on_tangent.double())


def test_the_papers_prior_is_already_in_the_tangent():
    """g / cos t = df/dt, and sigma_data sin t df/dt is what no prior leaves: g' = sigma g."""
    x0, z, t = points()
    x_t, dxdt = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)
    at = tangent.network_tangent(smooth_net, x_t, t, dxdt, sigma_data=SD, jvp=dual.jvp)
    g = tangent.rearranged_tangent(at.F, at.dF, x_t, dxdt, t, r=1.0, sigma_data=SD)
    b = trigflow.broadcast(t, g)
    unweighted = SD * torch.sin(b) * (g / torch.cos(b))
    scale = trigflow.broadcast(weighting.NoPrior(sigma_data=SD).on_tangent(t), g)
    torch.testing.assert_close(scale * g, unweighted)


@pytest.mark.parametrize("r", [0.0, 0.4, 1.0])
def test_the_seeds_tangent_has_sin_for_cos(r):
    """Term by term as the seed's toy has it: -cos sin (sd F - dx/dt) - r sin^2 (x_t + sd dF/dt)."""
    x0, z, t = points()
    x_t, dxdt = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)
    (F, _), (slope, _) = torch.func.jvp(
        lambda x, t: smooth_net(x / SD, t), (x_t, t), (dxdt, torch.ones_like(t))
    )
    b = trigflow.broadcast(t, x_t)
    seeds = -b.cos() * b.sin() * (SD * F - dxdt) - r * b.sin() ** 2 * (x_t + SD * slope)
    at = tangent.network_tangent(smooth_net, x_t, t, dxdt, sigma_data=SD, jvp=dual.jvp)
    g = tangent.rearranged_tangent(at.F, at.dF, x_t, dxdt, t, r=r, sigma_data=SD)
    scale = trigflow.broadcast(weighting.SinTangent(sigma_data=SD).on_tangent(t), g)
    torch.testing.assert_close(scale * g, seeds)


def test_adaptive_weight_has_its_optimum_where_the_weighted_error_is_1():
    error = torch.tensor([0.1, 3.0], dtype=torch.float64)
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = weighting.adaptive_loss(error, w).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(
        torch.exp(w.detach()) * error, torch.ones(2).double(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    "kind", [weighting.Unit, weighting.InverseSigma, weighting.NoPrior, weighting.SinTangent]
)
def test_weights_are_one_value_per_sample(kind):
    t = torch.full((5,), 0.3)
    assert kind(sigma_data=SD).on_loss(t).shape == kind(sigma_data=SD).on_tangent(t).shape == (5,)
