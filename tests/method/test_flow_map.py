"""Flow maps in closed form: residuals that vanish, naive gradients, limits; in float64."""

import pytest
import torch
from closed_forms import GaussianData, TwoTimes, points
from methods import SD, common

from scm.method import objective, tangent, trigflow, velocity
from scm.method.derivative import Jvp
from scm.method.network import Draw
from scm.method.samplers import ConsistencySteps, FlowSteps
from scm.method.times import AnyPair

DATA = GaussianData(s=0.8, sigma_data=SD)
exact_map, exact_net = DATA.flow_map, DATA.flow_net


def draw(share=0.6):
    x0, z, t = points()
    return Draw(x0=x0, z=z, t=t, label=None, s=share * t)


def control():
    return {"tangent": tangent.Raw(), "tangent_warmup_steps": 0}


def eulerian(direction=None, **more):
    derivative = Jvp(form="dual", sigma_data=SD)
    return objective.Eulerian(
        derivative=derivative, direction=direction, **control(), **common(**more)
    )


def lagrangian(form="dual", **more):
    return objective.Lagrangian(form=form, **control(), **common(**more))


def with_own(kind):
    kind.velocity = velocity.Own(sigma_data=SD)
    return kind


def grads(net, loss):
    return torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True)


def test_the_flow_map_is_the_identity_at_s_t_and_the_consistency_function_at_0():
    x, F = torch.randn(2, 4, 1, 2, 2).double()
    t = torch.rand(4).double()
    torch.testing.assert_close(trigflow.flow_map(x, F, t, t, SD), x)
    zero = torch.zeros_like(t)
    torch.testing.assert_close(
        trigflow.flow_map(x, F, t, zero, SD), trigflow.consistency(x, F, t, SD)
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(
    "kind",
    [
        eulerian(teacher=DATA.diffusion_net),
        eulerian(velocity.Own(sigma_data=SD), teacher=DATA.diffusion_net),
        lagrangian(teacher=DATA.diffusion_net),
        objective.Semigroup(**common(teacher=DATA.diffusion_net)),
        with_own(lagrangian()),
    ],
    ids=["eulerian", "eulerian, own direction", "lagrangian", "semigroup", "lagrangian, own"],
)
def test_every_residual_vanishes_on_the_exact_flow_map(kind, share):
    if share == 1.0 and isinstance(kind.velocity, velocity.Own):
        pytest.skip("the diagonal learns single pairs, whose mean alone is the velocity")
    error = kind.loss(exact_net, draw(share), 1).error
    assert error.max() < 1e-20


@pytest.mark.parametrize("form", ["dual", "split"])
def test_the_lagrangian_gradient_is_the_naive_one(form):
    """g = -cos(d) (df/ds - v(f, s)), with df/ds by torch.func.jvp of the map itself."""
    net, d = TwoTimes(), draw()
    kind = lagrangian(form, adaptive=False, teacher=DATA.diffusion_net)
    x_t = trigflow.interpolate(d.x0, d.z, d.t)

    def end_of(s):
        return trigflow.flow_map(x_t, net(x_t / SD, d.t, None, s)[0], d.t, s, SD)

    end, slope = torch.func.jvp(end_of, (d.s,), (torch.ones_like(d.s),))
    cos = trigflow.broadcast(torch.cos(d.t - d.s), x_t)
    g = (-cos * (slope - DATA.velocity(end, d.s))).detach()
    F = net(x_t / SD, d.t, None, d.s)[0]
    naive = (F - F.detach() - g).square().mean((1, 2, 3))
    mine = grads(net, kind.loss(net, d, 5).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


def test_improved_meanflow_looks_along_its_own_diagonal_and_learns_the_pairs_velocity():
    """g = -cos^2(d) (sd F - v_pair) - cos(d) sin(d) (x_t + sd dF/dt along F(x, t, t))."""
    net, d = TwoTimes(), draw()
    kind = eulerian(velocity.Own(sigma_data=SD), adaptive=False)
    x_t, v = trigflow.interpolate(d.x0, d.z, d.t), trigflow.velocity(d.x0, d.z, d.t)
    own = net(x_t / SD, d.t, None, d.t)[0].detach()
    F = net(x_t / SD, d.t, None, d.s)[0]

    def at(x, t):
        return net(x, t, None, d.s)[0]

    _, dF = torch.func.jvp(at, (x_t / SD, d.t), (own, torch.ones_like(d.t)))
    way = trigflow.broadcast(d.t - d.s, x_t)
    cos, sin = torch.cos(way), torch.sin(way)
    g = (-(cos**2) * (SD * F - v) - cos * sin * (x_t + SD * dF)).detach()
    naive = (F - F.detach() - g).square().mean((1, 2, 3))
    mine = grads(net, kind.loss(net, d, 5).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


def test_the_eulerian_gradient_is_the_naive_one():
    """g = cos(d) df/dt along the path."""
    net, d = TwoTimes(), draw()
    kind = eulerian(adaptive=False, teacher=DATA.diffusion_net)
    x_t = trigflow.interpolate(d.x0, d.z, d.t)

    def map_of(x, t):
        return trigflow.flow_map(x, net(x / SD, t, None, d.s)[0], t, d.s, SD)

    ones = torch.ones_like(d.t)
    _, slope = torch.func.jvp(map_of, (x_t, d.t), (DATA.velocity(x_t, d.t), ones))
    g = (trigflow.broadcast(torch.cos(d.t - d.s), x_t) * slope).detach()
    F = net(x_t / SD, d.t, None, d.s)[0]
    naive = (F - F.detach() - g).square().mean((1, 2, 3))
    mine = grads(net, kind.loss(net, d, 5).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["eulerian", "lagrangian", "semigroup"])
def test_on_the_diagonal_every_residual_is_diffusions(kind):
    """Its gradient is the diffusion loss's, by a factor of sigma_data where F is compared."""
    net, d = TwoTimes(), draw(1.0)
    made = {
        "eulerian": lambda: eulerian(adaptive=False),
        "lagrangian": lambda: with_own(lagrangian(adaptive=False)),
        "semigroup": lambda: with_own(objective.Semigroup(**common(adaptive=False))),
    }[kind]()
    x_t = trigflow.interpolate(d.x0, d.z, d.t)
    v = trigflow.velocity(d.x0, d.z, d.t)
    naive = (SD * net(x_t / SD, d.t, None, d.t)[0] - v).square().mean((1, 2, 3))
    factor = 1.0 if kind == "semigroup" else SD
    mine = grads(net, made.loss(net, d, 5).loss)[0] * factor
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


def test_a_flow_map_to_the_data_is_scm_to_the_letter():
    net, d = TwoTimes(), draw(0.0)
    to_data = Draw(x0=d.x0, z=d.z, t=d.t, label=None)
    for kind in (eulerian(), lagrangian(teacher=DATA.diffusion_net)):
        a, b = kind.loss(net, d, 5), kind.loss(net, to_data, 5)
        torch.testing.assert_close(a.loss, b.loss, rtol=0, atol=0)


def test_steps_of_the_exact_flow_map_end_where_the_ode_does():
    x = SD * torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    for times in ([], [1.1], [1.35, 1.1, 0.8]):
        sampler = FlowSteps(times=times, gamma=0.0, sigma_max=80.0, sigma_data=SD)
        start = torch.full((4,), sampler.times[0]).double()
        made = sampler(exact_net, lambda k: x, None)
        torch.testing.assert_close(made, exact_map(x, start, torch.zeros_like(start)))
        assert sampler.calls == len(times) + 1


TIMES = {"times": [1.3, 0.7], "sigma_max": 80.0, "sigma_data": SD}


def noise_of(n):
    """Noise of a standard deviation SD, another one for each k."""
    return lambda k: (
        SD * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(k)).double()
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
def test_steps_of_the_exact_flow_map_keep_the_datas_distribution_at_any_gamma(gamma):
    sampler = FlowSteps(gamma=gamma, **TIMES)
    made = sampler(exact_net, noise_of(40_000), None)
    assert abs(float(made.std()) - DATA.s) < 0.006
    assert sampler.follows_start == (gamma == 0)


def test_at_gamma_1_a_flow_maps_steps_are_a_consistency_functions():
    args = (TwoTimes(), lambda k: noise_of(4)(k).expand(-1, 2, -1, -1), None)
    with torch.no_grad():
        torch.testing.assert_close(
            FlowSteps(gamma=1.0, **TIMES)(*args), ConsistencySteps(**TIMES)(*args)
        )


def test_the_noise_of_a_step_makes_up_for_what_it_leads_further():
    """From t to u with tan(u) = sqrt(1 - gamma^2) tan(s), and then to s: x0's part keeps cos(s)."""
    seen = []

    def net(x, t, label=None, s=None):
        seen.append((float(t[0]), float(s[0])))
        return exact_net(x, t, label, s)

    FlowSteps(gamma=0.6, **TIMES)(net, noise_of(2), None)
    ends = [(t, s) for t, s in seen]
    assert [t for t, _ in ends[1:]] == pytest.approx([1.3, 0.7])
    for (_, u), s in zip(ends[:2], (1.3, 0.7), strict=True):
        assert torch.tensor(u).tan() == pytest.approx(0.8 * float(torch.tensor(s).tan()), rel=1e-6)


def test_the_second_times_have_their_shares():
    times = AnyPair(diagonal=0.25, to_data=0.25, P_mean=-1.0, P_std=1.6, sigma_data=SD)
    generator = torch.Generator().manual_seed(0)
    t = times(100_000, generator=generator, device="cpu")
    s = times.second(t, generator=generator)
    assert (s >= 0).all() and (s <= t).all()
    assert abs(float((s == t).double().mean()) - 0.25) < 0.01
    assert abs(float((s == 0).double().mean()) - 0.25) < 0.01
    inside = (s > 0) & (s < t)
    ratio = (s / t)[inside]
    assert abs(float(ratio.mean()) - 0.5) < 0.01 and abs(float(ratio.std()) - 12**-0.5) < 0.01


@pytest.mark.parametrize("own", [False, True])
def test_the_lagrangian_warmup_lengthens_the_way_from_diffusion_on(own):
    """At step 0 of H every sample is diffusion's, half-way the way is half as long."""
    net, d = TwoTimes(), draw()
    kind = (
        lagrangian(adaptive=False)
        if own
        else lagrangian(adaptive=False, teacher=DATA.diffusion_net)
    )
    kind = with_own(kind) if own else kind
    whole = kind.loss(net, draw(0.8), 8).loss
    kind.tangent_warmup_steps = 8
    half = kind.loss(net, draw(0.6), 4).loss
    torch.testing.assert_close(half, whole)
    x_t = trigflow.interpolate(d.x0, d.z, d.t)
    v = trigflow.velocity(d.x0, d.z, d.t) if own else DATA.velocity(x_t, d.t)
    naive = (SD * net(x_t / SD, d.t, None, d.t)[0] - v).square().mean((1, 2, 3)) / SD
    mine = grads(net, kind.loss(net, d, 0).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)
    logged = [float(kind.loss(net, d, step).terms["tangent/r"][0]) for step in (4, 7, 8, 9)]
    assert logged == [0, 0, 1, 1]  # the watch begins with the whole way
