"""How good a model's samples are: `python -m scm.evaluate RUN --sampler two_step -n 10000`.

Draws samples with several seeds, measures them against the real images, and writes one JSON file
per model and sampler with everything that the numbers depend on.
"""

import argparse
import json
import logging
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from scm import build, checkpoint, results, runtime
from scm.cli import Parser, check_count, check_file, command
from scm.config import Device, Precision
from scm.errors import UserError
from scm.files import write_json
from scm.quality import Quality
from scm.sample import MOST_IMAGES
from scm.subjects import IMAGES, SEEDS, Machine, Subject, subjects_of
from scm.tags import QUALITY, SMALLEST

log = logging.getLogger(__name__)

MOST_SEEDS = 1000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="python -m scm.evaluate",
        description="Measure samples against the real images, several seeds, with the floor.",
        epilog="example: python -m scm.evaluate outputs/teacher --sampler heun steps=18 -n 10000",
    )
    p.add_argument("models", nargs="+", help="run folders, checkpoints, safetensors or .npz files")
    p.add_argument(
        "--sampler",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="one of conf/sampler, and changes to its values; may be repeated (default: the run's)",
    )
    p.add_argument("-n", type=int, help=f"images per seed (default: {IMAGES}, an .npz file's own)")
    p.add_argument("--seeds", type=int, help=f"of the noise: 0, 1, ... (default: {SEEDS})")
    p.add_argument("--batch-size", type=int, default=256, help="images at once (%(default)s)")
    p.add_argument("--out", type=Path, help="the JSON file (default: RUN/evaluation/SAMPLER.json)")
    p.add_argument("--device", choices=[d.name for d in Device], default="auto")
    p.add_argument("--precision", choices=[p.name for p in Precision], default="auto")
    p.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return p


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write, show; a user's mistake is one line and exit code 2."""
    command(parser(), evaluate, argv)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure what `arguments` (of `parser`) ask for; everything is checked before the first."""
    check_counts(arguments)
    check_count("--batch-size", arguments.batch_size, 1, MOST_IMAGES)
    runtime.prepare(None)
    device = runtime.find_device(Device[arguments.device])
    machine = Machine(
        device=device,
        dtype=runtime.find_dtype(Precision[arguments.precision], device),
        batch_size=arguments.batch_size,
    )
    subjects = [
        subject
        for model in arguments.models
        for subject in subjects_of(
            Path(model), arguments.sampler, arguments.n, arguments.seeds, machine
        )
    ]
    files = [arguments.out or subject.file for subject in subjects]
    _check_files(files, arguments)
    qualities: dict[str, Quality] = {}
    for subject, file in zip(subjects, files, strict=True):
        data = subject.config["data"]
        if (key := json.dumps(data)) not in qualities:
            dataset = build.stored_dataset(subject.config, subject.path)
            qualities[key] = build.quality(dataset, device)
        result = measured(subject, qualities[key], machine)
        file.parent.mkdir(exist_ok=True)
        write_json(file, result)
        print(table(result))
        log.info("written to %s", file)


def check_counts(arguments: argparse.Namespace) -> None:
    """Raise UserError where there are too few or too many images or seeds."""
    check_count("-n", arguments.n, SMALLEST, MOST_IMAGES)
    check_count("--seeds", arguments.seeds, 1, MOST_SEEDS)


def _check_files(files: list[Path], arguments: argparse.Namespace) -> None:
    if len(set(files)) < len(files):
        raise UserError(
            f"{files[0]}: would hold several results; leave --out away, or name one model and "
            "one sampler, each once"
        )
    for file in files:
        if arguments.out or file.exists():  # the run's own folder for them is made
            if not arguments.overwrite:
                _refuse_stale(file)
            check_file(file, overwrite=arguments.overwrite)


def _refuse_stale(file: Path) -> None:
    """A result that exists, but of other weights, is worth replacing: say so."""
    model = None
    with suppress(UserError):  # it is no result
        model = results.stale(file, results.read(file))
    if model is not None:
        raise UserError(
            f"{file}: exists, but the weights of {model} have changed since; add --overwrite"
        )


def measured(subject: Subject, quality: Quality, machine: Machine) -> dict[str, Any]:
    """The result: every metric per seed, the floor, and all that they depend on."""
    floor = quality.floor(subject.n)
    rows, drawing, measuring = [], 0.0, 0.0
    for seed in subject.seeds:
        started = time.perf_counter()
        images = subject.draw(seed)
        drawn = time.perf_counter()
        rows.append(quality.measure(images))
        drawing += drawn - started
        measuring += time.perf_counter() - drawn
    return {
        "model": str(subject.path),
        "n": subject.n,
        "seeds": subject.seeds,
        "metrics": {name: spread([row[name] for row in rows]) for name in QUALITY},
        "floor": floor,
        **subject.facts(),
        "objective": subject.config["objective"]["_target_"].rpartition(".")[2],
        "config_sha256": checkpoint.digest(subject.config),
        "data": {"name": subject.config["data"]["name"], "sha256": quality.data_sha256},
        "features": {"sha256": quality.network.sha256, **quality.network.facts},
        "seconds": {"drawing": round(drawing, 2), "measuring": round(measuring, 2)},
        "git_commit": runtime.git_commit(),
        "versions": runtime.versions(),
        "device": runtime.device_name(machine.device),
        "precision": str(machine.dtype).removeprefix("torch."),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; of one seed the latter is not known (None)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    seeds = len(result["seeds"])
    lines = [
        f"{result['model']}  {result['title']}: {result['calls']} network calls, "
        f"{result['n']:,} images, {seeds} seed{'s' * (seeds > 1)}",
        f"{'':24}{'mean':>10}{'std':>10}{'floor':>10}",
    ]
    for name, measured in result["metrics"].items():
        std = f"{measured['std']:10.4f}" if measured["std"] is not None else f"{'-':>10}"
        floor = result["floor"][name]
        lines.append(f"{name:24}{measured['mean']:10.4f}{std}{floor:10.4f}  {QUALITY[name]}")
    if "teacher" in result:
        to_teacher = result["teacher"]
        lines.append(
            f"{'rms from the teacher':24}{to_teacher['rms']:10.4f}  of {to_teacher['images']} "
            f"images, {to_teacher['model']} along its ODE from the same noise"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
