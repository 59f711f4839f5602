"""The lines to draw: metrics over training and over network calls, means and ranges over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from scm.config import metrics
from scm.report.compare import Comparison
from scm.report.read import Run, Setting, is_finite
from scm.report.tables import head

LINES = 12  # settings in a chart
POINTS = 100  # of a line at most
IMAGES = "images seen"


@dataclass(frozen=True)
class Line:
    """One setting's values of all seeds at each x; `note` stands at the first of them."""

    label: str
    style: int  # its place in the legend
    x: Sequence[float]
    values: Sequence[Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines of one metric."""

    title: str
    xlabel: str
    lines: Sequence[Line]
    points: bool = False  # each is marked, where they are few and chosen


Where = Callable[[Run, Sequence[int]], Sequence[float]]  # a run's places at these steps, if known


def over_images(run: Run, steps: Sequence[int]) -> Sequence[float]:
    """Images seen."""
    batch_size = run.config.get("trainer.batch_size")
    return [step * batch_size for step in steps] if is_finite(batch_size) else []


def over_minutes(run: Run, steps: Sequence[int]) -> Sequence[float]:
    """Minutes of training, between the records that have them."""
    import numpy as np

    found = run.history.items()
    times = {step: logged["usage/seconds"] for step, logged in found if "usage/seconds" in logged}
    minutes = np.interp(steps, [0, *times], [0, *(time / 60 for time in times.values())])
    return minutes.tolist() if times else []


WAYS: dict[str, Where] = {IMAGES: over_images, "minutes of training": over_minutes}


def shown(result: Comparison) -> list[Setting]:
    """The settings that fit into a chart: those with the best mean of the first column first."""
    tag = result.columns[0]
    sign = metrics.direction(tag) or -1

    def rank(setting: Setting) -> float:
        mean = result.cells[setting.label, tag].mean
        return math.inf if mean is None else -sign * mean

    few = len(result.settings) <= LINES
    return list(result.settings) if few else sorted(result.settings, key=rank)[:LINES]


def training_charts(result: Comparison) -> list[Chart]:
    """What is measured during training of what the tables show, and the tangent's norm."""
    wanted = [tag.replace("final/", "quality/") for tag in result.columns]
    chosen = [tag for tag in wanted if tag.endswith((metrics.HEADLINE, "_rms"))] or [metrics.LOSS]
    asked = [(head(tag), tag, way) for tag in dict.fromkeys(chosen) for way in WAYS]
    asked.append(("tangent norm (RMS of g)", "tangent/rms", IMAGES))
    charts = []
    for title, tag, way in asked:
        lines = [curve(setting, k, tag, WAYS[way]) for k, setting in enumerate(shown(result))]
        if drawn := [line for line in lines if line.x]:
            charts.append(Chart(title, way, drawn))
    return charts


def sheet(result: Comparison) -> list[Chart]:
    """The first, which is of quality, over images and over minutes; the tangent's norm."""
    charts = training_charts(result)
    quality = [next((c for c in charts if c.xlabel == way), None) for way in WAYS]
    tangents = [chart for chart in charts if chart.xlabel == IMAGES][1:][-1:]
    return [chart for chart in (*quality, *tangents) if chart is not None]


def curve(setting: Setting, style: int, tag: str, where: Where) -> Line:
    """A metric over training, at the steps that most seeds have."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for run in setting.runs:
        values = {step: found[tag] for step, found in run.history.items() if tag in found}
        for step, x in zip(values, where(run, list(values)), strict=False):  # none if unknown
            by_step.setdefault(step, []).append((x, values[step]))
    most = max(map(len, by_step.values()), default=0)
    whole = [points for _, points in sorted(by_step.items()) if len(points) == most]
    whole = whole[:: max(1, -(-len(whole) // POINTS))]
    xs = [fmean(x for x, _ in points) for points in whole]
    return Line(setting.label, style, xs, [[y for _, y in points] for points in whole])


def calls_charts(result: Comparison) -> list[Chart]:
    """Quality against network calls, where a line of a kind of sampler has several points."""
    settings = enumerate(shown(result))
    lines = [line for k, s in settings for line in over_calls(s, k, result.columns)]
    several = any(len(line.x) > 1 for line in lines)
    return [Chart("FD against network calls", "network calls", lines, True)] if several else []


def over_calls(setting: Setting, style: int, columns: Sequence[str]) -> list[Line]:
    """The Frechet distance against network calls: a line per kind of sampler, a point for each."""
    kinds: dict[str, dict[float, list[float]]] = {}
    for tag in columns:
        sampler = tag.split("/")[1]
        calls, values = setting.values(f"eval/{sampler}/calls"), setting.values(tag)
        if tag.endswith(metrics.HEADLINE) and calls and values:
            points = kinds.setdefault(setting.runs[0].samplers[sampler], {})
            points[next(iter(calls.values()))] = [*values.values()]
    return [
        Line(
            setting.label,
            style,
            x=sorted(points),
            values=[points[x] for x in sorted(points)],
            note=kind if len(kinds) > 1 else "",
        )
        for kind, points in kinds.items()
    ]
