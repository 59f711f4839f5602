"""Means over few seeds: Student's t intervals, tests of differences, Holm's correction.

Written out because these two functions are all that is needed. Knows nothing of runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval, None for fewer than two values."""

    mean: float
    half: float | None
    n: int


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d)
            c = 1 + numerator / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * fraction


def two_sided_p(t: float, freedom: float) -> float:
    """The probability of a Student's t further from 0 than `t`."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(freedom: float, level: float = 0.95) -> float:
    """The t that Student's variable exceeds in size with probability 1 - level."""
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """The unbiased variance of at least two values."""
    middle = mean(values)
    return sum((value - middle) ** 2 for value in values) / (len(values) - 1)


def interval(values: Sequence[float]) -> Interval:
    """The mean and its 95 % t interval."""
    n = len(values)
    if n < 2:
        return Interval(mean(values), None, n)
    half = t_quantile(n - 1) * math.sqrt(variance(values) / n)
    return Interval(mean(values), half, n)


def paired_p(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of the paired t test; None for fewer than two pairs or no spread at all."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if len(differences) < 2 or not variance(differences):
        return None
    t = mean(differences) / math.sqrt(variance(differences) / len(differences))
    return two_sided_p(t, len(differences) - 1)


def welch_p(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t test; None for fewer than two values of either, or no spread."""
    if min(len(a), len(b)) < 2:
        return None
    va, vb = variance(a) / len(a), variance(b) / len(b)
    if not va + vb:
        return None
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return two_sided_p((mean(a) - mean(b)) / math.sqrt(va + vb), freedom)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of several tests, in the order given."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = largest
    return adjusted
