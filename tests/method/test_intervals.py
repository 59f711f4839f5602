"""Discrete time for flow maps: intervals that shrink (ECT), intervals that anneal (alpha-Flow)."""

import pytest
import torch
from closed_forms import GaussianData, TwoTimes, WeightedNet, points
from methods import SD, common

from scm.method import objective, tangent, trigflow
from scm.method.derivative import Annealed, Jvp, Shrinking
from scm.method.network import Draw

DATA = GaussianData(s=0.8, sigma_data=SD)
ECT = {"first": 0.5, "last": 1 / 256, "halving_steps": 10, "k": 8.0, "b": 1.0, "sigma_data": SD}
ALPHA = {"steps": 100, "sharpness": 25.0, "clamp": 0.005, "form": "dual", "sigma_data": SD}


def draw(share=0.6):
    """Of a flow map that leads to s = share t; None: to the data."""
    x0, z, t = points()
    return Draw(x0=x0, z=z, t=t, label=None, s=None if share is None else share * t)


def grads(net, loss):
    return torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True)


def eulerian(derivative, *, control=None, **more):
    return objective.Eulerian(
        derivative=derivative,
        direction=None,
        tangent=control or tangent.Raw(),
        tangent_warmup_steps=0,
        **common(adaptive=False, **more),
    )


def at_alpha(alpha):
    """The step at which the annealing is there, and the objective's derivative."""
    kind = Annealed(**ALPHA)
    return min(range(ALPHA["steps"] + 1), key=lambda step: abs(kind.alpha(step) - alpha)), kind


def test_the_gap_halves_and_intervals_are_wider_at_low_noise():
    """sigma_u / sigma_t = 1 - gap (1 + k sigmoid(-b sigma_t)) (Geng et al. 2024, their n(t))."""
    kind = Shrinking(**ECT)
    assert [kind.gap(step) for step in (0, 9, 10, 35, 10_000)] == [0.5, 0.5, 0.25, 0.0625, 1 / 256]
    assert [kind.settled(step) for step in (0, 69, 70)] == [False, False, True]
    sigma = torch.tensor([0.01, 1.0, 50.0]).double()
    t = trigflow.time_from_sigma(sigma, SD)
    for step, gap in ((40, 1 / 32), (10_000, 1 / 256)):
        u = kind.lower(t, torch.zeros_like(t), step)
        expected = 1 - gap * (1 + 8 / (1 + sigma.exp()))
        torch.testing.assert_close(trigflow.sigma_from_time(u, SD) / sigma, expected)
    assert (kind.lower(t, 0.99 * t, 40) >= 0.99 * t).all()  # never beyond where a map leads


def test_while_intervals_reach_the_data_ect_is_diffusion():
    """At u = 0 the target is the pair's image: F's pull is that of its velocity."""
    net, d = WeightedNet(), draw(None)
    kind = eulerian(Shrinking(**{**ECT, "first": 1.0, "k": 0.0}))
    x_t, v = trigflow.interpolate(d.x0, d.z, d.t), trigflow.velocity(d.x0, d.z, d.t)
    naive = SD * (net(x_t / SD, d.t)[0] - v / SD).square().mean((1, 2, 3))
    mine = grads(net, kind.loss(net, d, 0).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


def test_ects_gradient_is_that_of_the_norm_of_the_difference():
    """||f_t - f_u^-|| / c, the weight c of t such that g is a difference quotient (p = 1/2)."""
    net, d, step = WeightedNet(), draw(None), 35
    control = tangent.Power(p=0.5, c=1e-12, norm="l2")
    kind = eulerian(Shrinking(**ECT), control=control)
    u = kind.derivative.lower(d.t, torch.zeros_like(d.t), step)
    f = []
    for time, grad in ((d.t, True), (u, False)):
        x = trigflow.interpolate(d.x0, d.z, time)
        with torch.set_grad_enabled(grad):
            f.append(trigflow.consistency(x, net(x / SD, time)[0], time, SD))
    # g is along f_t - f_u, of length 1; F moves f by -sin(t) sd
    distance = (f[0] - f[1]).flatten(1).norm(dim=1)
    naive = 2 * distance / (SD * torch.sin(d.t)) / 18  # 18 values in an image, a mean over them
    mine = grads(net, kind.loss(net, d, step).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-6, atol=1e-9)


def test_alpha_falls_from_1_to_0_and_is_a_half_in_the_middle():
    kind = Annealed(**ALPHA)
    assert kind.alpha(0) == 1.0 and kind.alpha(50) == 0.5 and kind.alpha(100) == 0.0
    assert kind.alpha(10**8) == 0.0
    assert not kind.settled(50) and kind.settled(100)
    alphas = [kind.alpha(step) for step in range(101)]
    assert alphas == sorted(alphas, reverse=True)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1])
def test_alpha_flows_gradient_is_the_naive_one(alpha):
    """sd F is to be v where alpha = 1; else f(x_t, t, s) is to be f(x_u, u, s), u as it says."""
    net, d = TwoTimes(), draw()
    step, derivative = at_alpha(alpha)
    alpha = derivative.alpha(step)
    kind = eulerian(derivative)
    x_t, v = trigflow.interpolate(d.x0, d.z, d.t), trigflow.velocity(d.x0, d.z, d.t)
    F = net(x_t / SD, d.t, None, d.s)[0]
    u = d.t - alpha * (d.t - d.s)
    x_u = trigflow.interpolate(d.x0, d.z, u)
    with torch.no_grad():
        f_u = trigflow.flow_map(x_u, net(x_u / SD, u, None, d.s)[0], u, d.s, SD)
        f_t = trigflow.flow_map(x_t, F, d.t, d.s, SD)
        scale = torch.cos(u - d.s) / torch.sin(d.t - u)
        g = trigflow.broadcast(scale, x_t) * (f_t - f_u)
    if alpha == 1.0:
        torch.testing.assert_close(g, v - SD * F.detach())
    naive = (F - F.detach() - g).square().mean((1, 2, 3))
    mine = grads(net, kind.loss(net, d, step).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


def test_at_alpha_0_it_is_meanflow():
    net, d = TwoTimes(), draw()
    at_end = eulerian(Annealed(**ALPHA)).loss(net, d, 100)
    meanflow = eulerian(Jvp(form="dual", sigma_data=SD)).loss(net, d, 100)
    torch.testing.assert_close(at_end.loss, meanflow.loss, rtol=0, atol=0)


def test_as_alpha_falls_its_gradient_becomes_meanflows():
    """The difference falls with alpha."""
    net, d = TwoTimes(), draw()
    limit = grads(net, eulerian(Jvp(form="dual", sigma_data=SD)).loss(net, d, 0).loss)[0]
    ratios = []
    for alpha in (0.1, 0.02):
        step, derivative = at_alpha(alpha)
        mine = grads(net, eulerian(derivative).loss(net, d, step).loss)[0]
        ratios.append(float((mine - limit).norm()) / derivative.alpha(step))
    assert 0.8 < ratios[0] / ratios[1] < 1.25


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1])
def test_on_the_diagonal_alpha_flow_is_diffusion(alpha):
    net, d = TwoTimes(), draw(1.0)
    step, derivative = at_alpha(alpha)
    x_t, v = trigflow.interpolate(d.x0, d.z, d.t), trigflow.velocity(d.x0, d.z, d.t)
    naive = (SD * net(x_t / SD, d.t, None, d.t)[0] - v).square().mean((1, 2, 3)) / SD
    mine = grads(net, eulerian(derivative).loss(net, d, step).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [Shrinking(**ECT), Annealed(**ALPHA)], ids=["ect", "alpha_flow"])
def test_the_residual_on_the_exact_map_is_of_first_order_in_the_interval(kind):
    """Along the exact velocity a step errs with its square, so g, a quotient, with its length."""
    made = eulerian(kind, teacher=DATA.diffusion_net)
    steps = (40, 50) if isinstance(kind, Shrinking) else [at_alpha(a)[0] for a in (0.1, 0.05)]
    ways = []
    for step in steps:
        d = draw()
        u = kind.lower(d.t, d.s, step)
        rms = made.loss(DATA.flow_net, d, step).error.sqrt()
        ways.append((rms / (d.t - u))[d.t - u > 1e-6])
    torch.testing.assert_close(ways[0], ways[1], rtol=0.15, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "net"), [(Shrinking(**ECT), WeightedNet), (Annealed(**ALPHA), TwoTimes)]
)
def test_a_run_is_watched_from_where_its_intervals_change_no_more(kind, net):
    """Before that the tangent's size changes with them, and says nothing about the run."""
    made, d = eulerian(kind), draw(None if net is WeightedNet else 0.6)
    r = [float(made.loss(net(), d, step).terms["tangent/r"][0]) for step in (0, 60, 100)]
    assert r == [0.0, 0.0, 1.0]
