"""Distribution matching against Gaussians, whose scores are known, in float64."""

from dataclasses import replace

import pytest
import torch
from closed_forms import GaussianData, WeightedNet, points
from methods import SD, consistency, matching
from torch import nn

from scm.method import trigflow
from scm.method.network import Draw, call
from scm.method.samplers import ConsistencySteps

DATA, SAMPLES = GaussianData(s=0.8, sigma_data=SD), GaussianData(s=0.3, sigma_data=SD)


def dmd(samples=SAMPLES.diffusion_net, data=DATA.diffusion_net, calls_at=(), weight=1.0):
    return matching(samples, data, calls_at=calls_at, weight=weight)


def draw(n=6, K=1, label=None):
    x0, z, t = points(n)
    gen = torch.Generator().manual_seed(5)
    noise = SD * torch.randn(n, K, *x0.shape[1:], generator=gen, dtype=torch.float64)
    return Draw(x0=x0, z=z, t=t, label=label, noise=noise)


def shrinkage(s, t):
    """D(x_t) = x_t s^2 cos(t) / V(t) of Gaussian data."""
    return s**2 * torch.cos(t) / GaussianData(s=s, sigma_data=SD).variance(t)


class Scaled(nn.Module):
    """f(z, T) = a z / sd as T -> pi/2, so that one-step samples have the deviation a."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a).double())

    def forward(self, x, t, label=None):
        at = trigflow.broadcast(t, x)
        F = (torch.cos(at) * x - self.a / SD * x) / torch.sin(at)
        return F, torch.zeros_like(t)


def test_the_gap_is_the_difference_of_the_denoisers_over_the_datas_error():
    d = draw()
    x = SAMPLES.s / SD * d.noise[:, 0]
    x_t = trigflow.interpolate(x, d.z, d.t)
    data, samples = (trigflow.broadcast(shrinkage(s, d.t), x) * x_t for s in (0.8, 0.3))
    expected = (data - samples) / (x - data).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(dmd().gap(None, x, d, call), expected)


def test_where_samples_and_data_are_alike_nothing_moves():
    d, net = draw(), WeightedNet()
    same = dmd(samples=DATA.diffusion_net)
    assert same.gap(net, d.x0, d, call).abs().max() < 1e-14
    loss, terms = same.loss(net, d, call)
    assert loss.max() < 1e-28 and terms["matching/gap"].max() < 1e-14


@pytest.mark.parametrize("a", [0.4, 1.6])
def test_the_gradient_is_that_of_the_divergence_between_samples_and_data(a):
    """KL(N(0, V_a(t)) || N(0, V_s(t))) by a, Tweedie's factor (sd sin t)^2 / cos^2 t beside it.

    Per sample the gap is divided by the data's error, which is multiplied back here.
    """
    n, t = 200_000, torch.tensor([0.7]).double()
    gen = torch.Generator().manual_seed(1)
    z, noise = SD * torch.randn(2, n, 1, 1, 1, generator=gen, dtype=torch.float64)
    d = Draw(x0=z, z=z, t=t.expand(n), label=None, noise=noise[:, None])
    net, kind = Scaled(a), dmd(samples=GaussianData(s=a, sigma_data=SD).diffusion_net)
    x = kind.samples(net, d, call)
    x_t = trigflow.interpolate(x.detach(), z, d.t)
    error = (x.detach() - shrinkage(0.8, t) * x_t).abs()
    push = -kind.gap(net, x.detach(), d, call) * error
    (mine,) = torch.autograd.grad((push * x).mean(), net.a)
    b = torch.tensor(a).double().requires_grad_()
    V_a = b**2 * torch.cos(t) ** 2 + SD**2 * torch.sin(t) ** 2
    ratio = V_a / DATA.variance(t)
    (slope,) = torch.autograd.grad((ratio - 1 - ratio.log()) / 2, b)
    expected = (SD * torch.sin(t)) ** 2 / torch.cos(t) ** 2 * slope
    assert float(mine) == pytest.approx(float(expected), rel=0.03)
    assert (float(mine) > 0) == (a > DATA.s)


def test_the_loss_moves_the_samples_alone_and_by_its_weight():
    net, d, kind = WeightedNet(), draw(K=2), dmd(calls_at=[1.1], weight=3.0)
    loss, terms = kind.loss(net, d, call)
    x = kind.samples(net, d, call)
    gap = kind.gap(net, x.detach(), d, call)
    naive = -3.0 * (x * gap).mean((1, 2, 3))  # half a square's gradient at its own point
    mine, theirs = (torch.autograd.grad(one.mean(), net.kernel)[0] for one in (loss, naive))
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(loss, 1.5 * gap.square().mean((1, 2, 3)).detach())
    torch.testing.assert_close(terms["matching/gap"], gap.square().mean((1, 2, 3)).sqrt())


@pytest.mark.parametrize("calls_at", [(), (1.1,), (1.3, 0.9)])
def test_sample_i_is_the_samplers_with_1_plus_i_mod_k_calls(calls_at):
    net, d, K = WeightedNet(), draw(7, len(calls_at) + 1), len(calls_at) + 1
    x = dmd(calls_at=calls_at).samples(net, d, call)
    for k in range(K):
        sampler = ConsistencySteps(times=list(calls_at[:k]), sigma_max=80.0, sigma_data=SD)
        with torch.no_grad():
            expected = sampler(net, lambda i: d.noise[:, i], None)
        torch.testing.assert_close(x[k::K].detach(), expected[k::K])


def test_the_last_call_alone_is_recorded():
    net, d = WeightedNet(), draw(4, 2)
    recorded = []

    def watched(net, x, t, label):
        recorded.append((torch.is_grad_enabled(), len(t)))
        return net(x, t, label)

    dmd(calls_at=[1.1]).samples(net, d, watched)
    assert recorded == [(False, 2), (True, 4)]


def test_a_part_of_the_batch_makes_the_same_samples():
    net, d, kind = WeightedNet(), draw(7, 3), dmd(calls_at=[1.3, 0.9])
    whole = kind.samples(net, d, call)
    parts = [kind.samples(net, d.part(rows), call) for rows in (slice(0, 3), slice(3, 7))]
    torch.testing.assert_close(whole, torch.cat(parts))
    inner = d.part(slice(2, 7)).part(slice(1, 5))
    assert inner.first == 3
    torch.testing.assert_close(kind.samples(net, inner, call), whole[3:])


def test_every_network_is_told_the_label():
    told = {}

    def hears(name, net):
        def heard(x, t, label):
            told.setdefault(name, []).append(label.tolist())
            return net(x, t)

        return heard

    student, data, samples = (hears(name, SAMPLES.diffusion_net) for name in ("net", "data", "of"))
    d = draw(4, 2, torch.arange(4))
    dmd(samples=samples, data=data, calls_at=[1.1]).loss(student, d, call)
    assert told == {"net": [[1, 3], [0, 1, 2, 3]], "data": [[0, 1, 2, 3]], "of": [[0, 1, 2, 3]]}


def test_the_score_network_learns_the_samples_and_not_the_data():
    """The exact diffusion model of the samples errs least, by the variance of v given x_t."""
    n = 20_000
    gen = torch.Generator().manual_seed(2)
    z, noise = SD * torch.randn(2, n, 1, 1, 1, generator=gen, dtype=torch.float64)
    t = torch.full((n,), 0.7).double()
    d = Draw(x0=torch.full_like(z, 9.0), z=z, t=t, label=None, noise=noise[:, None])
    learned = dmd().of_samples(Scaled(SAMPLES.s))
    errors = {s: float(learned.loss(net, d, 0).loss.mean()) for s, net in nets().items()}
    assert min(errors, key=errors.get) == SAMPLES.s
    least = SAMPLES.s**2 * SD**2 / SAMPLES.variance(t[:1])
    assert errors[SAMPLES.s] == pytest.approx(float(least), rel=0.03)


def nets():
    return {s: GaussianData(s=s, sigma_data=SD).diffusion_net for s in (0.2, SAMPLES.s, 0.5, 0.8)}


def test_an_objective_adds_it_where_the_draw_is_for_both():
    net, own = WeightedNet(), draw(6, 2)
    main = replace(own, noise=None)
    alone, kind = consistency(), dmd(calls_at=[1.1], weight=0.5)
    both = alone.beside(kind)
    added, terms = kind.loss(net, own, call)
    with_own = both.loss(net, replace(main, own=own), 4)
    torch.testing.assert_close(with_own.loss, alone.loss(net, main, 4).loss + added)
    torch.testing.assert_close(with_own.terms["matching/gap"], terms["matching/gap"])
    torch.testing.assert_close(both.loss(net, main, 4).loss, alone.loss(net, main, 4).loss)
    assert alone.matching is None


@pytest.mark.parametrize("calls_at", [(1.0, 1.1), (1.0, 1.0), (1.57,), (0.0,), (-0.1,)])
def test_times_of_calls_fall_from_below_the_first_to_above_0(calls_at):
    with pytest.raises(ValueError, match="calls_at="):
        dmd(calls_at=calls_at)
