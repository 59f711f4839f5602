"""Intervals and tests over few seeds, against printed tables and closed forms."""

import math

import pytest

from scm.report.compare import half_width, holm, p_value


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622)])
def test_intervals_are_those_of_the_tables(n, t):
    """Of 0, 0, ..., n: the mean is 1 and the variance n."""
    assert half_width([0.0] * (n - 1) + [float(n)]) == pytest.approx(t, abs=1e-4)
    assert half_width([5.0]) is None and half_width([]) is None


def seeds(*values):
    return dict(enumerate(values))


def test_a_paired_p_has_a_closed_form():
    """Differences 0 and 2 and 1: t = sqrt(3), and two degrees of freedom."""
    t = math.sqrt(3)
    wanted = 1 - t / math.sqrt(2 + t * t)
    assert p_value(seeds(5, 9, 4), seeds(5, 7, 3)) == pytest.approx(wanted)
    shuffled = {2: 3, 0: 5, 1: 7}  # paired by the seed, not by the place
    assert p_value(seeds(5, 9, 4), shuffled) == pytest.approx(wanted)


def test_seeds_that_differ_are_tested_by_welch():
    """Of two values each, 0, 2 against 3, 5: t = 3 / sqrt(2), and two degrees of freedom."""
    t = 3 / math.sqrt(2)
    wanted = 1 - t / math.sqrt(2 + t * t)
    assert p_value({0: 0, 1: 2}, {2: 3, 3: 5}) == pytest.approx(wanted)


def test_pairing_sees_what_the_spread_of_seeds_hides():
    a, b = seeds(1.0, 5.0, 9.0), seeds(2.0, 6.1, 9.9)
    assert p_value(a, b) < 0.01 < 0.5 < p_value(a, {k + 9: value for k, value in b.items()})


def test_without_spread_there_is_no_p():
    assert p_value(seeds(1.0, 2.0), seeds(1.0, 2.0)) is None
    assert p_value(seeds(1.0), seeds(2.0)) is None and p_value({0: 1.0}, {1: 2.0}) is None
    assert p_value({0: 1.0, 1: 1.0}, {2: 2.0, 3: 2.0}) is None


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
