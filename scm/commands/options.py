"""Options that several commands share, and what they choose."""

import argparse
import math
from typing import Any

import torch
import yaml

from scm.config import parts
from scm.config.compose import CONF, composed
from scm.config.schema import Device, Precision
from scm.core import machine
from scm.core.errors import UserError
from scm.storage import model as models
from scm.storage.model import Model

MOST_IMAGES = 1_000_000  # they are all held in memory
GUIDED = yaml.safe_load((CONF / "objective" / "velocity" / "guided.yaml").read_text())
OPTIONS: dict[str, dict[str, Any]] = {
    "--sampler": {
        "nargs": "+",
        "metavar": ("NAME", "KEY=VALUE"),
        "help": "one of conf/sampler, and changes to its values (default: the run's own)",
    },
    "--guide": {
        "metavar": "MODEL",
        "help": "a weaker diffusion model to move away from: less trained, smaller or classless "
        "(of a conditional model by default its data's teacher, data.teacher)",
    },
    "--guidance": {
        "type": float,
        "help": "how far: 1 is the model alone (default with --guide: as in "
        "conf/objective/velocity/guided.yaml)",
    },
    "--guidance-below": {
        "type": float,
        "metavar": "SIGMA",
        "help": "the noise level from which on it is guided (default: as there; inf: everywhere)",
    },
    "--seed": {"type": int, "default": 0, "help": "of the noise (default: %(default)s)"},
    "--batch-size": {"type": int, "default": 256, "help": "images at once (%(default)s)"},
    "--device": {"choices": [device.name for device in Device], "default": "auto"},
    "--precision": {"choices": [precision.name for precision in Precision], "default": "auto"},
    "--overwrite": {"action": "store_true", "help": "replace files that exist"},
}


def add(p: argparse.ArgumentParser, *names: str, **changed: Any) -> None:
    """Give a command these of `OPTIONS`; `changed` replaces what argparse is told of them."""
    for name in names:
        p.add_argument(name, **{**OPTIONS[name], **changed})


def chosen_device(arguments: argparse.Namespace) -> torch.device:
    """The device that `--device` asks for, threads and memory prepared."""
    machine.prepare(None)
    return machine.find_device(arguments.device)


def chosen_machine(arguments: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that `--device` and `--precision` ask for."""
    device = chosen_device(arguments)
    return device, machine.find_dtype(arguments.precision, device)


def guided(model: Model, arguments: argparse.Namespace, dtype: torch.dtype) -> Model:
    """The model with what `--guide` and `--guidance` ask for. UserError where they do not fit."""
    asked = {"guidance": arguments.guidance, "below": arguments.guidance_below}
    given = {name: value for name, value in asked.items() if value is not None}
    guide = arguments.guide
    if guide is None and given and model.facts.model.num_classes:
        guide = model.facts.data.teacher  # of the same data, without classes
    if guide is None:
        if given:
            raise UserError("--guidance: needs a weaker model, --guide MODEL")
        return model
    weaker = models.load(guide, model.device, dtype)
    guidance, below = (given.get(name, GUIDED.get(name)) for name in asked)
    if not 0 <= guidance <= 100:
        raise UserError(f"--guidance {guidance:g}: must be a number in 0 ... 100")
    if below is not None and not below > 0:
        raise UserError(f"--guidance-below {below:g}: must be a noise level above 0")
    return model.guided_by(weaker, guidance, None if below == math.inf else below)


def chosen_sampler(words: list[str]) -> tuple[str, parts.Sampler]:
    """Name and settings of `--sampler NAME KEY=VALUE ...`, composed from conf/sampler.

    Raises UserError for an unknown sampler or value.
    """
    name, *changes = words
    names = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
    if name not in names:
        raise UserError(f"--sampler {name}: unknown; there is: {', '.join(names)}")
    overrides = [f"sampler=[{name}]", *(f"sampler.{name}.{change}" for change in changes)]
    try:
        return name, composed(overrides).sampler[name]
    except UserError as error:
        raise UserError(f"--sampler {' '.join(words)}: {error}") from None


def samplers_of(model: Model, chosen: list[list[str]] | None) -> dict[str, tuple[str, Any]]:
    """By title: name and settings of the samplers asked for, else of the run's own.

    Raises UserError where there is none, or one is asked for twice.
    """
    if chosen is None:
        if not model.facts.sampler:
            raise UserError(
                f"{model.path}: its config names no sampler; choose one with --sampler NAME"
            )
        return {name: (name, settings) for name, settings in model.facts.sampler.items()}
    titles = [" ".join(words) for words in chosen]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"--sampler {title}: asked for twice; once is enough")
    return {title: chosen_sampler(words) for title, words in zip(titles, chosen, strict=True)}
