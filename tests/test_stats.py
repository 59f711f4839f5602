"""Student's t against printed tables and closed forms."""

import math

import pytest

from scm import stats


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (100, 1.9840)]
)
def test_quantiles_are_those_of_the_tables(freedom, t):
    assert stats.t_quantile(freedom) == pytest.approx(t, abs=1e-4)


def test_p_with_one_and_two_degrees_of_freedom_has_closed_forms():
    for t in (0.1, 1.0, 7.0):
        assert stats.two_sided_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t))
        assert stats.two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_an_interval_of_three_values():
    found = stats.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert stats.interval([5.0]).half is None


def test_pairing_sees_what_the_spread_of_seeds_hides():
    a, b = [1.0, 5.0, 9.0], [2.0, 6.1, 9.9]
    assert stats.paired_p(a, b) < 0.01 < 0.5 < stats.welch_p(a, b)
    assert stats.paired_p([1.0, 2.0], [1.0, 2.0]) is None and stats.paired_p([1.0], [2.0]) is None


def test_welch_of_equal_spreads_is_students_test():
    a, b = [1.0, 2.0, 3.0], [3.0, 4.0, 5.0]
    assert stats.welch_p(a, b) == pytest.approx(stats.two_sided_p(-2 / math.sqrt(2 / 3), 4))


def test_holms_correction():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == [] and stats.holm([0.9, 0.8]) == [1.0, 1.0]
