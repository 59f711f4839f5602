"""A Markdown table of evaluations: `python -m scm results outputs/* pretrained/*.json`.

Reads what `python -m scm evaluate` wrote; refuses to put side by side what cannot be compared.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from scm.config.metrics import SECOND
from scm.core.cli import Parser, command
from scm.core.errors import UserError
from scm.core.files import reading
from scm.report.tables import markdown_table
from scm.storage.store import EMA_FILE, WEIGHTS_SHA256, stored_digest

log = logging.getLogger(__name__)

SAME = ("data", "features", "second_features")  # parts whose digests make two results comparable
FILES = (".safetensors", ".pt", ".npz")  # a run's folder may have a dot in its name
SHOWN = (
    *("precision", "recall", "density", "coverage"),
    *("class_variation", "confidence", "memorisation"),
)
BY_SECOND = "second FD / floor"  # a column that is shown where any result has it
COLUMNS = (
    "model",
    "sampler",
    "calls",
    "FD",
    "FD / floor",
    BY_SECOND,
    *SHOWN,
    "n",
    "seeds",
)


def main(argv: list[str] | None = None) -> None:
    """Print the table; a user's mistake is one line and exit code 2."""
    p = Parser(prog="python -m scm results", description=__doc__)
    p.add_argument("results", nargs="+", type=Path, help="files of scm evaluate, or run folders")
    command(p, show, argv)


def show(arguments: argparse.Namespace) -> None:
    """Print the table of `arguments`, and name what was measured of former weights."""
    found = files(arguments.results)
    text = table([read(file) for file in found])
    for file in found:
        if model := stale(file):
            log.warning(
                "%s: measured other weights than %s has now; `python -m scm evaluate %s "
                "--overwrite` measures these",
                *(file, model, model),
            )
    print(text)


def files(paths: list[Path]) -> list[Path]:
    """The result files: those named, and all in the folders named."""
    folders = {path: sorted(path.glob("evaluation/*.json")) for path in paths if path.is_dir()}
    found = [file for path in paths for file in folders.get(path, [path])]
    if not found:
        shown = ", ".join(map(str, paths))
        raise UserError(
            f"{shown}: no results there; `python -m scm evaluate {paths[0]}` makes some"
        )
    return found


def read(file: Path) -> dict[str, Any]:
    """One result. Raises UserError where the file holds none."""
    with reading(file, "a result of scm.commands.evaluate"):
        result: dict[str, Any] = json.loads(file.read_text())
        table([result])
    return result


def stale(file: Path) -> Path | None:
    """The model whose weights are no longer those that were measured.

    None where they are, or where it is not known, as for a file that holds no result.
    """
    try:
        result = read(file)
    except UserError:
        return None
    own = file.parent.name == "evaluation"  # a run's folder may have been moved since
    model = file.parent.parent if own else Path(result["model"])
    now = stored_digest(model / "checkpoints" / EMA_FILE if model.is_dir() else model)
    then = result.get(WEIGHTS_SHA256)
    return None if None in (now, then) or now == then else model


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a row per result. Raises UserError where data or feature networks differ."""
    for part in SAME:
        # of before there was a second network a result has none
        seen = {r[part]["sha256"]: r["model"] for r in results if part != SAME[2] or r.get(part)}
        if len(seen) > 1:
            models = ", ".join(seen.values())
            raise UserError(f"results with different {part}.sha256, no comparison: {models}")
    rows = [[name.replace("_", " ") for name in COLUMNS], *map(row, results)]
    if not any(SECOND in result["metrics"] for result in results):
        k = COLUMNS.index(BY_SECOND)
        rows = [[*cells[:k], *cells[k + 1 :]] for cells in rows]
    return markdown_table(rows[0], rows[1:])


def row(result: dict[str, Any]) -> list[str]:
    """The cells of one result, in the order of `COLUMNS`."""
    metrics = result["metrics"]
    distance, floor = metrics["frechet_distance"], result["floor"]["frechet_distance"]
    std = "" if distance["std"] is None else f" ± {distance['std']:.2f}"
    return [
        _name(Path(result["model"])),
        result["title"],
        str(result["calls"] or "-"),
        f"{distance['mean']:.2f}{std}",
        f"{distance['mean'] / floor:.1f}",
        f"{metrics[SECOND]['mean'] / result['floor'][SECOND]:.1f}" if SECOND in metrics else "-",
        *(f"{metrics[name]['mean']:.3f}" for name in SHOWN),
        f"{result['n']:,}",
        str(len(result["seeds"])),
    ]


def _name(path: Path) -> str:
    """A run's name, before the file's where it is one of several in its checkpoints folder."""
    if path.parent.name != "checkpoints":
        return path.stem if path.suffix in FILES else path.name
    run = path.parent.parent.name
    return run if path.name == EMA_FILE else f"{run} {path.stem}"
