"""Compare runs: `python -m scm.report SWEEP_OR_RUNS... [--out FOLDER]`.

Writes summary.csv (a row per run, all metrics), summary.md (a row per setting, means and 95 %
intervals over seeds), summary.svg (quality and tangent norm over training) and report.html, one
page that needs nothing else. Reads the runs' own files
only, so it may be called while they are running.
"""

import argparse
import csv
import io
import logging
from html import escape
from pathlib import Path
from typing import Any

from scm import board, page, sheet, sweep
from scm.cli import Parser, command
from scm.compare import Cell, Comparison, compared
from scm.errors import UserError
from scm.files import write_atomic
from scm.runfolder import Status
from scm.runs import Run, found

log = logging.getLogger(__name__)

NOTE = (
    "Mean ± half the 95 % t interval over the seeds of finished runs. **Bold**: the best mean. "
    "p: of no difference from it (t test, paired by seed where the seeds are the same, else "
    "Welch's; Holm's correction within the column, which does not answer for the best having been "
    "chosen by looking); ≈: p >= 0.05, not told apart. (n without): n ended runs gave no finite "
    "number, and the mean is of the others; such a setting is never the best."
)
FACTS = ("status", "objective", "steps", "images_seen", "seconds", "images_per_second")
MORE_FACTS = ("parameters", "precision", "device", "git_commit")


def main(argv: list[str] | None = None) -> None:
    """Write the four files; a user's mistake is one line and exit code 2."""
    p = Parser(prog="python -m scm.report", description=main.__doc__)
    p.add_argument("folders", nargs="+", type=Path, help="of a sweep, or of runs")
    p.add_argument("--out", type=Path, help="folder to write into (default: the one given)")
    command(p, _report, argv)


def _report(arguments: argparse.Namespace) -> None:
    folders: list[Path] = arguments.folders
    if arguments.out is None and len(folders) > 1:
        raise UserError("several folders: name one for the report with --out FOLDER")
    write(folders, arguments.out or folders[0])


def write(folders: list[Path], out: Path) -> Comparison:
    """Write summary.csv, summary.md, summary.svg and report.html into `out`."""
    asked = sweep.read(folders[0]) if len(folders) == 1 else {}
    result = compared(found(folders))
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "summary.csv", csv_table(result).encode())
    write_atomic(out / "summary.md", markdown(result, asked).encode())
    write_atomic(out / "summary.svg", sheet.sheet(result).encode())
    write_atomic(out / "report.html", page.html(result, asked, NOTE).encode())
    log.info("compared: %s", out / "report.html")
    return result


def report_sweep(folder: Path) -> bool:
    """Report at a sweep's end; whether none of its jobs has failed."""
    try:
        result = write([folder], folder)
    except UserError as error:  # no job has left anything
        log.error("%s", error)
        return False
    describe(result, folder)
    failed = [run for run in result.runs if run.status != Status.done]
    for run in failed:
        log.error("%s: %s %s", run.status, run.path.name, _last_line(run))
    log.info("%d of %d jobs done: %s", len(result.runs) - len(failed), len(result.runs), folder)
    return not failed


def describe(result: Comparison, folder: Path) -> None:
    """Name the columns and charts of the sweep's TensorBoard pages."""
    whole = [run for run in result.runs if run.done]
    if whole:
        samplers = list(dict.fromkeys(name for run in whole for name in run.samplers))
        measured = {tag for run in whole for tag in run.metrics}
        board.describe(
            folder,
            rows=[board.hparams(run.config) for run in whole],
            metrics={tag: page.head(tag) for tag in result.columns},
            charts=board.layout(samplers, measured),
        )


def _last_line(run: Run) -> str:
    """What a failed run's traceback ends with."""
    return run.failure.strip().rpartition("\n")[2]


def csv_table(result: Comparison) -> str:
    """A row per run: what it is, how it stands, every metric."""
    labels = {run.path: setting.label for setting in result.settings for run in setting.runs}
    tags = sorted({tag for run in result.runs for tag in run.metrics})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "setting", "seed", *FACTS, *MORE_FACTS, *tags])
    for run in result.runs:
        facts: dict[str, Any] = {**run.record, "status": run.status}
        table.writerow(
            [
                *(str(run.path), labels[run.path], run.seed),
                *(facts.get(name) for name in (*FACTS, *MORE_FACTS)),
                *(run.metrics.get(tag) for tag in tags),
            ]
        )
    return text.getvalue()


def markdown(result: Comparison, asked: dict[str, Any]) -> str:
    """A row per setting."""
    lines = []
    if asked:
        lines += [f"# {_plain(str(asked.get('question') or asked.get('name')))}", ""]
        lines += [f"    {' '.join(str(asked.get('command')).split())}", ""]
    heads = ["setting", "runs", *(page.head(tag) for tag in result.columns)]
    lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for setting in result.settings:
        cells = [_cell(result.cells[setting.label, tag]) for tag in result.columns]
        label, statuses = (_plain(text) for text in (setting.label, setting.statuses()))
        lines.append(f"| {label} | {statuses} | {' | '.join(cells)} |")
    lines += ["", NOTE, *map(_plain, page.warnings(result))]
    lines += ["", "![quality and tangent norm over the images seen](summary.svg)"]
    failed = [run for run in result.runs if run.failure]
    if failed:
        lines += ["", "Failed:", ""]
        lines += [f"- {_plain(run.path.name)}: {_plain(_last_line(run))}" for run in failed]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text of a run's as one cell or line, without HTML."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _cell(cell: Cell) -> str:
    text = page.number(cell)
    text = f"**{text}**" if cell.best else text
    return f"{text} ({page.tested(cell)})" if cell.p is not None else text


if __name__ == "__main__":
    main()
