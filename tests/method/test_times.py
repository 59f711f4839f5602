"""The proposal of noise levels against its definition."""

import math

import pytest
import torch

from scm.method import trigflow
from scm.method.times import AnyPair, LogNormal, TwoLogNormals

SD = 0.5


def test_proposal_has_log_normal_noise_levels():
    """Quantiles of ln(sigma) are those of N(P_mean, P_std^2)."""
    proposal = LogNormal(P_mean=-1.0, P_std=1.4, sigma_data=SD)
    t = proposal(200_000, generator=torch.Generator().manual_seed(0), device="cpu")
    assert t.shape == (200_000,) and t.min() > 0 and t.max() < math.pi / 2
    tau = trigflow.sigma_from_time(t.double(), SD).log()
    normal = torch.distributions.Normal(-1.0, 1.4)
    for q in (0.02, 0.16, 0.5, 0.84, 0.98):
        assert abs(float(tau.quantile(q)) - float(normal.icdf(torch.tensor(q)))) < 0.03


def test_any_pair_has_its_shares_on_the_diagonal_and_at_the_data():
    """The rest is uniform in [0, t]: the mean of s / t there is 1/2, its variance 1/12."""
    times = AnyPair(diagonal=0.3, to_data=0.2, P_mean=-1.0, P_std=1.4, sigma_data=SD)
    gen = torch.Generator().manual_seed(0)
    t = times(100_000, generator=gen, device="cpu")
    s = times.second(t, generator=gen)
    assert float((s == t).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float((s == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    part = (s / t)[(s > 0) & (s < t)].double()
    assert float(part.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(part.var()) == pytest.approx(1 / 12, abs=0.002)


def test_two_log_normals_are_the_smaller_of_two_draws_and_the_diagonal():
    """P(s = t) = share + (1 - share) P(second draw > t); the difference of ln(sigma) is normal."""
    times = TwoLogNormals(
        diagonal=0.25, second_P_mean=-4.0, second_P_std=1.6, P_mean=-0.6, P_std=1.6, sigma_data=SD
    )
    gen = torch.Generator().manual_seed(0)
    t = times(200_000, generator=gen, device="cpu")
    s = times.second(t, generator=gen)
    assert (s > 0).all() and (s <= t).all()
    above = torch.special.ndtr(torch.tensor(-3.4 / (1.6 * 2**0.5)))
    expected = 0.25 + 0.75 * float(above)
    assert float((s == t).float().mean()) == pytest.approx(expected, abs=0.005)
    high = trigflow.sigma_from_time(t.double(), SD).log() > 2  # there the minimum cuts little off
    tau = trigflow.sigma_from_time(s[high & (s < t)].double(), SD).log()
    assert float(tau.mean()) == pytest.approx(-4.0, abs=0.05)
    assert float(tau.std()) == pytest.approx(1.6, abs=0.05)
