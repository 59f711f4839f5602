"""The mean velocity over a data set against closed forms and brute force, in float64."""

import pytest
import torch
from closed_forms import GaussianData, points
from methods import SD, common, consistency

from scm.method import objective, tangent, trigflow, velocity
from scm.method.network import Draw, call


def mean_of(x0, labels=None, **more):
    labels = torch.zeros(len(x0), dtype=torch.int64) if labels is None else labels
    given = {"sigma_min": 0.0, "points": None, "training_set": (x0, labels), "sigma_data": SD}
    return velocity.DataMean(**{**given, **more})


def draw_of(x0, z, t, label=None):
    d = Draw(x0=x0, z=z, t=t, label=label)
    return d, trigflow.interpolate(x0, z, t)


def test_of_two_points_it_is_the_hyperbolic_tangent():
    """Points -m and m in one dimension: E[x0 given x_t] = m tanh(cos(t) m x_t / (sd sin(t))^2)."""
    m = torch.tensor(0.4).double()
    t = torch.linspace(0.1, 1.5, 7).double()
    x_t = torch.linspace(-1, 1, 7).double().view(-1, 1, 1, 1)
    mean = velocity.posterior_mean(x_t, t, torch.stack([-m, m]).view(2, 1, 1, 1), sigma_data=SD)
    t4 = t.view(-1, 1, 1, 1)
    expected = m * torch.tanh(t4.cos() * m * x_t / (SD * t4.sin()) ** 2)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_it_is_bayes_rule_whatever_the_blocks(block):
    gen = torch.Generator().manual_seed(0)
    data = torch.randn(50, 1, 2, 2, generator=gen).double()
    x_t = torch.randn(6, 1, 2, 2, generator=gen).double()
    t = torch.linspace(0.02, 1.56, 6).double()
    mean = velocity.posterior_mean(x_t, t, data, sigma_data=SD, block=block)
    t5 = t.view(-1, 1, 1, 1, 1)
    z = (x_t[:, None] - t5.cos() * data) / t5.sin()
    weights = torch.softmax(-z.square().flatten(2).sum(2) / (2 * SD**2), 1)
    torch.testing.assert_close(mean, torch.einsum("bn,nchw->bchw", weights, data))


def test_it_is_the_mean_of_the_pairs_velocities():
    """Over many pairs with x_t near a place; one dimension, three points."""
    data = torch.tensor([-0.5, 0.1, 0.4]).double().view(3, 1, 1, 1)
    gen, n, time, place = torch.Generator().manual_seed(0), 2_000_000, 0.9, 0.2
    x0 = data[torch.randint(3, (n,), generator=gen)]
    z = SD * torch.randn(n, 1, 1, 1, generator=gen).double()
    t = torch.full((n,), time).double()
    near = (trigflow.interpolate(x0, z, t) - place).abs().flatten() < 0.01
    pairs = trigflow.velocity(x0, z, t)[near].mean()
    one = torch.full((1, 1, 1, 1), place).double()
    d = Draw(x0=data[:1], z=one, t=t[:1], label=None)
    mine = mean_of(data)(None, one, d, call)
    assert float(mine) == pytest.approx(float(pairs), abs=0.01)


def test_below_sigma_min_it_is_the_pairs_own():
    x0, z, t = points()
    d, x_t = draw_of(x0, z, t)
    v, pair = mean_of(x0, sigma_min=0.3)(None, x_t, d, call), trigflow.velocity(x0, z, t)
    high = SD * torch.tan(t) > 0.3
    assert 0 < int(high.sum()) < len(t)
    assert torch.equal(v[~high], pair[~high])
    assert not torch.isclose(v[high], pair[high]).all()


def test_with_labels_only_images_of_the_same_class_count():
    gen = torch.Generator().manual_seed(1)
    labels, (x0, z, t) = torch.arange(20) % 2, points()
    data = torch.randn(20, *x0.shape[1:], generator=gen).double()
    d, x_t = draw_of(x0, z, t, label=torch.ones(len(t), dtype=torch.int64))
    mine = mean_of(data, labels)(None, x_t, d, call)
    alone = mean_of(data[labels == 1])(None, x_t, draw_of(x0, z, t)[0], call)
    torch.testing.assert_close(mine, alone)


def test_points_takes_the_first_images():
    gen = torch.Generator().manual_seed(1)
    d, x_t = draw_of(*points())
    data = torch.randn(20, *x_t.shape[1:], generator=gen).double()
    few = mean_of(data, points=5)(None, x_t, d, call)
    torch.testing.assert_close(few, mean_of(data[:5])(None, x_t, d, call))


def test_training_on_it_has_the_pairs_expected_gradient_of_data_of_one_point():
    """Of one point the mean is every pair's own velocity, and the losses are equal."""
    x0, z, t = points()
    x0 = torch.full_like(x0, 0.3)
    d = Draw(x0=x0, z=z, t=t, label=None)

    def net(x, t, label=None):
        return torch.sin(x), torch.zeros_like(t)

    by_pair = consistency(control=tangent.Raw(), adaptive=False)
    by_mean = objective.Eulerian(
        derivative=by_pair.derivative,
        direction=None,
        tangent=tangent.Raw(),
        tangent_warmup_steps=8,
        **(common(adaptive=False) | {"velocity": mean_of(x0[:1])}),
    )
    torch.testing.assert_close(by_mean.loss(net, d, 9).loss, by_pair.loss(net, d, 9).loss)


def test_the_exact_velocity_is_the_datas_wherever_it_is_asked():
    """At the draw's (x_t, t), and at another point of another time."""
    data = GaussianData(s=0.8, sigma_data=SD)
    exact = velocity.Exact(exact_velocity=data.velocity)
    x0, z, t = points()
    d = Draw(x0=x0, z=z, t=t, label=None)
    torch.testing.assert_close(exact(None, x0 + z, d, None), data.velocity(x0 + z, t))
    torch.testing.assert_close(exact.at(None, z, t / 2, d, None), data.velocity(z, t / 2))


def test_a_class_without_a_point_keeps_the_pairs_velocity():
    x0, z, t = points(4)
    labels = torch.tensor([0, 1, 0, 1])
    mean = mean_of(x0, labels, points=1)  # of class 0 alone
    draw, x_t = draw_of(x0, z, t, labels)
    found = mean(None, x_t, draw, call)
    pairs = trigflow.velocity(x0, z, t)
    torch.testing.assert_close(found[1::2], pairs[1::2], rtol=0, atol=0)
    assert found.isfinite().all() and not torch.allclose(found[2], pairs[2])
