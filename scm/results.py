"""A Markdown table of evaluations: `python -m scm.results outputs/* pretrained/*.json`.

Reads the files that `scm.evaluate` wrote and refuses to put side by side what cannot be compared.
"""

import json
import logging
from pathlib import Path
from typing import Any

from scm.checkpoint import EMA_FILE, WEIGHTS_SHA256, stored_digest
from scm.cli import Parser, mistakes_in_one_line
from scm.errors import UserError
from scm.runfolder import flatten

log = logging.getLogger(__name__)

FILES = (".safetensors", ".pt", ".npz")  # a run's folder may have a dot in its name
SAME = ("data.sha256", "features.sha256")  # what makes two results comparable
SHOWN = (
    *("precision", "recall", "density", "coverage"),
    *("class_variation", "confidence", "memorisation"),
)
COLUMNS = ("model", "sampler", "calls", "FD", "FD / floor", *SHOWN, "n", "seeds")


def main(argv: list[str] | None = None) -> None:
    """Print the table; a user's mistake is one line and exit code 2."""
    p = Parser(prog="python -m scm.results", description=main.__doc__)
    p.add_argument("results", nargs="+", type=Path, help="files of scm.evaluate, or run folders")
    with mistakes_in_one_line():
        found = {file: read(file) for file in files(p.parse_args(argv).results)}
        text = table(list(found.values()))
        for file, result in found.items():
            if (model := stale(file, result)) is not None:
                log.warning(
                    "%s: measured other weights than %s has now; `python -m scm.evaluate %s "
                    "--overwrite` measures these",
                    *(file, model, model),
                )
        print(text)


def files(paths: list[Path]) -> list[Path]:
    """The result files: those named, and all in the folders named."""
    found: list[Path] = []
    for path in paths:
        found += sorted((path / "evaluation").glob("*.json")) if path.is_dir() else [path]
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))}: no results there; make some with "
            f"`python -m scm.evaluate {paths[0]}`"
        )
    return found


def read(file: Path) -> dict[str, Any]:
    """One result. Raises UserError where the file holds none."""
    try:
        if file.exists() and not file.is_file():
            raise ValueError("not a file")
        result = json.loads(file.read_text())
        row(result)
        [flatten(result)[key] for key in SAME]
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise UserError(f"{file}: not a result of scm.evaluate ({error!r})") from None
    return result


def stale(file: Path, result: dict[str, Any]) -> Path | None:
    """The model whose weights are not those that were measured; None where they are, or unknown."""
    own = file.parent.name == "evaluation"  # a run's folder may have been moved since
    model = file.absolute().parent.parent if own else Path(result["model"])
    now = stored_digest(model / "checkpoints" / EMA_FILE if model.is_dir() else model)
    then = result.get(WEIGHTS_SHA256)
    if now is None or then is None or now == then:
        return None
    return file.parent.parent if own else model


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a row per result. Raises UserError where data or feature networks differ."""
    for key in SAME:
        seen = {flatten(result)[key]: result["model"] for result in results}
        if len(seen) > 1:
            raise UserError(
                f"results with different {key}, no comparison: {', '.join(seen.values())}"
            )
    heads = [name.replace("_", " ") for name in COLUMNS]
    lines = [heads, ["---"] * len(heads), *map(row, results)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def row(result: dict[str, Any]) -> list[str]:
    """The cells of one result, in the order of `COLUMNS`."""
    metrics = result["metrics"]
    distance, floor = metrics["frechet_distance"], result["floor"]["frechet_distance"]
    std = "" if distance["std"] is None else f" ± {distance['std']:.2f}"
    return [
        _name(Path(result["model"])),
        result["title"],
        str(result["calls"]),
        f"{distance['mean']:.2f}{std}",
        f"{distance['mean'] / floor:.1f}",
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


if __name__ == "__main__":
    main()
