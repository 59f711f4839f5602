"""What values a field of the schema may have: a range stands in the field's metadata, once."""

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field
from typing import Any

RANGE, RUNS = "range", "runs"  # keys of a field's metadata
SMALLEST = 10  # images that can be judged at all
LAST_STEP = 99_999_999  # a checkpoint's name has eight digits


@dataclass(frozen=True)
class Range:
    """What values are allowed, in words for the error and as a test."""

    words: str
    holds: Callable[[Any], bool]


def allowed(words: str, holds: Callable[[Any], bool]) -> Any:
    """A field whose values pass `holds`."""
    return field(metadata={RANGE: Range(words, holds)})


def runs_own(**more: Any) -> Any:
    """A field that is the run's business: the class that `_target_` names does not take it."""
    return field(metadata={RUNS: True}, **more)


def is_runs(one: Field) -> bool:
    """Whether `runs_own` has marked the field."""
    return bool(one.metadata.get(RUNS))


def whole(low: int, high: int) -> Any:
    """Whole numbers; the upper end keeps a slip of the keyboard from filling the memory."""
    return allowed(f"a whole number in {low:,} ... {high:,}", lambda v: low <= v <= high)


def wholes(low: int, high: int, count: int | None = None) -> Any:
    """A list of them, of `count` or of 1 to 64."""
    many = "" if count is None else f"{count} "
    return allowed(
        f"a list of {many}whole numbers in {low:,} ... {high:,}",
        lambda v: (
            0 < len(v) <= 64 and len(v) == (count or len(v)) and all(low <= n <= high for n in v)
        ),
    )


def between(low: float, high: float) -> Any:
    """Numbers in which nothing overflows."""
    return allowed(f"a number in [{low:g}, {high:g}]", lambda v: low <= v <= high)


def count() -> Any:
    """A number of steps, 1 or more."""
    return whole(1, LAST_STEP)


def size(high: int = 2**14) -> Any:
    """A number of things in a network or a batch, 1 or more."""
    return whole(1, high)


def positive() -> Any:
    """Finite and above 0."""
    return allowed("a finite number above 0", lambda v: 0 < v < math.inf)


def at_least_0() -> Any:
    """Finite and not below 0."""
    return allowed("a finite number of at least 0", lambda v: 0 <= v < math.inf)


def finite() -> Any:
    """Neither infinite nor nan."""
    return allowed("a finite number", math.isfinite)


def below_1() -> Any:
    """A probability that is not certainty."""
    return allowed("a number in [0, 1)", lambda v: 0 <= v < 1)


def sigma() -> Any:
    """A noise level in the data's units."""
    return between(1e-9, 1e9)


def judged() -> Any:
    """A number of images whose quality is measured, or none."""
    return allowed(
        f"0 (none) or a whole number of at least {SMALLEST}", lambda v: v == 0 or v >= SMALLEST
    )
