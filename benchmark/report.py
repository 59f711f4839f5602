"""From samples to rows (of JSON values), and from rows to a Markdown table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmark import reference
from benchmark.attention import LEAN
from benchmark.attention import Memory as AttentionMemory
from benchmark.memory import Memory
from benchmark.timing import Label, Timing

Row = dict[str, Any]
QUARTILES = ("q1", "median", "q3")


def quartiles(samples: Sequence[float]) -> dict[str, float]:
    """First quartile, median and third quartile, interpolated linearly."""
    values = torch.tensor(samples, dtype=torch.float64)
    found = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return dict(zip(QUARTILES, found.tolist(), strict=True))


def timed_rows(timings: Sequence[Timing]) -> list[Row]:
    """One row per timing: times, rates, the ratio to the diffusion step, the fraction of peak."""
    by_label = {timing.label: timing for timing in timings}
    peaks = _convolution_peaks(timings)
    return [
        _timed_row(
            timing,
            flops=by_label[timing.label.eager].flops if timing.label.eager in by_label else 0,
            baseline=by_label.get(timing.label.baseline),
            peak=peaks.get(timing.label.precision),
        )
        for timing in timings
    ]


def _timed_row(timing: Timing, *, flops: int, baseline: Timing | None, peak: float | None) -> Row:
    row = {**asdict(timing.label), "images": timing.images, "error": timing.error}
    if timing.error:
        return row
    row["seconds"] = quartiles(timing.seconds) | {"samples": timing.seconds}
    median = row["seconds"]["median"]
    if timing.images:
        row["images_per_second"] = timing.images / median
    if baseline and not baseline.error:
        row["ratio"] = quartiles(
            [mine / its for mine, its in zip(timing.seconds, baseline.seconds, strict=True)]
        )
    if flops:
        row |= {"flops": flops, "flops_per_second": flops / median}
        if peak:
            row["fraction_of_peak"] = flops / median / peak
    return row


def add_speedups(rows: Sequence[Row], *, reference: str) -> None:
    """Give each row its images/s over those of the case `reference` of its batch size, by round."""
    seconds = {
        row["batch_size"]: row["seconds"]["samples"]
        for row in rows
        if row["case"] == reference and not row["error"]
    }
    for row in rows:
        if not row["error"] and row["batch_size"] in seconds:
            pairs = zip(seconds[row["batch_size"]], row["seconds"]["samples"], strict=True)
            row["speedup"] = quartiles([its / mine for its, mine in pairs])


def add_passes(rows: Sequence[Row]) -> None:
    """Give each step its FLOPs in forward passes, of which a diffusion step has three."""
    own = ("model", "precision", "batch_size")
    diffusion = {
        tuple(row[key] for key in own): row["flops"]
        for row in rows
        if row["case"] == "diffusion" and not row["error"]
    }
    for row in rows:
        if not row["error"] and (flops := diffusion.get(tuple(row[key] for key in own))):
            row["passes"] = 3 * row["flops"] / flops


def neighbour_rows(label: Label, seconds: dict[str, list[float]]) -> list[Row]:
    """One row per case: its seconds by round, and its rate as a share of the first case's."""
    first, *_ = seconds.values()
    rows: list[Row] = []
    for case, own in seconds.items():
        row: Row = {**asdict(replace(label, case=case)), "images": label.batch_size, "error": ""}
        row["seconds"] = quartiles(own) | {"samples": own}
        row["images_per_second"] = label.batch_size / row["seconds"]["median"]
        row["share"] = quartiles([its / mine for its, mine in zip(first, own, strict=True)])
        rows.append(row)
    return rows


def attention_rows(
    each: Sequence[tuple[Label, str]],
    timings: Sequence[Timing],
    memories: Sequence[AttentionMemory],
) -> list[Row]:
    """One row per length and way: seconds and bytes of each pass, and their ratios to the lean."""
    found = dict(zip(each, zip(timings, memories, strict=True), strict=True))
    rows: dict[Label, Row] = {}
    for (label, passes), (timing, memory) in found.items():
        row = rows.setdefault(label, {**asdict(label), "error": ""})
        lean_timing, lean_memory = found[replace(label, case=LEAN), passes]
        row["error"] = row["error"] or timing.error or memory.error
        if row["error"] or lean_timing.error or lean_memory.error:
            continue
        pairs = zip(timing.seconds, lean_timing.seconds, strict=True)
        row |= {
            f"{passes}_seconds": quartiles(timing.seconds) | {"samples": timing.seconds},
            f"{passes}_ratio": quartiles([mine / its for mine, its in pairs]),
            f"{passes}_bytes": memory.above,
            f"{passes}_bytes_ratio": memory.above / max(1, lean_memory.above),
        }
        if passes == "forward":
            row["tangent_error"] = memory.tangent_error
    return list(rows.values())


def _convolution_peaks(timings: Sequence[Timing]) -> dict[str, float]:
    """Precision -> FLOP/s of its fastest reference convolution."""
    peaks: dict[str, float] = {}
    for timing in timings:
        if timing.label.case.startswith(reference.CONVOLUTION) and not timing.error:
            rate = timing.flops / quartiles(timing.seconds)["median"]
            peaks[timing.label.precision] = max(rate, peaks.get(timing.label.precision, 0.0))
    return peaks


def memory_rows(memories: Sequence[Memory]) -> list[Row]:
    """One row per process: bytes before the first step, at the peak, and ratios to diffusion's."""
    by_label = {memory.label: memory for memory in memories}
    rows = []
    for memory in memories:
        row: Row = {**asdict(memory.label), "error": memory.error}
        baseline = by_label.get(memory.label.baseline)
        if not memory.error:
            row |= {
                "base_bytes": memory.base,
                "peak_bytes": memory.peak,
                "above_bytes": memory.above,
            }
        if baseline and not (memory.error or baseline.error):
            row["peak_ratio"] = memory.peak / baseline.peak
            row["above_ratio"] = memory.above / max(1, baseline.above)
        rows.append(row)
    return rows


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _spread(row: Row) -> str:
    q1, _, q3 = (_seconds(row["seconds"][name]) for name in QUARTILES)
    return f"{q1} .. {q3}"


def _ratio(key: str, digits: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        q1, median, q3 = (f"{row[key][name]:.{digits}f}" for name in QUARTILES)
        return f"{median} ({q1} .. {q3})"

    return text


def _median(key: str) -> Callable[[Row], str]:
    return lambda row: _seconds(row[key]["median"])


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.2f}"


def _megabytes(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key] / 1e6:,.0f}"


COLUMNS: tuple[tuple[str, str, Callable[[Row], str]], ...] = (  # header, key it needs, text
    ("model", "model", lambda row: row["model"]),
    ("precision", "precision", lambda row: row["precision"]),
    ("batch", "batch_size", lambda row: str(row["batch_size"])),
    ("threads", "threads", lambda row: str(row["threads"])),
    ("grows", "grows", lambda row: row["grows"]),
    ("at", "at", lambda row: f"{row['at']:,}"),
    ("tokens", "tokens", lambda row: str(row["tokens"])),
    ("case", "case", lambda row: row["case"]),
    ("compiled", "compiled", lambda row: row["compiled"]),
    ("median", "seconds", lambda row: _seconds(row["seconds"]["median"])),
    ("quartiles", "seconds", _spread),
    ("images/s", "images_per_second", lambda row: f"{row['images_per_second']:,.0f}"),
    ("to diffusion", "ratio", _ratio("ratio", 2)),
    ("forward passes", "passes", lambda row: f"{row['passes']:.2f}"),
    ("times the starting scripts'", "speedup", _ratio("speedup", 1)),
    ("rate / first row's", "share", _ratio("share", 2)),
    ("GFLOP", "flops", lambda row: f"{row['flops'] / 1e9:.3g}"),
    ("TFLOP/s", "flops_per_second", lambda row: f"{row['flops_per_second'] / 1e12:.3g}"),
    ("of conv peak", "fraction_of_peak", lambda row: f"{row['fraction_of_peak']:.0%}"),
    ("before, MB", "base_bytes", _megabytes("base_bytes")),
    ("peak, MB", "peak_bytes", _megabytes("peak_bytes")),
    ("above, MB", "above_bytes", _megabytes("above_bytes")),
    ("peak to diffusion", "peak_ratio", lambda row: f"{row['peak_ratio']:.2f}"),
    ("above to diffusion", "above_ratio", lambda row: f"{row['above_ratio']:.2f}"),
    ("exponent", "exponent", _ratio("exponent", 2)),
    ("of the last two", "last", lambda row: f"{row['last']['median']:.2f}"),
    ("± of the line", "bend", lambda row: f"{row['bend']:.2f}"),
    ("expected", "expected", lambda row: row["expected"]),
    *(
        column
        for passes, name in (("forward", "forward"), ("backward", "with backward"))
        for column in (
            (name, f"{passes}_seconds", _median(f"{passes}_seconds")),
            ("/ lean", f"{passes}_ratio", _ratio(f"{passes}_ratio", 2)),
            ("MB", f"{passes}_bytes", _megabytes(f"{passes}_bytes")),
            ("/ lean", f"{passes}_bytes_ratio", _number(f"{passes}_bytes_ratio")),
        )
    ),
    ("tangent's error", "tangent_error", lambda row: f"{row['tangent_error']:.1g}"),
    ("failed", "error", lambda row: row["error"].replace("|", "/")[:100]),
)


def markdown(rows: Sequence[Row]) -> str:
    """A table of the columns that at least one row fills."""
    used = [column for column in COLUMNS if any(row.get(column[1]) for row in rows)]
    lines = [[header for header, _, _ in used], ["---"] * len(used)]
    lines += [[text(row) if row.get(key) else "" for _, key, text in used] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
