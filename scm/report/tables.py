"""Tables as text: the numbers of a comparison, a row per run in CSV, Markdown of any cells."""

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape

from scm.report.compare import Cell, Comparison

FACTS = (
    *("status", "broke_at", "objective", "steps", "images_seen", "seconds", "images_per_second"),
    *("parameters", "precision", "device", "git_commit"),
)
ALPHA = 0.05
NAMES = {"frechet_distance": "FD", "loss": "held-out loss"}


def head(tag: str) -> str:
    """`final/one_step/frechet_distance` -> `one_step FD`; `quality/...` says that it is early."""
    parts = tag.split("/")
    name = NAMES.get(parts[-1], parts[-1].replace("_", " "))
    early = ", while training" if parts[0] == "quality" else ""
    return f"{parts[1]} {name}{early}" if len(parts) > 2 else name


def number(cell: Cell) -> str:
    """`3.21 ± 0.12`, a dash where there is nothing, and how many runs gave no number."""
    left = f" ({cell.missing} without)" if cell.missing else ""
    if cell.mean is None:
        return f"-{left}"
    spread = "" if cell.half is None else f" ± {_significant(cell.half, 2)}"
    return f"{_significant(cell.mean, 4)}{spread}{left}"


def _significant(value: float, digits: int) -> str:
    """So many significant digits, without an exponent where the number is readable without."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if 1 <= abs(value) < 1e7 and "e" in text else text


def tested(cell: Cell) -> str:
    """`p 0.03`, marked where it cannot be told from the best."""
    if cell.p is None:
        return ""
    p = "p < 0.001" if cell.p < 0.001 else f"p {cell.p:.2g}"
    return f"{'≈ ' if cell.p >= ALPHA else ''}{p}"


def csv_table(result: Comparison) -> str:
    """A row per run: what it is, how it stands, every metric."""
    labels = {run.path: setting.label for setting in result.settings for run in setting.runs}
    tags = sorted({tag for run in result.runs for tag in run.metrics})
    text = io.StringIO()
    heads = ["run", "setting", "seed", *FACTS, *tags]
    table = csv.DictWriter(text, heads, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for run in result.runs:
        own = {"run": run.path, "setting": labels[run.path], "seed": run.seed, "status": run.status}
        table.writerow({**run.record, **run.metrics, **own})
    return text.getvalue()


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, whatever its cells hold."""
    lines = [[*map(plain, heads)], ["---"] * len(heads), *([*map(plain, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text of a run's as one cell or line, without HTML."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
