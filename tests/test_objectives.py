"""Losses and their gradients against independent, naive implementations, in float64."""

import pytest
import torch
from closed_forms import GaussianData, WeightedNet, points

from scm import objectives, tangent, weighting

SD, H = 0.5, 8


def common(weights, adaptive=True):
    return {
        "P_mean": -1.0,
        "P_std": 1.4,
        "adaptive_weight": adaptive,
        "weighting": weights(sigma_data=SD),
        "sigma_data": SD,
    }


def draw():
    x0, z, t = points()
    return objectives.Draw(x0=x0, z=z, t=t, label=None)


def grads(net, loss):
    return torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True)


def test_diffusion_loss_is_its_definition():
    net, d = WeightedNet(), draw()
    loss = objectives.Diffusion(**common(weighting.InverseSigma)).loss(net, d, step=0)
    t4 = d.t.view(-1, 1, 1, 1)
    x_t = t4.cos() * d.x0 + t4.sin() * d.z
    F, w = net(x_t / SD, d.t)
    error = ((SD * F - (t4.cos() * d.z - t4.sin() * d.x0)) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(loss.error, error.detach())
    expected = w.exp() * error / (SD * d.t.tan()) - w
    torch.testing.assert_close(loss.loss, expected)
    for mine, naive in zip(grads(net, loss.loss), grads(net, expected), strict=True):
        torch.testing.assert_close(mine, naive)


def test_the_exact_velocity_minimises_the_diffusion_loss():
    """In expectation over data and noise: moving v* by any multiple of itself costs."""
    data = GaussianData(s=0.8, sigma_data=SD)
    gen = torch.Generator().manual_seed(0)
    shape = (20_000, 1, 2, 2)
    x0 = data.s * torch.randn(shape, generator=gen).double()
    z = SD * torch.randn(shape, generator=gen).double()
    t = torch.full((shape[0],), 0.6).double()

    def mean_error(scale):
        def net(x, t, label=None):
            F, w = data.diffusion_net(x, t)
            return scale * F, w

        d = objectives.Draw(x0=x0, z=z, t=t, label=None)
        return objectives.Diffusion(**common(weighting.Unit)).loss(net, d, 0).error.mean()

    assert mean_error(1.0) < mean_error(0.9) and mean_error(1.0) < mean_error(1.1)


def naive_consistency_loss(net, d, dxdt, *, r, tangent_weight, loss_weight, c=0.1):
    """Algorithm 1 as a textbook would write it: torch.func.jvp of f itself, no rearrangement.

    g at r = 1 is cos t df/dt; the part that the warm-up scales is everything but the residual.
    """
    t4 = d.t.view(-1, 1, 1, 1)
    x_t = t4.cos() * d.x0 + t4.sin() * d.z

    def F_of(x, t):
        return net(x / SD, t)[0]

    F, dF = torch.func.jvp(F_of, (x_t, d.t), (dxdt, torch.ones_like(d.t)))
    residual = -(t4.cos() ** 2) * (SD * F - dxdt)
    rest = -t4.cos() * t4.sin() * (x_t + SD * dF)
    g = ((residual + r * rest) * tangent_weight.view(-1, 1, 1, 1)).detach()
    g = g / ((g**2).mean((1, 2, 3), keepdim=True).sqrt() + c)
    F, w = net(x_t / SD, d.t)
    error = ((F - F.detach() - g) ** 2).mean((1, 2, 3)) * loss_weight
    return w.exp() * error - w


@pytest.mark.parametrize("jvp", ["dual", "split"])
@pytest.mark.parametrize("step", [0, 3, 100])
@pytest.mark.parametrize("kind", [weighting.Unit, weighting.InverseSigma, weighting.NoPrior])
@pytest.mark.parametrize("name", ["sct", "scd"])
def test_consistency_loss_and_gradient_equal_the_naive_ones(name, kind, step, jvp):
    net, d = WeightedNet(), draw()
    teacher = GaussianData(s=0.9, sigma_data=SD)
    settings = common(kind) | {
        "tangent_warmup_steps": H,
        "tangent": tangent.Normalize(c=0.1, norm="rms"),
        "jvp": jvp,
    }
    t4 = d.t.view(-1, 1, 1, 1)
    if name == "sct":
        objective = objectives.SCT(**settings)
        dxdt = t4.cos() * d.z - t4.sin() * d.x0
    else:
        objective = objectives.SCD(teacher=teacher.diffusion_net, **settings)
        dxdt = teacher.velocity(t4.cos() * d.x0 + t4.sin() * d.z, d.t)
    loss = objective.loss(net, d, step)
    sigma = SD * d.t.tan()
    ones = torch.ones_like(sigma)
    expected = naive_consistency_loss(
        net,
        d,
        dxdt,
        r=min(1.0, step / H),
        tangent_weight=sigma if kind is weighting.NoPrior else ones,
        loss_weight=1 / sigma if kind is weighting.InverseSigma else ones,
    )
    torch.testing.assert_close(loss.loss, expected)
    for mine, naive in zip(grads(net, loss.loss), grads(net, expected), strict=True):
        torch.testing.assert_close(mine, naive, rtol=1e-8, atol=1e-12)
    assert loss.terms["tangent/r"][0] == min(1.0, step / H)


def test_without_the_adaptive_weight_the_loss_is_the_error_and_w_gets_no_gradient():
    net, d = WeightedNet(), draw()
    loss = objectives.Diffusion(**common(weighting.Unit, adaptive=False)).loss(net, d, 0)
    torch.testing.assert_close(loss.loss.detach(), loss.error)
    assert grads(net, loss.loss)[1] is None


def test_the_exact_consistency_model_is_a_fixed_point_of_distillation():
    """Its tangent is 0 along the teacher's velocity, so its loss is 0 and pulls nowhere."""
    data = GaussianData(s=0.9, sigma_data=SD)
    settings = common(weighting.Unit) | {
        "tangent_warmup_steps": 0,
        "tangent": tangent.Raw(),
        "jvp": "dual",
    }
    loss = objectives.SCD(teacher=data.diffusion_net, **settings).loss(
        data.consistency_net, draw(), 1
    )
    assert loss.error.max() < 1e-25
