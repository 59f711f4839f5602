"""Samples of a trained model into a file: `python -m scm sample RUN --sampler two_step`."""

import argparse
from pathlib import Path

from scm.commands import options
from scm.core.cli import Parser, check_count, check_file, command
from scm.core.errors import UserError
from scm.evaluation import pictures
from scm.storage import model as models
from scm.storage import samples

GRID_IMAGES = 64


def main(argv: list[str] | None = None) -> None:
    """Parse, sample, write; a user's mistake is one line and exit code 2."""
    p = Parser(
        prog="python -m scm sample",
        description="Draw samples from the EMA weights of a run.",
        epilog="example: python -m scm sample outputs/teacher --sampler heun steps=32 -n 1000",
    )
    p.add_argument("model", help="a run's folder or a safetensors file")
    p.add_argument("-n", type=int, default=64, help="how many images (default: %(default)s)")
    p.add_argument("--label", type=int, help="class of a conditional model (default: all in turn)")
    p.add_argument("--out", type=Path, help="write images and settings into this .npz file")
    p.add_argument("--grid", type=Path, help=f"write the first {GRID_IMAGES} images as a PNG")
    options.add(p, *options.OPTIONS)
    command(p, sample, argv)


def sample(arguments: argparse.Namespace) -> None:
    """Draw what `arguments` ask for and write it; everything is checked first."""
    if not (arguments.out or arguments.grid):
        raise UserError("nothing to write: add --out samples.npz, --grid grid.png, or both")
    check_count("-n", arguments.n, 1, options.MOST_IMAGES)
    check_count("--batch-size", arguments.batch_size, 1, options.MOST_IMAGES)
    for path in (arguments.out, arguments.grid):
        check_file(path, overwrite=arguments.overwrite)
    device, dtype = options.chosen_machine(arguments)
    model = options.guided(models.load(arguments.model, device, dtype), arguments, dtype)
    chosen = None if arguments.sampler is None else [arguments.sampler]
    name, settings = next(iter(options.samplers_of(model, chosen).values()))
    x = model.sample(
        arguments.n,
        sampler=model.sampler(name, settings),
        seed=arguments.seed,
        label=arguments.label,
        batch_size=arguments.batch_size,
        title=name,
    )
    if arguments.grid:
        pictures.save_png(arguments.grid, pictures.grid(x[:GRID_IMAGES], columns=8))
    if arguments.out:
        labels = model.labels(arguments.n, arguments.label)
        sampler = {name: settings}
        samples.write(arguments.out, x, model, labels=labels, sampler=sampler, seed=arguments.seed)
