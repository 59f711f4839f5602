"""The rearranged tangent against df/dt, closed forms and finite differences, in float64."""

import math

import pytest
import torch
from closed_forms import GaussianData, points, smooth_net

from scm.config.methods import Norm
from scm.method import dual, tangent, trigflow

SD = 0.5
JVPS = pytest.mark.parametrize("jvp", [dual.jvp, tangent.split_jvp], ids=["dual", "split"])


def g_of(net, x_t, t, dxdt, *, r=1.0, jvp=dual.jvp):
    at = tangent.network_tangent(net, x_t, t, dxdt, sigma_data=SD, jvp=jvp)
    return tangent.rearranged_tangent(at.F, at.dF, x_t, dxdt, t, r=r, sigma_data=SD)


@JVPS
def test_g_is_cos_t_df_dt_for_any_network(jvp):
    """df/dt by a central difference of f along (dx/dt, 1)."""
    x0, z, t = points()
    x_t, dxdt = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)

    def f(h):
        x = x_t + h * dxdt
        return trigflow.consistency(x, smooth_net(x / SD, t + h)[0], t + h, SD)

    h = 1e-5
    expected = trigflow.broadcast(torch.cos(t), x_t) * (f(h) - f(-h)) / (2 * h)
    torch.testing.assert_close(g_of(smooth_net, x_t, t, dxdt, jvp=jvp), expected, atol=1e-8, rtol=0)


@JVPS
def test_g_is_0_for_the_exact_consistency_function(jvp):
    data = GaussianData(s=0.9, sigma_data=SD)
    x_t, _, t = points()
    g = g_of(data.consistency_net, x_t, t, data.velocity(x_t, t), jvp=jvp)
    assert g.abs().max() < 1e-13
    assert g_of(smooth_net, x_t, t, data.velocity(x_t, t), jvp=jvp).abs().max() > 0.1


def test_at_r_0_g_is_the_diffusion_residual():
    x0, z, t = points()
    x_t, v = trigflow.interpolate(x0, z, t), trigflow.velocity(x0, z, t)
    F = smooth_net(x_t / SD, t)[0]
    expected = -(trigflow.broadcast(torch.cos(t), F) ** 2) * (SD * F - v)
    torch.testing.assert_close(g_of(smooth_net, x_t, t, v, r=0.0), expected)


def test_input_tangents_stay_finite_at_both_ends():
    """cos t sin t is multiplied in beforehand: nothing overflows near 0 and pi/2 in float32."""
    t = torch.tensor([0.0, 1e-20, math.pi / 2 - 1e-7, math.pi / 2])
    x = torch.ones(4, 1, 2, 2)
    assert g_of(smooth_net, x, t, x).isfinite().all()


@JVPS
def test_value_is_recorded_and_tangent_is_not(jvp):
    x0, z, t = points()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def net(x, t):
        F, w = smooth_net(x, t)
        return scale * F, w

    at = tangent.network_tangent(net, x0, t, z, sigma_data=SD, jvp=jvp)
    assert at.F.requires_grad and not at.dF.requires_grad
    assert torch.autograd.grad(at.F.sum(), scale)[0].isfinite()


def test_normalize_bounds_the_norm_and_keeps_the_direction():
    g = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    g *= torch.tensor([1e-6, 0.1, 1.0, 10.0, 1e6]).double().view(-1, 1, 1, 1)
    for norm in Norm:
        before = tangent.norm_of(g, norm)
        normalized = tangent.Normalize(c=0.1, norm=norm)(g)
        torch.testing.assert_close(tangent.norm_of(normalized, norm), before / (before + 0.1))
        cosine = torch.cosine_similarity(normalized.flatten(1), g.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(5).double())


def test_c_in_rms_is_28_times_larger_in_l2():
    """The one documented choice: at 28 x 28, RMS with c = 0.1 is L2 with c = 2.8, up to a scale."""
    g = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1)).double()
    rms = tangent.Normalize(c=0.1, norm=Norm.rms)(g)
    l2 = tangent.Normalize(c=2.8, norm=Norm.l2)(g)
    torch.testing.assert_close(rms, 28 * l2)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_power_has_the_gradient_of_meanflows_weighted_loss(p):
    """w ||F - F^- - g||^2 with w = 1 / (||g||^2 + c)^p, w not differentiated."""
    gen = torch.Generator().manual_seed(2)
    g = torch.randn(4, 1, 5, 5, generator=gen).double()
    F = torch.randn(4, 1, 5, 5, generator=gen).double().requires_grad_()
    weight = 1 / (g.square().sum((1, 2, 3), keepdim=True) + 1e-3) ** p
    theirs = (weight * (F - F.detach() - g) ** 2).sum()
    mine = (F - F.detach() - tangent.Power(p=p, c=1e-3, norm="l2")(g)).square().sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, F)[0] for loss in (mine, theirs)))


def test_clip_and_raw():
    g = torch.tensor([-3.0, -0.5, 0.2, 7.0]).view(1, 1, 2, 2)
    assert tangent.Clip(bound=1.0)(g).flatten().tolist() == pytest.approx([-1, -0.5, 0.2, 1])
    assert tangent.Raw()(g) is g


def test_split_goes_through_attention_as_the_dual_pass_does():
    """Whose fused kernels have no forward derivative; the value is theirs in both."""
    q, dq = torch.randn(2, 3, 7, 4).double()

    def attend(q):
        return torch.nn.functional.scaled_dot_product_attention(q, 2 * q, q + 1)

    mine = tangent.split_jvp(attend, (q,), (dq,))
    torch.testing.assert_close(mine[0], attend(q), rtol=0, atol=0)
    torch.testing.assert_close(mine, dual.jvp(attend, (q,), (dq,)))


def test_split_shares_the_dropout_mask_between_value_and_tangent():
    """For y = mask * x the tangent of x along x is y itself, if the mask is the same."""
    drop = torch.nn.Dropout(0.5)
    x = torch.ones(4, 1, 8, 8)
    torch.manual_seed(0)
    value, change = tangent.split_jvp(drop, (x,), (x,))
    assert torch.equal(value, change) and 0 < (value == 0).sum() < value.numel()
