"""How alike two sets of samples are: pure functions of features, in float64.

Features are (N, D) tensors, one row per image; `real` is the reference and `fake` the set to judge.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**24  # of a distance matrix at once: 128 MiB in float64


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance; two rows at least."""
    x = _rows(features)
    if len(x) < 2:
        raise ValueError(f"{len(x)} rows: a covariance needs two at least")
    mean = x.mean(0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))  (Dowson & Landau 1982; Heusel 2017).

    The squared 2-Wasserstein distance of two Gaussians. The trace of the root is taken of the
    symmetric S C_b S with S = C_a^(1/2), which has the same eigenvalues as C_a C_b and none that
    rounding could make complex.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ b.covariance @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def kernel_distance(fake: Tensor, real: Tensor, *, real_kernel: float | None = None) -> float:
    """KID: unbiased MMD^2 with the kernel (x.y / D + 1)^3  (Binkowski et al. 2018).

    Over all pairs rather than blocks of them, so it is one number and not a draw. It may be below
    0 where the sets are alike. `real_kernel` is `own_kernel(real)`, where it is known.
    """
    x, y = _rows(fake), _rows(real)
    cross = sum(float(_kernel(x[rows], y).sum()) for rows in _blocks(x, y)) / (len(x) * len(y))
    return own_kernel(x) + (own_kernel(y) if real_kernel is None else real_kernel) - 2 * cross


def own_kernel(features: Tensor) -> float:
    """The mean of KID's kernel over all pairs of different rows."""
    x = _rows(features)
    total = sum(float(_kernel(x[rows], x).sum()) for rows in _blocks(x, x))
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (total - diagonal) / (len(x) * (len(x) - 1))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def radii(features: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Distance of every row to its k-th nearest other row, (len(ks), N).

    Raises ValueError where there are too few rows for the largest k.
    """
    x = _rows(features)
    if len(x) <= max(ks):
        raise ValueError(f"{len(x)} rows: the {max(ks)}th nearest other one needs {max(ks) + 1}")
    columns = []
    for rows in _blocks(x, x):
        distance = _distances(x[rows], x)
        distance.diagonal(rows.start).fill_(torch.inf)  # not rounding's, of a row from itself
        nearest = distance.topk(max(ks), largest=False).values
        columns.append(nearest[:, [k - 1 for k in ks]])
    return torch.cat(columns).T


@dataclass(frozen=True)
class Neighbourhoods:
    """What share of each set lies where the other one does."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbourhoods(
    fake: Tensor,
    real: Tensor,
    *,
    fake_radii: Tensor,  # (N,), `radii` at precision's k
    real_radii: Tensor,  # (M,), the same of the reference
    wide_radii: Tensor,  # (M,), `radii` of the reference at density's k
    wide_k: int,
) -> Neighbourhoods:
    """Precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020).

    A set's manifold is the union of balls round its points, each reaching to the point's k-th
    nearest neighbour. Precision is the share of `fake` on the manifold of `real`, recall the share
    of `real` on that of `fake`. Density is the mean number of real balls round a fake point over
    k (1 for equal distributions, above it where fakes crowd), coverage the share of real balls
    that hold a fake point.
    """
    x, y = _rows(fake), _rows(real)
    inside = balls = 0
    recalled, covered = torch.zeros(2, len(y), dtype=torch.bool)
    for rows in _blocks(x, y):
        distance = _distances(x[rows], y)
        inside += int((distance <= real_radii).any(1).sum())
        recalled |= (distance <= fake_radii[rows, None]).any(0)
        in_ball = distance <= wide_radii
        balls += int(in_ball.sum())
        covered |= in_ball.any(0)
    return Neighbourhoods(
        precision=inside / len(x),
        recall=float(recalled.double().mean()),
        density=balls / (wide_k * len(x)),
        coverage=float(covered.double().mean()),
    )


def nearest_distances(x: Tensor, to: Tensor, *, ranks: int = 1) -> Tensor:
    """Distances of every row of x to its nearest rows of `to`, (N, ranks) in their order.

    In the dtype of x: of pixels float32 is enough, and 60,000 x 784 of them are many.
    """
    ranks = min(ranks, len(to))
    nearest = [_distances(x[rows], to).topk(ranks, largest=False) for rows in _blocks(x, to)]
    return torch.cat([found.values for found in nearest])


def class_histogram(probabilities: Tensor) -> Tensor:
    """Share of rows whose most probable class is 0, 1, ..., (K,) float64."""
    classes = probabilities.argmax(1)
    return torch.bincount(classes, minlength=probabilities.shape[1]).double() / len(classes)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the sum of |p - q|: 0 for equal histograms, 1 for disjoint ones."""
    return float((p.double() - q.double()).abs().sum() / 2)


def mean_confidence(probabilities: Tensor) -> float:
    """Mean over rows of the most probable class's probability."""
    return float(probabilities.double().max(1).values.mean())


def _rows(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"features of shape {tuple(features.shape)}: must be (N, D)")
    return features.double()


def _blocks(x: Tensor, y: Tensor) -> list[slice]:
    """The rows of x in parts whose distances to all of y fit in memory."""
    size = max(1, BLOCK_ELEMENTS // max(1, len(y)))
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (N, M) by |x|^2 + |y|^2 - 2 x.y: one matrix product."""
    square = torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1)[:, None])
    return square.clamp_min_(0).sqrt_()
