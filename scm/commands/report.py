"""Compare runs: `python -m scm report SWEEP_OR_RUNS... [--out FOLDER]`.

Writes summary.csv (a row per run, all metrics), summary.md (a row per setting, means and 95 %
intervals over seeds), summary.svg (quality and tangent norm over training), samples.png (where runs
have drawn some) and report.html, one page that needs nothing else. Reads the runs' own files only,
so it may be called while they are running.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from scm.core.cli import Parser, command
from scm.core.errors import UserError
from scm.core.files import write_atomic
from scm.report import curves, read, study, tables
from scm.report.compare import Comparison, compared, doubts
from scm.report.read import Run
from scm.report.tables import head
from scm.storage.folder import Status

log = logging.getLogger(__name__)

ENDS = (Status.done, Status.pruned)  # as a job of a sweep should


def main(argv: list[str] | None = None) -> None:
    """Write the files; a user's mistake is one line and exit code 2."""
    p = Parser(prog="python -m scm report", description=__doc__)
    p.add_argument("folders", nargs="+", type=Path, help="of a sweep, or of runs")
    p.add_argument("--out", type=Path, help="folder to write into (default: the one given)")
    p.add_argument(
        "--diff",
        action="store_true",
        help="only print in what these runs differ, settings and then numbers; nothing is written",
    )
    command(p, _report, argv)


def _report(arguments: argparse.Namespace) -> None:
    folders: list[Path] = arguments.folders
    if arguments.diff:
        print(differences(read.found(folders)))
        return
    if arguments.out is None and len(folders) > 1:
        raise UserError("several folders: name one for the report with --out FOLDER")
    write(folders, arguments.out or folders[0])


def write(folders: list[Path], out: Path) -> Comparison:
    """Write summary.csv, summary.md, summary.svg, samples.png and report.html into `out`."""
    result = compared(read.found(folders))
    from scm.report import charts, page  # here, since they import matplotlib, which takes its time

    out.mkdir(parents=True, exist_ok=True)
    shown = {
        "result": result,
        "asked": read.question(folders),
        "doubts": doubts(result.runs),
        "study": study.read(folders, result.runs),
    }
    for name, text in {
        "summary.csv": tables.csv_table(result),
        "summary.md": page.filled("summary.md.j2", **shown),
        "summary.svg": charts.drawn(curves.sheet(result), [s.label for s in curves.shown(result)]),
        "report.html": page.filled("page.html.j2", **shown),
    }.items():
        write_atomic(out / name, text.encode(errors="replace"))
    if picture := charts.samples(curves.shown(result), result.columns):
        write_atomic(out / "samples.png", picture)
    log.info("compared: %s", out / "report.html")
    return result


def differences(runs: Sequence[Run]) -> str:
    """A Markdown table with a column per run: settings that differ, then all numbers of the table.

    Raises UserError where there is one run alone.
    """
    if len(runs) < 2:
        raise UserError(f"{runs[0].path}: one run alone; name two or more to see their differences")
    settings = [{key: str(value) for key, value in run.config.items()} for run in runs]
    keys = sorted(set().union(*settings))
    rows = [[key, *(own.get(key, "-") for own in settings)] for key in keys]
    changed = [row for row in rows if len(set(row[1:])) > 1]
    tags = compared(runs).columns
    numbers = [[head(tag), *(_shown(run.metrics.get(tag)) for run in runs)] for tag in tags]
    rows = [["status", *(run.status for run in runs)], *changed, *numbers]
    return tables.markdown_table(["", *(run.path.name for run in runs)], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def report_sweep(folder: Path) -> bool:
    """Report at a sweep's end; whether none of its jobs has failed."""
    try:
        result = write([folder], folder)
    except UserError as error:  # no job has left anything
        log.error("%s", error)
        return False
    failed = [run for run in result.runs if run.status not in ENDS]
    for run in failed:
        log.error("%s: %s %s", run.status, run.path.name, run.reason)
    log.info("%d of %d jobs done: %s", len(result.runs) - len(failed), len(result.runs), folder)
    return not failed
