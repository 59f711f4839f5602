"""Ship a run's model: `python -m scm.export RUN pretrained/NAME`.

Writes NAME.safetensors, the run's EMA weights with the config that made them; the evaluation of
what was written beside it; and NAME.md, the model card, from these files and the run's metrics.
"""

import argparse
import shlex
from glob import escape
from pathlib import Path
from typing import Any

import torch
import yaml

from scm import build, checkpoint, evaluate, results
from scm.cli import Parser, check_file, command
from scm.errors import UserError
from scm.files import write_atomic
from scm.runfolder import RunFolder, Status
from scm.sample import sampler_settings

ENDINGS = (".safetensors", ".md")
LARGEST = 10 * 2**20  # bytes of a file of weights that may stand in a repository


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="python -m scm.export", description=__doc__)
    p.add_argument("run", type=Path, help="the folder of a run that is done")
    p.add_argument("name", type=Path, help="the files to write, without their endings")
    p.add_argument(
        "--sampler",
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="as of scm.evaluate (default: the run's)",
    )
    p.add_argument("-n", type=int, default=10_000, help="images to judge it by (%(default)s)")
    p.add_argument("--seeds", type=int, default=3, help="of their noise (%(default)s)")
    p.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return p


def main(argv: list[str] | None = None) -> None:
    """Write the three; a user's mistake is one line and exit code 2."""
    command(parser(), export, argv)


def export(arguments: argparse.Namespace) -> None:
    """Do what `arguments` (of `parser`) ask for; everything is checked first."""
    run = RunFolder(arguments.run)
    if not run.path.is_dir():
        raise UserError(f"{run.path}: no such run; name the folder of one that is done")
    if run.status() is not Status.done:
        raise UserError(f"{run.path}: the run is {run.status()}, not done; finish it first")
    name: Path = arguments.name
    if name.is_dir():
        raise UserError(f"{name}: a folder; name the files in it, without their endings")
    if name.suffix in ENDINGS:
        name = name.with_suffix("")
    weights_file, card_file = (name.with_name(name.name + ending) for ending in ENDINGS)
    for file in (weights_file, card_file):
        check_file(file, overwrite=arguments.overwrite)
    weights, config = checkpoint.read_weights(run.path)
    bytes_ = sum(tensor.nbytes for tensor in weights.values())
    if bytes_ > LARGEST:
        raise UserError(f"{run.path}: {bytes_ / 2**20:.1f} MiB of weights, more than 10")
    _check_can_be_judged(arguments, config)
    checkpoint.save_weights(weights_file, weights, config)
    judged = [str(weights_file), "-n", str(arguments.n), "--seeds", str(arguments.seeds)]
    for sampler in arguments.sampler or []:
        judged += ["--sampler", *sampler]
    judged.append("--overwrite")
    evaluate.evaluate(evaluate.parser().parse_args(judged))
    write_atomic(card_file, card(run, weights_file, config, judged).encode())


def _check_can_be_judged(arguments: argparse.Namespace, config: dict[str, Any]) -> None:
    """Refuse what `scm.evaluate` would, before a file is written."""
    evaluate.check_counts(arguments)
    chosen = arguments.sampler or []
    for words in chosen:
        name, settings = sampler_settings(words, config)
        build.sampler(settings, name, config["data"]["sigma_data"])
        if chosen.count(words) > 1:
            raise UserError(f"--sampler {' '.join(words)}: asked for twice; once is enough")
    build.quality(build.stored_dataset(config, arguments.run), torch.device("cpu"))


def card(run: RunFolder, weights_file: Path, config: dict[str, Any], judged: list[str]) -> str:
    """The model card, Markdown; `judged` are the arguments that the evaluation was made with."""
    metrics = run.metrics()
    overrides = yaml.safe_load((run.path / ".hydra" / "overrides.yaml").read_text())
    sha256 = checkpoint.weights_digest(checkpoint.read_weights(weights_file)[0])
    files = sorted(weights_file.parent.glob(f"{escape(weights_file.stem)}-*-n*.json"))
    written = map(results.read, files)
    found = [result for result in written if result.get(checkpoint.WEIGHTS_SHA256) == sha256]
    facts = {
        "command": f"`python run.py {shlex.join(overrides)}`",
        "commit": f"`{metrics['git_commit']}`",
        "seed": metrics["seed"],
        "objective": metrics["objective"],
        "parameters": f"{metrics['parameters']:,}",
        "trained": f"{metrics['steps']:,} steps, {metrics['images_seen']:,} images in "
        f"{metrics['seconds'] / 60:.1f} minutes ({metrics['images_per_second']:,.0f} images/s)",
        "hardware": f"{metrics['device']}, {metrics['precision']}",
        "versions": ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        "weights": f"`{weights_file.name}`, float32, SHA-256 of the weights `{sha256}`",
    }
    data = config["data"]["name"]
    lines = [
        f"# {weights_file.stem}",
        "",
        f"EMA weights for {data} of the run below, made by this project's `scm.export`. The config",
        "that builds the network is in the file's metadata.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        f"Quality, by `python -m scm.evaluate {shlex.join(judged)}`",
        "(mean and spread over sampling seeds; FD is the Frechet distance to the test images in",
        "features of the shipped classifier, FD / floor that to training images' own):",
        "",
        results.table(found),
        "",
        f"Every value, and the versions and hashes it depends on: `{weights_file.stem}-*.json`.",
        "",
        "The configuration:",
        "",
        "```yaml",
        yaml.safe_dump(config, sort_keys=False).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
