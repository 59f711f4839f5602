"""Settings against each other: which metrics to show, intervals, tests, what makes them doubtful.

The statistics are for few seeds: Student's t intervals, t tests, Holm's correction.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scm.config import metrics
from scm.report.read import Run, Setting, settings

SHOWN = ("frechet_distance", "precision", "recall")  # of every sampler, in tables
FEW = 4  # samplers; of more, tables show the first of these alone
COMPARABLE = {  # what is to be the same in all runs, by its key in their records
    "commits": "git_commit",
    "devices": "device",
    "feature networks": "features_sha256",
    "data": "data_sha256",
    "numbers of images at the end": "final_images",
}


@dataclass(frozen=True)
class Cell:
    """A metric of a setting."""

    mean: float | None  # None where no finished run has it
    half: float | None  # half the width of the 95 % interval; None for fewer than two values
    missing: int  # ended runs without a finite number: failed, or diverged
    best: bool  # the best mean of all settings that miss none
    p: float | None  # of no difference from the best, by Holm's correction


@dataclass(frozen=True)
class Comparison:
    """Settings, the metrics to show, and a cell for each."""

    runs: tuple[Run, ...]
    settings: tuple[Setting, ...]
    columns: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]  # by label and tag


def compared(runs: Sequence[Run]) -> Comparison:
    """Everything for the tables."""
    groups, shown = settings(runs), columns(runs)
    cells = {(label, tag): cell for tag in shown for label, cell in _column(groups, tag).items()}
    return Comparison(tuple(runs), tuple(groups), shown, cells)


def columns(runs: Sequence[Run]) -> tuple[str, ...]:
    """The tags to show: quality of each sampler, else the toy's errors, else the held-out loss.

    Finished runs decide, if there are any: those alone have measured at their end. Samplers with
    few network calls come first.
    """
    ended = [run for run in runs if run.done] or runs
    measured = {tag: value for run in ended for tag, value in run.metrics.items()}
    names = dict.fromkeys(name for run in runs for name in run.samplers)
    samplers = sorted(names, key=lambda name: measured.get(f"eval/{name}/calls", math.inf))
    group = "final" if any(tag.startswith("final/") for tag in measured) else "quality"
    chosen = SHOWN if len(samplers) <= FEW else SHOWN[:1]
    wanted = [f"{group}/{sampler}/{name}" for name in chosen for sampler in samplers]
    shown = [tag for tag in wanted if tag in measured]
    toys = sorted(tag for tag in measured if tag.startswith("eval/toy/"))
    return tuple(shown or toys or [metrics.LOSS])


def _column(groups: Sequence[Setting], tag: str) -> dict[str, Cell]:
    """The cell of each setting, by label."""
    values = {group.label: group.values(tag) for group in groups}
    means = {label: fmean(found.values()) for label, found in values.items() if found}
    missing = {group.label: group.missing(tag) for group in groups}
    best = _best(tag, means, missing)
    tests = {
        label: p
        for label in means
        if best not in (None, label) and (p := p_value(values[label], values[best])) is not None
    }
    corrected = dict(zip(tests, holm([*tests.values()]), strict=True))
    return {
        label: Cell(
            mean=means.get(label),
            half=half_width([*found.values()]),
            missing=missing[label],
            best=label == best,
            p=corrected.get(label),
        )
        for label, found in values.items()
    }


def _best(tag: str, means: dict[str, float], missing: dict[str, int]) -> str | None:
    """The setting with the best mean of those that miss no number, where there is a choice.

    A held-out loss is another function for each objective and weight: none is the best.
    """
    sign = 0 if tag == metrics.LOSS else metrics.direction(tag)
    whole = [label for label in means if not missing[label]]
    if not (sign and whole and len(means) > 1):
        return None
    return max(whole, key=lambda label: sign * means[label])


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % t interval of their mean."""
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None


def p_value(a: dict[Any, float], b: dict[Any, float]) -> float | None:
    """Two-sided p of no difference between values by seed; None where nothing can be said.

    The t test is paired where both have the same seeds, else Welch's.
    """
    from scipy.stats import ttest_ind, ttest_rel

    paired = a.keys() == b.keys()
    first, second = [*a.values()], [b[seed] for seed in a] if paired else [*b.values()]
    with warnings.catch_warnings():  # of equal or nearly equal values
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_rel(first, second) if paired else ttest_ind(first, second, equal_var=False)
    return float(test.pvalue) if math.isfinite(test.statistic) else None


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of several tests, in the order given."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[k]))
        adjusted[k] = largest
    return adjusted


def doubts(runs: Sequence[Run]) -> list[str]:
    """What makes a comparison doubtful, a sentence each."""
    said = []
    for what, key in COMPARABLE.items():
        found = [{**run.record.get("quality", {}), **run.record}.get(key) for run in runs]
        several = sorted({str(value) for value in found if value is not None})
        if len(several) > 1:
            said.append(f"These runs are of different {what}: {', '.join(several)}.")
    for setting in settings(runs):
        of_seed = {run.seed: run for run in setting.runs if run.done}
        for seed, counts in of_seed.items():
            same = sum(run.done and run.seed == seed for run in setting.runs)
            if same > 1:
                said.append(
                    f"{same} runs of {setting.label} have the seed {seed}: "
                    f"the last of them, {counts.path.name}, counts."
                )
    return said
