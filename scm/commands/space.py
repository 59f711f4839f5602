"""What a study searches: keys with a range or with choices, in Hydra's own notation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from scm.core.errors import UserError

EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-2))'"


@dataclass(frozen=True)
class Interval:
    """All numbers from low to high, or all whole ones; `log`: evenly by their logarithm."""

    low: float
    high: float
    log: bool

    @property
    def ends(self) -> tuple[float, ...]:
        """Values that are possible if all are."""
        return self.low, self.high

    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def __str__(self) -> str:
        inside = f"interval({self.low}, {self.high})"
        return f"tag(log, {inside})" if self.log else inside


@dataclass(frozen=True)
class Choices:
    """One of these values, as they stand on a command line."""

    values: tuple[str, ...]

    @property
    def ends(self) -> tuple[str, ...]:
        """All of them."""
        return self.values

    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def __str__(self) -> str:
        return ",".join(self.values)


Range = Interval | Choices


def fixed_and_ranges(
    params: Mapping[str, Any] | None, overrides: Sequence[str]
) -> tuple[list[str], dict[str, Range]]:
    """What all runs share, and what the study searches, by key; `overrides` win over `params`.

    Raises UserError where there is nothing to search, a range is empty, or the seed is in it.
    """
    lines = [f"{key}={value}" for key, value in (params or {}).items()] + list(overrides)
    given = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(lines)}
    fixed = [str(o.input_line) for o in given.values() if not o.is_sweep_override()]
    ranges = {o.get_key_element(): _range(o) for o in given.values() if o.is_sweep_override()}
    if not ranges:
        raise UserError(f"hydra/sweeper=study: nothing to search; give a key a range: {EXAMPLE}")
    if "seed" in ranges:
        raise UserError(
            f"seed={ranges['seed']}: a study would choose the luckiest seed; give one, and confirm "
            "the best trial with others"
        )
    return fixed, ranges


def _range(override: Override) -> Range:
    value, line = override.value(), override.input_line
    if not isinstance(value, IntervalSweep):
        return Choices(tuple(dict.fromkeys(override.sweep_string_iterator())))
    assert value.start is not None and value.end is not None
    found = Interval(value.start, value.end, "log" in value.tags)
    if not found.low < found.high:
        raise UserError(f"{line}: an empty range; its lower end must be below the upper one")
    if found.log and found.low <= 0:
        raise UserError(f"{line}: a range by logarithm; its lower end must be above 0")
    if unknown := value.tags - {"log"}:
        raise UserError(f"{line}: tag {min(unknown)} means nothing here; the one there is: log")
    return found
