"""Metrics against closed forms and independent computations."""

import numpy as np
import pytest
import torch

from scm.evaluation import metrics
from scm.evaluation.metrics import Moments


def gaussian(n, d, seed, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def covariance(d, seed):
    a = gaussian(d, d, seed)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=torch.float64)


def judged(fake, real, k=3, wide=5):
    reach = metrics.radii(real, (k, wide))
    return metrics.neighbourhoods(
        fake,
        real,
        fake_radii=metrics.radii(fake, (k,))[0],
        real_radii=reach[0],
        wide_radii=reach[1],
        wide_k=wide,
    )


def test_moments_are_numpys():
    x = gaussian(50, 7, 0)
    m = metrics.moments(x)
    assert np.allclose(m.mean, x.numpy().mean(0), atol=1e-14)
    assert np.allclose(m.covariance, np.cov(x.numpy(), rowvar=False), atol=1e-14)
    with pytest.raises(ValueError, match="1 rows"):
        metrics.moments(x[:1])


def test_frechet_distance_of_equal_covariances_is_that_of_the_means():
    c, shift = covariance(6, 1), gaussian(1, 6, 2)[0]
    mean = torch.zeros(6, dtype=torch.float64)
    distance = metrics.frechet_distance(Moments(mean, c), Moments(mean + shift, c))
    assert distance == pytest.approx(float(shift.square().sum()), rel=1e-12)


def test_frechet_distance_of_commuting_covariances():
    """Diagonals a and b in one rotated frame: the sum of (sqrt(a) - sqrt(b))^2, 0 among them."""
    frame = torch.linalg.qr(gaussian(5, 5, 3)).Q
    a = torch.tensor([1.0, 4.0, 0.0, 2.0, 9.0], dtype=torch.float64)
    b = torch.tensor([9.0, 1.0, 3.0, 0.0, 9.0], dtype=torch.float64)
    mean = torch.zeros(5, dtype=torch.float64)
    distance = metrics.frechet_distance(
        Moments(mean, frame @ a.diag() @ frame.T), Moments(mean, frame @ b.diag() @ frame.T)
    )
    assert distance == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_is_the_one_of_the_general_root(seed):
    """As torchmetrics has it: the roots of the eigenvalues of the unsymmetric C_a C_b."""
    a, b = covariance(32, seed), covariance(32, seed + 10)
    m_a, m_b = gaussian(2, 32, seed)
    roots = np.sqrt(np.linalg.eigvals((a @ b).numpy()).real).sum()
    expected = float((m_a - m_b).square().sum() + a.trace() + b.trace()) - 2 * roots
    ours = metrics.frechet_distance(Moments(m_a, a), Moments(m_b, b))
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert metrics.frechet_distance(Moments(m_b, b), Moments(m_a, a)) == pytest.approx(ours)


def test_frechet_distance_of_fewer_rows_than_features_is_a_number():
    few, many = metrics.moments(gaussian(5, 20, 1)), metrics.moments(gaussian(300, 20, 2))
    assert 0 < metrics.frechet_distance(few, many) < 40


def naive_kid(x, y):
    k = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    own_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own_x + own_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_is_its_definition_in_blocks_of_any_size(monkeypatch):
    x, y = gaussian(13, 4, 0), gaussian(17, 4, 1, shift=0.5)
    expected = naive_kid(x, y)
    for elements in (1, 40, 2**24):
        monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", elements)
        assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
        known = metrics.own_kernel(y)
        assert metrics.kernel_distance(x, y, real_kernel=known) == pytest.approx(expected)


def test_kid_is_unbiased_at_0_and_grows_with_a_shift():
    """Its mean over draws of one distribution is 0; a biased estimator's would be 0.3 here."""
    draws = torch.tensor(
        [metrics.kernel_distance(gaussian(60, 8, k), gaussian(60, 8, 1000 + k)) for k in range(200)]
    )
    assert abs(float(draws.mean())) < 4 * float(draws.std()) / 200**0.5 < 0.02
    shifted = [
        metrics.kernel_distance(gaussian(400, 8, 1), gaussian(400, 8, 2, shift=s))
        for s in (0.0, 0.3, 0.6)
    ]
    assert shifted[0] < shifted[1] < shifted[2]


def test_radii_are_the_sorted_distances(monkeypatch):
    x = gaussian(30, 5, 0)
    ordered = torch.cdist(x, x).sort(1).values
    for elements in (1, 100, 2**24):
        monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", elements)
        found = metrics.radii(x, (3, 5))
        assert torch.allclose(found[0], ordered[:, 3]) and torch.allclose(found[1], ordered[:, 5])
    with pytest.raises(ValueError, match="5 rows: the 5th"):
        metrics.radii(x[:5], (3, 5))


def test_neighbourhoods_of_equal_and_of_far_sets():
    x = gaussian(200, 6, 0)
    same = judged(x, x)
    assert same.precision == same.recall == same.coverage == 1 and same.density > 1
    far = judged(x, x + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_neighbourhoods_are_their_definitions(monkeypatch):
    fake, real = gaussian(23, 2, 0, shift=0.4), gaussian(31, 2, 1)
    between = torch.cdist(fake, real)
    r3, r5 = (torch.cdist(real, real).sort(1).values[:, k] for k in (3, 5))
    f3 = torch.cdist(fake, fake).sort(1).values[:, 3]
    for elements in (1, 100, 2**24):
        monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", elements)
        found = judged(fake, real)
        in_real = [any(between[j, i] <= r3[i] for i in range(31)) for j in range(23)]
        in_fake = [any(between[j, i] <= f3[j] for j in range(23)) for i in range(31)]
        balls = [[bool(between[j, i] <= r5[i]) for i in range(31)] for j in range(23)]
        assert found.precision == pytest.approx(np.mean(in_real))
        assert found.recall == pytest.approx(np.mean(in_fake))
        assert found.density == pytest.approx(np.sum(balls) / (5 * 23))
        assert found.coverage == pytest.approx(np.mean(np.any(balls, axis=0)))
    assert 0 < found.recall < 1 and 0 < found.coverage < 1


def test_density_and_coverage_of_one_distribution():
    """Their expectations: density 1, coverage 1 - prod (M - i) / (M + N - i)  (Naeem 2020)."""
    found = judged(gaussian(1500, 4, 0), gaussian(1500, 4, 1))
    assert found.density == pytest.approx(1, abs=0.04)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.02)


def test_a_dropped_mode_costs_recall_and_coverage_but_not_precision():
    real = torch.cat([gaussian(300, 4, 0), gaussian(300, 4, 1, shift=8.0)])
    found = judged(gaussian(600, 4, 2), real)
    assert found.precision > 0.9 and found.recall < 0.55 and found.coverage < 0.55


def test_nearest_distances(monkeypatch):
    x, y = gaussian(9, 3, 0).float(), gaussian(40, 3, 1).float()
    ordered = torch.cdist(x, y).sort(1).values
    for elements in (1, 100, 2**24):
        monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", elements)
        assert torch.allclose(metrics.nearest_distances(x, y)[:, 0], ordered[:, 0], atol=1e-5)
        assert torch.allclose(metrics.nearest_distances(x, y, ranks=2), ordered[:, :2], atol=1e-5)


def test_histogram_variation_and_confidence():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0, 0, 1.0]])
    histogram = metrics.class_histogram(probabilities)
    assert histogram.tolist() == [0.5, 0.0, 0.5]
    assert metrics.total_variation(histogram, torch.tensor([0.5, 0.5, 0.0])) == 0.5
    assert metrics.total_variation(histogram, histogram) == 0
    assert metrics.mean_confidence(probabilities) == pytest.approx((0.7 + 0.6 + 0.8 + 1) / 4)


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(3,\): must be \(N, D\)"):
        metrics.moments(torch.zeros(3))
