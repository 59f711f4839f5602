"""Samples of a trained model into a file: `python -m scm.sample RUN --sampler two_step -n 10000`.

Image i depends on (seed, i) alone, so a larger n continues a smaller one and the batch size changes
nothing.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scm import build, pictures, runtime, validate
from scm.checkpoint import WEIGHTS_SHA256
from scm.cli import Parser, check_count, check_file, mistakes_in_one_line
from scm.composing import CONF, composed
from scm.config import Device, Precision
from scm.data import to_uint8
from scm.errors import UserError
from scm.files import write_atomic
from scm.samplers import Sampler, draw

GRID_IMAGES = 64
MOST_IMAGES = 1_000_000  # they are all held in memory


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="python -m scm.sample",
        description="Draw samples from the EMA weights of a run.",
        epilog="example: python -m scm.sample outputs/teacher --sampler heun steps=32 -n 1000",
    )
    p.add_argument("model", help="a run's folder, a checkpoint or a safetensors file")
    p.add_argument(
        "--sampler",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="one of conf/sampler, and changes to its values (default: the run's first)",
    )
    p.add_argument("-n", type=int, default=64, help="how many images (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    p.add_argument("--out", type=Path, help="write images and settings into this .npz file")
    p.add_argument("--grid", type=Path, help=f"write the first {GRID_IMAGES} images as a PNG")
    p.add_argument("--label", type=int, help="class of a conditional model (default: all in turn)")
    p.add_argument("--batch-size", type=int, default=256, help="images at once (%(default)s)")
    p.add_argument("--device", choices=[d.name for d in Device], default="auto")
    p.add_argument("--precision", choices=[p.name for p in Precision], default="auto")
    p.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return p


def sampler_settings(chosen: list[str] | None, run: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of the sampler: the run's own first, or one composed from conf/sampler.

    Raises UserError for an unknown sampler or value, or one that does not suit the run's objective.
    """
    if chosen is None:
        if not run["sampler"]:
            raise UserError("its config names no sampler; choose one with --sampler NAME")
        name, settings = next(iter(run["sampler"].items()))
    else:
        name, *changes = chosen
        names = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
        if name not in names:
            raise UserError(f"--sampler {name}: unknown; there is: {', '.join(names)}")
        overrides = [f"sampler=[{name}]", *(f"sampler.{name}.{change}" for change in changes)]
        try:
            settings = composed(overrides)["sampler"][name]
        except UserError as error:
            raise UserError(f"--sampler {' '.join(chosen)}: {error}") from None
    validate.check_sampler(name, settings, run["objective"])
    return name, settings


def labels_for(label: int | None, n: int, num_classes: int) -> torch.Tensor | None:
    """(n,) classes: the one asked for, or all in turn; None for an unconditional model."""
    if num_classes == 0:
        if label is not None:
            raise UserError(f"--label {label}: the model is unconditional; leave --label out")
        return None
    if label is None:
        return torch.arange(n) % num_classes
    if not 0 <= label < num_classes:
        raise UserError(f"--label {label}: must be 0 ... {num_classes - 1}")
    return torch.full((n,), label)


def main(argv: list[str] | None = None) -> None:
    """Parse, sample, write; a user's mistake is one line and exit code 2."""
    arguments = parser().parse_args(argv)
    with mistakes_in_one_line():
        sample(arguments)


def sample(arguments: argparse.Namespace) -> None:
    """Draw what `arguments` (of `parser`) ask for and write it."""
    _check(arguments)
    runtime.prepare(None)
    device = runtime.find_device(Device[arguments.device])
    dtype = runtime.find_dtype(Precision[arguments.precision], device)
    trained = build.trained_network(arguments.model, device, dtype)
    name, settings = sampler_settings(arguments.sampler, trained.config)
    labels = labels_for(arguments.label, arguments.n, trained.config["model"]["num_classes"])
    x = images(
        trained,
        build.sampler(settings, name, trained.sigma_data),
        arguments.n,
        seed=arguments.seed,
        labels=labels,
        device=device,
        batch_size=arguments.batch_size,
        title=name,
    )
    if arguments.grid:
        pictures.save_png(arguments.grid, pictures.grid(x[:GRID_IMAGES], columns=8))
    if arguments.out:
        facts = {
            "model": arguments.model,
            WEIGHTS_SHA256: trained.sha256,
            "sampler": {name: settings},
            "seed": arguments.seed,
            "config": trained.config,
        }
        _write_npz(arguments.out, x, labels, facts)


def images(
    trained: build.Trained,
    sampler: Sampler,
    n: int,
    *,
    seed: int,
    labels: torch.Tensor | None,
    device: torch.device,
    batch_size: int,
    title: str,
) -> torch.Tensor:
    """n samples (n, C, H, W) on the CPU, float32, about in [-0.5, 0.5], with a progress bar."""
    batches = draw(
        sampler,
        trained.net,
        n,
        seed=seed,
        image_shape=trained.image_shape,
        sigma_data=trained.sigma_data,
        device=device,
        batch_size=batch_size,
        labels=labels,
    )
    parts = []
    with tqdm(total=n, unit="image", desc=title) as bar:
        for batch in batches:
            parts.append(batch)
            bar.update(len(batch))
    return torch.cat(parts)


def _check(arguments: argparse.Namespace) -> None:
    if not (arguments.out or arguments.grid):
        raise UserError("nothing to write: add --out samples.npz, --grid grid.png, or both")
    check_count("-n", arguments.n, 1, MOST_IMAGES)
    check_count("--batch-size", arguments.batch_size, 1, MOST_IMAGES)
    for path in (arguments.out, arguments.grid):
        check_file(path, overwrite=arguments.overwrite)


def _write_npz(
    path: Path, x: torch.Tensor, labels: torch.Tensor | None, settings: dict[str, Any]
) -> None:
    """`images`: uint8 (N, H, W), or (N, C, H, W) with several channels; a toy's stay float32."""
    is_toy = x.shape[2:].numel() == 1
    values = (x if is_toy else to_uint8(x)).squeeze(1).numpy()
    arrays: dict[str, Any] = {"images": values, "settings": np.array(json.dumps(settings))}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


if __name__ == "__main__":
    main()
