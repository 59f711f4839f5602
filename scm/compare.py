"""What a set of runs says: which metrics to show, settings against each other, curves over seeds.

Knows no file formats but `scm.runs`, and nothing of how it is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scm import stats, tags
from scm.runs import Run, Setting, settings
from scm.stats import Interval
from scm.svg import Series

SHOWN = ("frechet_distance", "precision", "recall")  # of every sampler, in tables
POINTS = 150  # of a curve at most
ALPHA = 0.05


@dataclass(frozen=True)
class Cell:
    """A metric of a setting."""

    interval: Interval | None  # None where no finished run has it
    best: bool  # the best mean of all settings
    p: float | None  # of no difference from the best, by Holm's correction
    paired: bool  # by seed

    @property
    def alike(self) -> bool:
        """Not told from the best, though tested."""
        return self.p is not None and self.p >= ALPHA


@dataclass(frozen=True)
class Comparison:
    """Settings, the metrics to show, and a cell for each."""

    runs: tuple[Run, ...]
    settings: tuple[Setting, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]  # by label and tag


def columns(runs: Sequence[Run]) -> tuple[str, ...]:
    """The tags to show: quality of each sampler, else the toy's errors, else the held-out loss."""
    there = [set(run.metrics) for run in runs if run.metrics]
    samplers = list(dict.fromkeys(name for run in runs for name in run.samplers))
    counts = {
        group: sum(any(tag.startswith(f"{group}/") for tag in found) for found in there)
        for group in ("final", "quality")
    }
    group = max(counts, key=lambda name: counts[name])
    wanted = [f"{group}/{sampler}/{name}" for name in SHOWN for sampler in samplers]
    shown = [tag for tag in wanted if any(tag in found for found in there)]
    toys = {tag for found in there for tag in found if tag.startswith("eval/toy/")}
    return tuple(shown or sorted(toys) or [tags.LOSS])


def compared(runs: Sequence[Run]) -> Comparison:
    """Everything for the tables."""
    groups, shown = settings(runs), columns(runs)
    cells: dict[tuple[str, str], Cell] = {}
    for tag in shown:
        cells |= {(label, tag): cell for label, cell in _column(groups, tag).items()}
    return Comparison(tuple(runs), tuple(groups), shown, cells)


def _column(groups: Sequence[Setting], tag: str) -> dict[str, Cell]:
    values = {group.label: group.values(tag) for group in groups}
    means = {label: stats.mean(list(found.values())) for label, found in values.items() if found}
    sign = tags.direction(tag)
    best = max(means, key=lambda label: sign * means[label]) if sign and len(means) > 1 else None
    tests: dict[str, tuple[float, bool]] = {}
    for label in means:
        if best is not None and label != best:
            p, paired = _test(values[label], values[best])
            if p is not None:
                tests[label] = p, paired
    corrected = stats.holm([p for p, _ in tests.values()])
    adjusted = dict(zip(tests, corrected, strict=True))
    return {
        label: Cell(
            interval=stats.interval(list(found.values())) if found else None,
            best=label == best,
            p=adjusted.get(label),
            paired=tests[label][1] if label in tests else False,
        )
        for label, found in values.items()
    }


def _test(a: dict[int, float], b: dict[int, float]) -> tuple[float | None, bool]:
    """p of no difference, and whether it is paired: by the seeds that both have, if all are."""
    if a.keys() == b.keys():
        return stats.paired_p([a[seed] for seed in a], [b[seed] for seed in a]), True
    return stats.welch_p(list(a.values()), list(b.values())), False


Where = Callable[[Run, int], float | None]  # a run's place at a step


def over_images(run: Run, step: int) -> float | None:
    """Images seen."""
    batch_size = run.config.get("trainer.batch_size", 1)
    return float(step * batch_size) if isinstance(batch_size, int) else None


def over_minutes(run: Run, step: int) -> float | None:
    """Minutes of training; from the record before the step where it has none of its own."""
    times = run.history.get(step, {})
    if "perf/seconds" in times:
        return times["perf/seconds"] / 60
    before = [k for k, values in run.history.items() if k <= step and "perf/seconds" in values]
    if not before:
        return None
    last = max(before)
    return run.history[last]["perf/seconds"] / 60 * step / last if last else None


def curve(setting: Setting, colour: int, tag: str, where: Where) -> Series:
    """A metric over training: the mean over seeds, and from the lowest to the highest."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for run in setting.runs:
        steps = sorted(step for step, values in run.history.items() if tag in values)
        for step in steps[:: max(1, -(-len(steps) // POINTS))]:
            if (place := where(run, step)) is not None:
                by_step.setdefault(step, []).append((place, run.history[step][tag]))
    most = max((len(points) for points in by_step.values()), default=0)
    whole = [points for _, points in sorted(by_step.items()) if len(points) == most]
    return Series(
        setting.label,
        colour,
        x=[stats.mean([x for x, _ in points]) for points in whole],
        y=[stats.mean([y for _, y in points]) for points in whole],
        low=[min(y for _, y in points) for points in whole],
        high=[max(y for _, y in points) for points in whole],
    )


def over_calls(setting: Setting, colour: int, columns: Sequence[str]) -> Series:
    """The Frechet distance of each sampler against its network calls."""
    points: list[tuple[float, list[float]]] = []
    for tag in columns:
        group, _, rest = tag.partition("/")
        sampler, _, name = rest.rpartition("/")
        calls = setting.values(f"eval/{sampler}/calls")
        if group in ("final", "quality") and name == tags.HEADLINE and calls:
            values = list(setting.values(tag).values())
            points += [(next(iter(calls.values())), values)] if values else []
    points.sort()
    return Series(
        setting.label,
        colour,
        x=[x for x, _ in points],
        y=[stats.mean(values) for _, values in points],
        low=[min(values) for _, values in points],
        high=[max(values) for _, values in points],
        marks=True,
    )
