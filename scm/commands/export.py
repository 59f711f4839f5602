"""Ship a model: `python -m scm export MODEL NAME`, with --to for other programs.

files: NAME.safetensors, a run's EMA weights with the config that made them; the evaluation of what
was written, beside it; and NAME.md, the model card, from these files and the run's metrics.
hub: NAME is a folder as Hugging Face's hub has them, with model.safetensors, config.json and
README.md. `scm.load` and every command read both.
onnx: NAME.onnx, the network of any model that `scm.load` reads.
diffusers: NAME is a folder with a consistency model for diffusers' SCMScheduler.
"""

import argparse
from glob import escape
from pathlib import Path

import torch

from scm.commands import evaluate, options, results
from scm.core.cli import Parser, check_file, command
from scm.core.errors import UserError
from scm.core.files import write_atomic
from scm.export import card, diffusers, onnx
from scm.storage import model as models
from scm.storage import store
from scm.storage.folder import RunFolder, Status

ENDINGS = (".safetensors", ".md")
LARGEST = 10 * 2**20  # bytes of a file of weights that may stand in a repository
FORMS = ("files", "hub", "onnx", "diffusers")
JUDGING = {"-n": "n", "--seeds": "seeds", "--sampler": "sampler"}  # what judges shipped weights


def main(argv: list[str] | None = None) -> None:
    """Write what is asked for; a user's mistake is one line and exit code 2."""
    formatter = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="python -m scm export", description=__doc__, formatter_class=formatter)
    p.add_argument("model", type=Path, help="the folder of a run that is done; see --to")
    p.add_argument("name", type=Path, help="the files to write, without their endings; a folder")
    p.add_argument("--to", choices=FORMS, default=FORMS[0], help="(%(default)s)")
    p.add_argument("-n", type=int, help=f"images to judge it by ({evaluate.IMAGES})")
    p.add_argument("--seeds", type=int, help=f"of noise to judge it by ({evaluate.SEEDS})")
    options.add(p, "--sampler", action="append")
    p.add_argument("--half", action="store_true", help="of --to onnx: weights as float16")
    options.add(p, "--overwrite")
    command(p, export, argv)


def export(arguments: argparse.Namespace) -> None:
    """Do what `arguments` ask for; everything is checked first."""
    if arguments.half and arguments.to != "onnx":
        raise UserError(
            "--half: stores weights as float16, which only --to onnx does; leave it out"
        )
    if arguments.to in ("files", "hub"):
        _shipped(arguments)
    else:
        _converted(arguments)


def _converted(arguments: argparse.Namespace) -> None:
    """The network of any model, for another program."""
    for option, key in JUDGING.items():
        if getattr(arguments, key) is not None:
            raise UserError(f"{option}: --to {arguments.to} judges no samples; leave it out")
    path: Path = arguments.name
    if arguments.to == "onnx":
        onnx.check_installed()
        path = path if path.suffix == ".onnx" else path.with_name(f"{path.name}.onnx")
        check_file(path, overwrite=arguments.overwrite)
    else:
        _check_folder(path, overwrite=arguments.overwrite)
    model = models.load(store.named(arguments.model), torch.device("cpu"), torch.float32)
    if arguments.to == "onnx":
        onnx.write(model, path, half=arguments.half)
    else:
        diffusers.write(model, path)


def _shipped(arguments: argparse.Namespace) -> None:
    """The weights of a run that is done, judged as they are written, with a card."""
    run = RunFolder(arguments.model)
    if not run.path.is_dir():
        raise UserError(f"{run.path}: no such run; name the folder of one that is done")
    if run.status() is not Status.done:
        raise UserError(f"{run.path}: the run is {run.status()}, not done; finish it first")
    is_hub = arguments.to == "hub"
    weights_file, card_file = _in_folder(arguments) if is_hub else _beside(arguments)
    weights, config = store.read_weights(run.path)
    bytes_ = sum(tensor.nbytes for tensor in weights.values())
    if bytes_ > LARGEST and not is_hub:
        raise UserError(f"{run.path}: {bytes_ / 2**20:.1f} MiB of weights, more than 10")
    judging = _judging(arguments)
    asked = evaluate.parser().parse_args
    evaluate.checked(asked([str(run.path), *judging]), torch.device("cpu"), torch.float32)
    if is_hub:
        store.save_hub_folder(weights_file.parent, weights, config)
    else:
        store.save_weights(weights_file, weights, config)
    judged = [str(weights_file), *judging]
    evaluate.evaluate(asked(judged))
    text = card.card(run, weights_file, config, judged, _quality(weights_file))
    if is_hub:
        text = card.of_the_hub(text, weights_file, arguments.name.name)
    write_atomic(card_file, text.encode())


def _judging(arguments: argparse.Namespace) -> list[str]:
    """What `evaluate` is told, beside the model."""
    n = evaluate.IMAGES if arguments.n is None else arguments.n
    seeds = evaluate.SEEDS if arguments.seeds is None else arguments.seeds
    words = ["-n", str(n), "--seeds", str(seeds)]
    for sampler in arguments.sampler or []:
        words += ["--sampler", *sampler]
    return [*words, "--overwrite"]


def _quality(weights_file: Path) -> str:
    """The table of the evaluations beside a file of weights that measured these weights."""
    sha256 = store.stored_digest(weights_file)
    found = map(
        results.read, sorted(weights_file.parent.glob(f"{escape(weights_file.stem)}-*-n*.json"))
    )
    return results.table([one for one in found if one.get(store.WEIGHTS_SHA256) == sha256])


def _beside(arguments: argparse.Namespace) -> list[Path]:
    """The files of weights and of the card. UserError where they cannot be written."""
    name: Path = arguments.name
    if name.is_dir():
        raise UserError(f"{name}: a folder; name the files in it, without their endings")
    if name.suffix in ENDINGS:
        name = name.with_suffix("")
    files = [name.with_name(name.name + ending) for ending in ENDINGS]
    for file in files:
        check_file(file, overwrite=arguments.overwrite)
    return files


def _in_folder(arguments: argparse.Namespace) -> list[Path]:
    """The same within a folder."""
    folder: Path = arguments.name
    _check_folder(folder, overwrite=arguments.overwrite)
    return [folder / store.HUB_FILE, folder / "README.md"]


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise UserError unless the folder is new, or may be overwritten."""
    if folder.exists() and not (folder.is_dir() and overwrite):
        raise UserError(f"{folder}: exists; name another folder, or add --overwrite")
    check_file(folder.with_name(folder.name + ".new"), overwrite=True)  # may it be made there?
