"""What can be evaluated: a model with one of its samplers, or a file of samples.

Knows how to draw images and what to say of their origin, nothing of metrics.
"""

import json
import logging
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scm import build
from scm.checkpoint import WEIGHTS_SHA256
from scm.data import to_uint8
from scm.errors import UserError
from scm.files import REPOSITORY, found
from scm.sample import images, labels_for, sampler_settings
from scm.samplers import Sampler

log = logging.getLogger(__name__)

IMAGES = 10_000  # per seed, unless asked otherwise
SEEDS = 3
LARGEST = 2**32  # bytes of samples in a file
NOT_OURS = (  # what reading a file that is damaged, or of something else, may raise
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError),
    *(ValueError, *build.NOT_WHOLE),
)
TEACHER_IMAGES = 512  # that student and teacher both make from the same noise


@dataclass(frozen=True)
class Machine:
    """Where and how the networks run."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int


@dataclass(frozen=True)
class Subject:
    """One thing to measure."""

    path: Path
    file: Path  # where its result belongs
    n: int
    seeds: list[int]
    config: dict[str, Any]  # of the run that it comes from
    draw: Callable[[int], Tensor]  # seed -> uint8 (n, C, H, W)
    facts: Callable[[], dict[str, Any]]  # sampler, calls and more, for the result


def subjects_of(
    path: Path, chosen: list[list[str]] | None, n: int | None, seeds: int | None, machine: Machine
) -> list[Subject]:
    """All that `path` asks for: one per chosen sampler, or per sampler of the run's own.

    Raises UserError where `path` is no model and no file of samples, or a sampler does not suit it.
    """
    if path.suffix == ".npz":
        for option, given in (("--sampler", chosen), ("--seeds", seeds)):
            if given is not None:
                raise UserError(f"{path}: holds samples already; leave {option} away")
        return [_of_file(path, n)]
    model = Model(path, build.trained_network(path, machine.device, machine.dtype), machine)
    config = model.trained.config
    choices = [(name, name, settings) for name, settings in config["sampler"].items()]
    if chosen:
        choices = [(" ".join(words), *sampler_settings(words, config)) for words in chosen]
    return [model.subject(*choice, n or IMAGES, seeds or SEEDS) for choice in choices]


@dataclass(frozen=True)
class Model:
    """A trained network, and its distance from its teacher, which is computed once at most."""

    path: Path
    trained: build.Trained
    machine: Machine

    def subject(
        self, title: str, name: str, settings: dict[str, Any], n: int, seeds: int
    ) -> Subject:
        """This model with one sampler."""
        sampler = build.sampler(settings, name, self.trained.sigma_data)

        def draw(seed: int) -> Tensor:
            return to_uint8(self._images(self.trained, sampler, n, seed, f"{title}, seed {seed}"))

        def facts() -> dict[str, Any]:
            return {
                "title": title,
                "sampler": {name: settings},
                "calls": sampler.calls,
                WEIGHTS_SHA256: self.trained.sha256,
                **({"teacher": self.from_teacher} if self.from_teacher else {}),
            }

        return Subject(
            path=self.path,
            file=_result_file(self.path, title, n),
            n=n,
            seeds=list(range(seeds)),
            config=self.trained.config,
            draw=draw,
            facts=facts,
        )

    @cached_property
    def from_teacher(self) -> dict[str, Any] | None:
        """RMS over pixels of f(x_T, T) less the teacher's ODE solution from the same x_T.

        None for a model without a teacher, or where that is not found.
        """
        path = teacher_path(self.path, self.trained.config)
        if path is None:
            return None
        machine = self.machine
        teacher = build.trained_network(path, machine.device, machine.dtype)
        one_step = self._sampler(["one_step"], self.trained)
        heun = self._sampler(["heun"], teacher)
        n = TEACHER_IMAGES
        mine = self._images(self.trained, one_step, n, 0, "student from the teacher's noise")
        theirs = self._images(teacher, heun, n, 0, "teacher")
        rms = float((mine - theirs).double().square().mean().sqrt())
        shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
        return {"rms": rms, "images": n, "calls": heun.calls, "model": str(shown)}

    @staticmethod
    def _sampler(chosen: list[str], trained: build.Trained) -> Sampler:
        name, settings = sampler_settings(chosen, trained.config)
        return build.sampler(settings, name, trained.sigma_data)

    def _images(
        self, trained: build.Trained, sampler: Sampler, n: int, seed: int, title: str
    ) -> Tensor:
        return images(
            trained,
            sampler,
            n,
            seed=seed,
            labels=labels_for(None, n, trained.config["model"]["num_classes"]),
            device=self.machine.device,
            batch_size=self.machine.batch_size,
            title=title,
        )


def teacher_path(path: Path, config: dict[str, Any]) -> Path | None:
    """Where a distilled model's teacher is: as its config says, or in the run's own folder."""
    objective = config["objective"]
    if objective.get("teacher_recipe"):  # of the run's folder, or of a file in its checkpoints/
        places = [folder / "teacher" for folder in (path, *path.parents[:2])]
    elif objective.get("teacher"):
        places = [found(objective["teacher"])]
    else:
        return None
    teacher = next((place for place in places if place.exists()), None)
    if teacher is None:
        log.info("%s: its teacher %s is not here", path, places[0])
    return teacher


def _of_file(path: Path, n: int | None) -> Subject:
    """The images of an .npz file that `python -m scm.sample` has written."""
    if not path.exists():
        raise UserError(f"{path}: no such file; `python -m scm.sample RUN --out {path}` makes one")
    try:
        array, settings = _whole_file(path)
        config, sampler, seed = settings["config"], settings["sampler"], settings["seed"]
        build.check_stored(config)
        ((name, values),) = sampler.items()
        calls = build.sampler(values, name, config["data"]["sigma_data"]).calls
        shape, model = config["data"]["image_shape"], settings["model"]
    except NOT_OURS as error:
        raise UserError(f"{path}: no samples that `python -m scm.sample` wrote ({error})") from None
    if array.dtype != np.uint8 or array.size != len(array) * int(np.prod(shape)):
        raise UserError(f"{path}: images {array.dtype} {array.shape}, must be uint8 of {shape}")
    if n is not None and n > len(array):
        raise UserError(f"-n {n}: {path} holds {len(array)} images")
    n = n or len(array)
    x = torch.from_numpy(array[:n]).reshape(n, *shape)
    return Subject(
        path=path,
        file=_result_file(path, "", n),
        n=n,
        seeds=[seed],
        config=config,
        draw=lambda _: x,
        facts=lambda: {
            "title": name,
            "sampler": sampler,
            "calls": calls,
            "sampled_model": model,
            WEIGHTS_SHA256: settings.get(WEIGHTS_SHA256),  # None: of an older version
        },
    )


def _whole_file(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Images and settings; what would not fit into the memory is not unpacked."""
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
            raise ValueError("unpacks to more than 4 GiB")
    with np.load(path, allow_pickle=False) as file:
        return np.atleast_1d(file["images"]), json.loads(str(file["settings"]))


def _result_file(path: Path, title: str, n: int) -> Path:
    """RUN/evaluation/TITLE-nN.json for a run's folder, FILE-TITLE-nN.json beside a file."""
    words = [word for word in re.split(r"[^\w.]+", title) if word]
    name = "-".join([*([] if path.is_dir() else [path.stem]), *words, f"n{n}.json"])
    return path / "evaluation" / name if path.is_dir() else path.with_name(name)
