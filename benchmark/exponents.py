"""Exponents of how cost has grown: slopes of lines through logarithms."""

from collections.abc import Sequence
from dataclasses import asdict
from math import log, sqrt
from statistics import fmean, linear_regression, median

from benchmark import growth
from benchmark.report import Row, quartiles
from benchmark.timing import Label


def exponent_rows(rows: Sequence[Row]) -> list[Row]:
    """Per case and axis, the exponents of time and of memory above what was held before."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["case"], row["grows"]), []).append(row)
    found = []
    for (_, case, grows), points in groups.items():
        axis = growth.AXES[grows]
        if len(points) < 2 or any(point["error"] for point in points):
            continue
        rounds = zip(*(point["seconds"]["samples"] for point in points), strict=True)
        expected = growth.EXPECTED.get(case, axis.seconds)
        found.append(_exponent_row(points, "time", expected, [list(one) for one in rounds]))
        if all(point.get("above_bytes", 0) > 0 for point in points):
            above = [float(point["above_bytes"]) for point in points]
            found.append(_exponent_row(points, "memory", axis.bytes, [above]))
    return found


def _exponent_row(
    points: Sequence[Row], what: str, expected: str, rounds: Sequence[Sequence[float]]
) -> Row:
    """One line: its slope in each round, the last two points' alone, how straight the line is."""
    x = [log(point["at"]) for point in points]
    lines = [[log(value) for value in values] for values in rounds]
    first = points[0]
    case = f"{first['case']}: {what} over {first['grows']}"
    label = Label(first["model"], first["precision"], batch_size=0, case=case)
    return {
        **asdict(label),
        "error": "",
        "exponent": quartiles([slope(x, y) for y in lines]),
        "last": quartiles([(y[-1] - y[-2]) / (x[-1] - x[-2]) for y in lines]),
        "bend": standard_error(x, [median(column) for column in zip(*lines, strict=True)]),
        "expected": expected,
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    return linear_regression(x, y).slope


def standard_error(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Of the slope, from the points' distances from the line; two points have none."""
    if len(x) < 3:
        return None
    line, middle = linear_regression(x, y), fmean(x)
    residuals = sum((b - line.intercept - line.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return sqrt(residuals / (len(x) - 2) / sum((a - middle) ** 2 for a in x))
