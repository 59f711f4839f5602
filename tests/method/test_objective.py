"""Losses and their gradients against independent, naive implementations, in float64."""

import pytest
import torch
from closed_forms import GaussianData, WeightedNet, points
from methods import SD, consistency, diffusion, discrete

from scm.method import tangent, weighting
from scm.method.network import Draw

H = 8
RULES = pytest.mark.parametrize("rule", ["song", "lu_song"])


def draw():
    x0, z, t = points()
    return Draw(x0=x0, z=z, t=t, label=None)


def grads(net, loss):
    return torch.autograd.grad(loss.mean(), list(net.parameters()), allow_unused=True)


def test_diffusion_loss_is_its_definition():
    net, d = WeightedNet(), draw()
    loss = diffusion(weighting.InverseSigma).loss(net, d, step=0)
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

        d = Draw(x0=x0, z=z, t=t, label=None)
        return diffusion().loss(net, d, 0).error.mean()

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


@pytest.mark.parametrize("form", ["dual", "split"])
@pytest.mark.parametrize("step", [0, 3, 100])
@pytest.mark.parametrize("kind", [weighting.Unit, weighting.InverseSigma, weighting.NoPrior])
@pytest.mark.parametrize("name", ["sct", "scd"])
def test_consistency_loss_and_gradient_equal_the_naive_ones(name, kind, step, form):
    net, d = WeightedNet(), draw()
    teacher = GaussianData(s=0.9, sigma_data=SD)
    t4 = d.t.view(-1, 1, 1, 1)
    if name == "sct":
        objective = consistency(kind, form=form)
        dxdt = t4.cos() * d.z - t4.sin() * d.x0
    else:
        objective = consistency(kind, form=form, teacher=teacher.diffusion_net)
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
    loss = diffusion(adaptive=False).loss(net, d, 0)
    torch.testing.assert_close(loss.loss.detach(), loss.error)
    assert grads(net, loss.loss)[1] is None


def test_the_exact_consistency_model_is_a_fixed_point_of_distillation():
    """Its tangent is 0 along the teacher's velocity, so its loss is 0 and pulls nowhere."""
    data = GaussianData(s=0.9, sigma_data=SD)
    objective = consistency(warmup=0, control=tangent.Raw(), teacher=data.diffusion_net)
    loss = objective.loss(data.consistency_net, draw(), 1)
    assert loss.error.max() < 1e-25


@RULES
@pytest.mark.parametrize("step", [0, 3, 100])
@pytest.mark.parametrize("name", ["ct", "cd"])
def test_with_many_steps_the_discrete_gradient_is_the_continuous_one(name, step, rule):
    """The difference falls with 1/N, at every stage of the warm-up and with the tangent changed."""
    net, d = WeightedNet(), draw()
    teacher = GaussianData(s=0.9, sigma_data=SD).diffusion_net if name == "cd" else None
    more = {"control": tangent.Normalize(c=0.1, norm="rms"), "teacher": teacher}
    continuous = consistency(weighting.NoPrior, **more)
    errors = []
    for N in (4000, 8000):
        objective = discrete(N, weighting.NoPrior, rule=rule, **more)
        at = Draw(x0=d.x0, z=d.z, t=objective.times(d.t), label=None)
        mine = grads(net, objective.loss(net, at, step).loss)
        limit = grads(net, continuous.loss(net, at, step).loss)
        errors.append(max(float((a - b).abs().max()) for a, b in zip(mine, limit, strict=True)))
    assert errors[1] < 2e-3
    if step or rule == "lu_song":  # at r = 0 Song's has no difference in it
        assert 1.8 < errors[0] / errors[1] < 2.2


@RULES
def test_the_discrete_loss_is_the_squared_difference_of_f_weighted(rule):
    """||f - f^-||^2: its gradient, times cos(t) / ((t - s) sd sin(t)), is Song et al.'s (2023).

    Lu & Song's (2025) is the same with cos(s) / (sin(t - s) sd sin(t)).
    """
    net, d = WeightedNet(), draw()
    objective = discrete(20, rule=rule, adaptive=False)
    grid = objective.derivative.grid
    t = objective.times(d.t)
    s = torch.stack([grid[grid < time].max() for time in t])
    t4, s4 = t.view(-1, 1, 1, 1), s.view(-1, 1, 1, 1)
    x_t, x_s = t4.cos() * d.x0 + t4.sin() * d.z, s4.cos() * d.x0 + s4.sin() * d.z
    f_t = t4.cos() * x_t - t4.sin() * SD * net(x_t / SD, t)[0]
    with torch.no_grad():
        f_s = s4.cos() * x_s - s4.sin() * SD * net(x_s / SD, s)[0]
    weights = {"song": t.cos() / (t - s), "lu_song": s.cos() / (t - s).sin()}
    weight = weights[rule] / (SD * t.sin())
    naive = weight * ((f_t - f_s) ** 2).mean((1, 2, 3))
    mine = grads(net, objective.loss(net, d, 100).loss)[0]
    torch.testing.assert_close(mine, grads(net, naive)[0], rtol=1e-9, atol=1e-12)


class Told(WeightedNet):
    """Refuses a pass without labels."""

    def forward(self, x, t, label=None):
        assert label is not None and label.tolist() == list(range(len(t)))
        return super().forward(x, t)


@pytest.mark.parametrize("form", ["dual", "split"])
def test_every_pass_is_told_the_labels(form):
    """The student's, with and without a tangent, and the teacher's."""
    x0, z, t = points()
    d = Draw(x0=x0, z=z, t=t, label=torch.arange(len(t)))
    for kind in (
        diffusion(),
        consistency(form=form),
        consistency(form=form, teacher=Told()),
        discrete(8),
        discrete(8, rule="lu_song", teacher=Told()),
    ):
        assert kind.loss(Told(), d, 100).loss.isfinite().all()
        with pytest.raises(AssertionError):
            kind.loss(Told(), draw(), 100)


def test_drawn_times_become_the_upper_ends_of_their_intervals():
    objective = discrete(18)
    grid = objective.derivative.grid
    assert len(grid) == 19 and grid[0] == 0
    torch.testing.assert_close(objective.times(grid[1:]), grid[1:], rtol=0, atol=0)
    inside = (grid[:-1] + grid[1:]) / 2
    torch.testing.assert_close(objective.times(inside), grid[1:], rtol=0, atol=0)
    beyond = torch.tensor([0.0, 1.5707]).double()
    torch.testing.assert_close(objective.times(beyond), grid[[1, -1]], rtol=0, atol=0)


def test_a_net_that_takes_the_logarithm_of_its_time_is_never_asked_at_0():
    """The lowest interval begins at s = 0, where f(x, 0) = x whatever the network says."""

    def net(x, t, label=None):
        return torch.log(t).view(-1, 1, 1, 1) * x, torch.zeros_like(t)

    loss = discrete(1).loss(net, draw(), 100)
    assert loss.loss.isfinite().all() and loss.error.isfinite().all()


@pytest.mark.parametrize(("N", "sigma_max"), [(2**20, 80.0), (64, 1e9)])
def test_a_grid_too_fine_for_float32_is_refused(N, sigma_max):
    """An interval without length would divide by 0."""
    with pytest.raises(ValueError, match="equal in float32"):
        discrete(N, sigma_max=sigma_max)


@RULES
@pytest.mark.parametrize("N", [2, 10])
def test_data_of_one_point_are_a_fixed_point_for_every_N(N, rule):
    """f = x0 for all (x_t, t) is exact there, and both ends of every interval agree."""
    x0, z, t = points()
    x0 = torch.full_like(x0, 0.3)

    def net(x, t, label=None):
        t4 = t.view(-1, 1, 1, 1)
        return (t4.cos() * x * SD - 0.3) / (t4.sin() * SD), torch.zeros_like(t)

    loss = discrete(N, rule=rule).loss(net, Draw(x0=x0, z=z, t=t, label=None), 100)
    assert loss.error.max() < 1e-24


def test_discrete_distillation_of_gaussian_data_errs_with_the_square_of_the_step():
    """At the exact consistency function its error is DDIM's: local order 2, so g of order 1."""
    data = GaussianData(s=0.9, sigma_data=SD)
    errors = []
    for N in (200, 400):
        objective = discrete(N, teacher=data.diffusion_net)
        errors.append(float(objective.loss(data.consistency_net, draw(), 100).error.mean()))
    assert 3.5 < errors[0] / errors[1] < 4.6 and errors[1] < 1e-3
