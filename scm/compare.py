"""What a set of runs says: which metrics to show, settings against each other, curves over seeds.

Knows no file formats but `scm.runs`, and nothing of how it is shown.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scm import stats, tags
from scm.runs import Run, Setting, settings
from scm.stats import Interval
from scm.svg import Series

SHOWN = ("frechet_distance", "precision", "recall")  # of every sampler, in tables
FEW = 4  # samplers; of more, tables show the first of these alone
POINTS = 150  # of a curve at most
ALPHA = 0.05


@dataclass(frozen=True)
class Cell:
    """A metric of a setting."""

    interval: Interval | None  # None where no finished run has it
    missing: int  # ended runs without a finite number: failed, or diverged
    best: bool  # the best mean of all settings that miss none
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
    """The tags to show: quality of each sampler, else the toy's errors, else the held-out loss.

    Finished runs decide, if there are any: those alone have measured at their end. Samplers with
    few network calls come first.
    """
    ended = [run for run in runs if run.done] or runs
    there = [run.metrics for run in ended if run.metrics]
    calls = {tag: n for found in there for tag, n in found.items() if tag.endswith("/calls")}
    names = dict.fromkeys(name for run in runs for name in run.samplers)
    samplers = sorted(names, key=lambda name: calls.get(f"eval/{name}/calls", math.inf))
    final = any(tag.startswith("final/") for found in there for tag in found)
    group = "final" if final else "quality"
    chosen = SHOWN if len(samplers) <= FEW else SHOWN[:1]
    wanted = [f"{group}/{sampler}/{name}" for name in chosen for sampler in samplers]
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
    missing = {
        group.label: sum(run.ended and not (run.done and tag in run.metrics) for run in group.runs)
        for group in groups
    }
    # a held-out loss is another function for each objective and weight: none is the best
    sign = 0 if tag == tags.LOSS else tags.direction(tag)
    whole = [label for label in means if not missing[label]]
    best = None
    if sign and whole and len(means) > 1:
        best = max(whole, key=lambda label: sign * means[label])
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
            missing=missing[label],
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


def over_calls(setting: Setting, colour: int, columns: Sequence[str]) -> list[Series]:
    """The Frechet distance against network calls: a line per kind of sampler, a point for each."""
    points: dict[str, list[tuple[float, list[float]]]] = {}
    for tag in columns:
        group, _, rest = tag.partition("/")
        sampler, _, name = rest.rpartition("/")
        calls = setting.values(f"eval/{sampler}/calls")
        values = list(setting.values(tag).values())
        if group in ("final", "quality") and name == tags.HEADLINE and calls and values:
            point = next(iter(calls.values())), values
            points.setdefault(setting.runs[0].kind(sampler), []).append(point)
    return [
        Series(
            setting.label,
            colour,
            x=[x for x, _ in sorted(found)],
            y=[stats.mean(values) for _, values in sorted(found)],
            low=[min(values) for _, values in sorted(found)],
            high=[max(values) for _, values in sorted(found)],
            marks=True,
            note=kind if len(points) > 1 else "",
        )
        for kind, found in points.items()
    ]
