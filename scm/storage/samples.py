"""Images in a file, with their origin: written whole as .npz, read with distrust.

A file is `images` uint8 (N, H, W) or (N, C, H, W) (a toy's are float32), `settings`, JSON of what
made them, and `labels` (N,) of a conditional model.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scm.config import parts
from scm.config.read import plain, read
from scm.config.schema import Facts
from scm.core.errors import UserError
from scm.core.files import reading, write_atomic
from scm.data.dataset import to_uint8
from scm.storage.model import Model
from scm.storage.store import WEIGHTS_SHA256

LARGEST = 2**32  # bytes of samples in a file


@dataclass(frozen=True)
class Samples:
    """Images out of a file, and what made them."""

    images: Tensor  # uint8 (N, C, H, W)
    facts: Facts  # of the model
    config: dict[str, Any]  # the same as it stands in the file
    model: str  # its path
    sha256: str | None  # of its weights
    seed: int
    name: str  # the sampler's
    sampler: parts.Sampler
    guide: dict[str, Any] | None  # of the weaker model that guided it


def write(
    path: Path,
    x: Tensor,
    model: Model,
    *,
    labels: Tensor | None,
    sampler: dict[str, parts.Sampler],
    seed: int,
) -> None:
    """Images (N, C, H, W) in [-0.5, 0.5] into `path`, whole or not at all."""
    is_toy = x.shape[2:].numel() == 1
    settings = {
        "model": str(model.path),
        WEIGHTS_SHA256: model.sha256,
        "sampler": plain(sampler),
        "seed": seed,
        "guide": model.guide,
        "config": model.config,
    }
    arrays: dict[str, Any] = {
        "images": (x if is_toy else to_uint8(x)).squeeze(1).numpy(),
        "settings": np.array(json.dumps(settings)),
        **({} if labels is None else {"labels": labels.numpy()}),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> Samples:
    """The images of a file that `python -m scm sample` has written.

    Raises UserError where it is missing, damaged or of something else; what would not fit into the
    memory is not unpacked.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; `python -m scm sample RUN --out {path}` makes one")
    with reading(path, "samples that `python -m scm sample` wrote"):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise ValueError("unpacks to more than 4 GiB")
        with np.load(path, allow_pickle=False) as file:
            images, settings = np.atleast_1d(file["images"]), json.loads(str(file["settings"]))
        facts = read(settings["config"], Facts)
        shape = facts.data.image_shape
        if images.dtype != np.uint8 or images.size != len(images) * int(np.prod(shape)):
            raise UserError(f"images {images.dtype} {images.shape}, must be uint8 of {shape}")
        ((name, chosen),) = settings["sampler"].items()
        found = Samples(
            images=torch.from_numpy(images).reshape(len(images), *shape),
            facts=facts,
            config=settings["config"],
            model=str(settings["model"]),
            sha256=settings.get(WEIGHTS_SHA256),  # None: of an older version
            seed=int(settings["seed"]),
            name=name,
            sampler=read(chosen, parts.Sampler, f"sampler.{name}"),
            guide=dict(settings["guide"]) if settings.get("guide") else None,
        )
    return found
