"""How good a model's samples are: `python -m scm evaluate RUN --sampler two_step -n 10000`.

Draws samples with several seeds, measures them against the real images, and writes one JSON file
per model and sampler with everything that the numbers depend on.
"""

import argparse
import logging
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm.commands import options, results
from scm.config import parts
from scm.config.compose import composed
from scm.config.metrics import QUALITY
from scm.config.ranges import SMALLEST
from scm.config.read import plain
from scm.core import machine, provenance
from scm.core.cli import Parser, check_count, check_file, command
from scm.core.errors import UserError
from scm.core.files import write_json
from scm.data.dataset import to_uint8
from scm.evaluation.quality import Quality, quality_of
from scm.method.samplers import Sampler
from scm.storage import model as models
from scm.storage import samples, store
from scm.storage.model import Model

log = logging.getLogger(__name__)

IMAGES = 10_000  # per seed, unless asked otherwise
SEEDS = 3
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Subject:
    """One thing to measure: a model with one of its samplers, or images out of files."""

    path: Path
    title: str  # the sampler, as it was asked for
    seeds: Sequence[int]
    n: int  # images per seed
    data: parts.Data  # whose real images they are compared with
    source: Model | Tensor  # or uint8 images (N, C, H, W)
    sampler: Sampler | None  # of a model
    origin: dict[str, Any]  # what made the images, for the record

    @property
    def file(self) -> Path:
        """RUN/evaluation/TITLE-nN.json for a run's folder, FILE-TITLE-nN.json beside a file."""
        words = [*re.findall(r"[\w.]+", self.title), f"n{self.n}.json"]
        if isinstance(self.source, Tensor):
            return self.path.with_name("-".join([self.path.stem, words[-1]]))
        if self.path.is_dir():
            return self.path / "evaluation" / "-".join(words)
        return self.path.with_name("-".join([self.path.stem, *words]))

    def images(self, seed: int, batch_size: int) -> Tensor:
        """uint8 (n, C, H, W)."""
        if isinstance(self.source, Tensor):
            return self.source[: self.n]
        title = f"{self.title}, seed {seed}"
        x = self.source.sample(
            self.n, sampler=self.sampler, seed=seed, batch_size=batch_size, title=title
        )
        return to_uint8(x)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="python -m scm evaluate",
        description="Measure samples against the real images, several seeds, with the floor.",
        epilog="example: python -m scm evaluate outputs/teacher --sampler heun steps=18 -n 10000",
    )
    p.add_argument(
        "models",
        nargs="+",
        type=Path,
        help="run folders, safetensors files; or images: .npz files, folders of PNGs",
    )
    p.add_argument("--data", help="what images from elsewhere are compared with (default: mnist)")
    p.add_argument("-n", type=int, help=f"images per seed (default: {IMAGES}, an .npz file's own)")
    p.add_argument("--seeds", type=int, help=f"of the noise: 0, 1, ... (default: {SEEDS})")
    p.add_argument("--out", type=Path, help="the JSON file (default: RUN/evaluation/SAMPLER.json)")
    options.add(p, "--sampler", action="append")
    options.add(
        *(p, "--guide", "--guidance", "--guidance-below", "--batch-size"),
        *("--device", "--precision", "--overwrite"),
    )
    return p


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write, show; a user's mistake is one line and exit code 2."""
    command(parser(), evaluate, argv)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure what `arguments` (of `parser`) ask for; everything is checked before the first."""
    device, dtype = options.chosen_machine(arguments)
    for subject, quality in checked(arguments, device, dtype):
        result = {
            **measured(subject, quality, arguments.batch_size),
            "device": machine.device_name(device),
            "precision": str(dtype).removeprefix("torch."),
        }
        file = arguments.out or subject.file
        file.parent.mkdir(exist_ok=True)
        write_json(file, result)
        print(table(result))
        log.info("written to %s", file)


def checked(
    arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> list[tuple[Subject, Quality]]:
    """What to measure, each with its judge. Raises UserError where it cannot be, or not written."""
    check_count("-n", arguments.n, SMALLEST, options.MOST_IMAGES)
    check_count("--seeds", arguments.seeds, 1, MOST_SEEDS)
    check_count("--batch-size", arguments.batch_size, 1, options.MOST_IMAGES)
    subjects: list[Subject] = []
    for path in arguments.models:
        if path.suffix == ".npz" or samples.is_pictures(path):
            subjects.append(_of_file(path, arguments))
        else:
            model = options.guided(models.load(path, device, dtype), arguments, dtype)
            subjects += _of_model(model, arguments)
    _check_files([arguments.out or subject.file for subject in subjects], arguments)
    data = {str(plain(one.data)): one.data for one in subjects}
    judges = {key: quality_of(models.stored_dataset(one), device) for key, one in data.items()}
    return [(one, judges[str(plain(one.data))]) for one in subjects]


def _of_model(model: Model, arguments: argparse.Namespace) -> Iterator[Subject]:
    """One per chosen sampler, or per sampler of the run's own."""
    if arguments.data is not None:
        raise UserError(f"{model.path}: a model knows its data; leave --data away")
    n, seeds = arguments.n or IMAGES, range(arguments.seeds or SEEDS)
    for title, (name, settings) in options.samplers_of(model, arguments.sampler).items():
        sampler = model.sampler(name, settings)  # refuses one that does not suit the network
        if model.guide is not None:
            title = f"{title} guided {model.guide['guidance']:g}"
            if model.guide["below"] is not None:
                title += f" below {model.guide['below']:g}"
        origin = _origin(name, settings, sampler, model)
        yield Subject(model.path, title, seeds, n, model.facts.data, model, sampler, origin)


def _of_file(path: Path, arguments: argparse.Namespace) -> Subject:
    """The images of an .npz file, or of a folder of PNGs."""
    for option in ("sampler", "seeds", "guide", "guidance", "guidance_below"):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"{path}: holds samples already; leave --{option.replace('_', '-')} away"
            )
    found = samples.load(path)
    n = arguments.n or len(found.images)
    if n > len(found.images):
        raise UserError(f"-n {n}: {path} holds {len(found.images)} images")
    if (made := found.made_by) is None:
        name = arguments.data or "mnist"
        data = composed([f"data={name}"]).data
        found.check_shape(data.image_shape, f"{path}, compared with {name}")
        log.info("%s: images from elsewhere; what made them, and from what, is not known", path)
        return Subject(path, "images", [0], n, data, found.images, None, dict.fromkeys(ORIGIN))
    if arguments.data is not None:
        raise UserError(f"{path}: knows its data, {made.facts.data.name}; leave --data away")
    sampler = models.sampler(made.name, made.sampler, made.facts.data.sigma_data)
    origin = _origin(made.name, made.sampler, sampler, made) | {"sampled_model": made.model}
    return Subject(path, made.name, [made.seed], n, made.facts.data, found.images, None, origin)


ORIGIN = (
    *("sampler", "calls", "guide", store.WEIGHTS_SHA256, "config_sha256", "objective"),
    "sampled_model",
)


def _origin(
    name: str, settings: parts.Sampler, sampler: Sampler, made_by: Model | samples.MadeBy
) -> dict[str, Any]:
    """What is known of a model with a sampler, by the names of `ORIGIN`."""
    return {
        "sampler": {name: plain(settings)},
        "calls": sampler.calls * (1 if made_by.guide is None else 2),
        "guide": made_by.guide,
        store.WEIGHTS_SHA256: made_by.sha256,
        "config_sha256": store.digest(made_by.config),
        "objective": made_by.facts.objective.name,
    }


def _check_files(files: list[Path], arguments: argparse.Namespace) -> None:
    if len(set(files)) < len(files):
        raise UserError(
            f"{files[0]}: would hold several results; leave --out away, or name one model and "
            "one sampler, each once"
        )
    for file in files:
        if arguments.out or file.exists():  # the run's own folder for them is made
            if not arguments.overwrite and (model := results.stale(file)):
                raise UserError(
                    f"{file}: exists, but the weights of {model} have changed since; "
                    "add --overwrite"
                )
            check_file(file, overwrite=arguments.overwrite)


def measured(subject: Subject, quality: Quality, batch_size: int) -> dict[str, Any]:
    """The result: every metric per seed, the floor, and all that they depend on."""
    floor, started, second = quality.floor(subject.n), time.perf_counter(), quality.second
    rows = [quality.measure(subject.images(seed, batch_size)) for seed in subject.seeds]
    return {
        "model": str(subject.path),
        "title": subject.title,
        "n": subject.n,
        "seeds": list(subject.seeds),
        "metrics": {name: spread([row[name] for row in rows]) for name in rows[0]},
        "floor": floor,
        **subject.origin,
        "data": {"name": subject.data.name, "sha256": quality.data_sha256},
        "features": {"sha256": quality.network.sha256, **quality.network.facts},
        "second_features": second and {"sha256": second.sha256, **second.facts},
        "seconds": round(time.perf_counter() - started, 2),
        "git_commit": provenance.git_commit(),
        "versions": provenance.versions(),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; of one seed the latter is not known (None)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def table(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    seeds = len(result["seeds"])
    lines = [
        f"{result['model']}  {result['title']}: {result['calls'] or 'unknown'} network calls, "
        f"{result['n']:,} images, {seeds} seed{'s' * (seeds > 1)}",
        f"{'':24}{'mean':>10}{'std':>10}{'floor':>10}",
    ]
    for name, found in result["metrics"].items():
        std = f"{found['std']:10.4f}" if found["std"] is not None else f"{'-':>10}"
        floor = result["floor"][name]
        lines.append(f"{name:24}{found['mean']:10.4f}{std}{floor:10.4f}  {QUALITY[name]}")
    return "\n".join(lines)
