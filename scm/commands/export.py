"""Ship a run's model: `python -m scm export RUN pretrained/NAME`.

Writes NAME.safetensors, the run's EMA weights with the config that made them; the evaluation of
what was written beside it; and NAME.md, the model card, from these files and the run's metrics.
With --to hub, NAME is a folder as Hugging Face's hub has them: model.safetensors, config.json and
README.md. `scm.load` and every command read both.
"""

import argparse
import shlex
from glob import escape
from pathlib import Path
from typing import Any

import torch
import yaml

from scm.commands import evaluate, options, results
from scm.core.cli import Parser, check_file, command
from scm.core.errors import UserError
from scm.core.files import write_atomic, write_json
from scm.report import page
from scm.storage import store
from scm.storage.folder import RunFolder, Status

ENDINGS = (".safetensors", ".md")
FRONT = """---
library_name: scm
license: mit
tags: [consistency-model, unconditional-image-generation, model_hub_mixin, pytorch_model_hub_mixin]
---

"""
LARGEST = 10 * 2**20  # bytes of a file of weights that may stand in a repository


def main(argv: list[str] | None = None) -> None:
    """Write the three; a user's mistake is one line and exit code 2."""
    p = Parser(prog="python -m scm export", description=__doc__)
    p.add_argument("run", type=Path, help="the folder of a run that is done")
    p.add_argument("name", type=Path, help="the files to write, without their endings; a folder")
    p.add_argument("--to", choices=["files", "hub"], default="files", help="(%(default)s)")
    p.add_argument("-n", type=int, default=evaluate.IMAGES, help="to judge it by (%(default)s)")
    p.add_argument("--seeds", type=int, default=evaluate.SEEDS, help="of noise (%(default)s)")
    options.add(p, "--sampler", action="append")
    options.add(p, "--overwrite")
    command(p, export, argv)


def export(arguments: argparse.Namespace) -> None:
    """Do what `arguments` ask for; everything is checked first."""
    run = RunFolder(arguments.run)
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
    judging = ["-n", str(arguments.n), "--seeds", str(arguments.seeds)]
    for words in arguments.sampler or []:
        judging += ["--sampler", *words]
    judging.append("--overwrite")
    asked = evaluate.parser().parse_args
    evaluate.checked(asked([str(run.path), *judging]), torch.device("cpu"), torch.float32)
    weights_file.parent.mkdir(exist_ok=True)
    store.save_weights(weights_file, weights, config)
    judged = [str(weights_file), *judging]
    evaluate.evaluate(asked(judged))
    text = card(run, weights_file, config, judged)
    if is_hub:
        write_json(weights_file.with_name("config.json"), config)
        text = FRONT + text.replace(f"# {weights_file.stem}\n", f"# {arguments.name.name}\n", 1)
    write_atomic(card_file, text.encode())


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
    """The same within a folder that is new, or may be overwritten."""
    folder: Path = arguments.name
    if folder.exists() and not (folder.is_dir() and arguments.overwrite):
        raise UserError(f"{folder}: exists; name another folder, or add --overwrite")
    check_file(folder.with_name(folder.name + ".new"), overwrite=True)  # may it be made there?
    return [folder / store.HUB_FILE, folder / "README.md"]


def card(run: RunFolder, weights_file: Path, config: dict[str, Any], judged: list[str]) -> str:
    """The model card, Markdown; `judged` are the arguments that the evaluation was made with."""
    name, sha256 = weights_file.stem, store.stored_digest(weights_file)
    found = map(results.read, sorted(weights_file.parent.glob(f"{escape(name)}-*-n*.json")))
    overrides = yaml.safe_load((run.path / ".hydra" / "overrides.yaml").read_text())
    return page.filled(
        "card.md.j2",
        name=name,
        run=run.metrics(),
        overrides=shlex.join(overrides),
        sha256=sha256,
        judged=shlex.join(judged),
        quality=results.table([one for one in found if one.get(store.WEIGHTS_SHA256) == sha256]),
        config=config,
        text=yaml.safe_dump(config, sort_keys=False).rstrip(),
    )
