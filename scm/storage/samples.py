"""Images in a file, with their origin: written whole as .npz, read with distrust.

A file of ours is `images` uint8 (N, H, W) or (N, C, H, W) (a toy's are float32), `settings`, JSON
of what made them, and `labels` (N,) of a conditional model. Images from elsewhere are read too: out
of an .npz file without settings, or a folder of PNGs.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
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
class MadeBy:
    """What made the images of a file."""

    facts: Facts  # of the model
    config: dict[str, Any]  # the same as it stands in the file
    model: str  # its path
    sha256: str | None  # of its weights
    seed: int
    name: str  # the sampler's
    sampler: parts.Sampler
    guide: dict[str, Any] | None  # of the weaker model that guided it


@dataclass(frozen=True)
class Samples:
    """Images out of a file or a folder, and what made them, where it is known."""

    images: Tensor  # uint8 (N, C, H, W)
    made_by: MadeBy | None

    def check_shape(self, shape: list[int], source: str) -> None:
        """Raise UserError where the images are of another shape."""
        if list(self.images.shape[1:]) != list(shape):
            raise UserError(
                f"{source}: images of shape {tuple(self.images.shape[1:])} (channels, height, "
                f"width), must be {tuple(shape)}"
            )


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


def is_pictures(path: Path) -> bool:
    """Whether it is a folder of PNGs, and no run's."""
    return path.is_dir() and not (path / "metrics.json").exists() and any(path.glob("*.png"))


def load(path: Path) -> Samples:
    """The images of an .npz file, or of a folder of PNGs in the order of their names.

    Raises UserError where it is missing, damaged or of something else; what would not fit into the
    memory is not unpacked.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; `python -m scm sample RUN --out {path}` makes one")
    return _pictures(path) if path.is_dir() else _of_npz(path)


def _of_npz(path: Path) -> Samples:
    """`images` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); with `settings` where it is ours."""
    with reading(path, "a file of images, uint8 under `images`"):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise ValueError("unpacks to more than 4 GiB")
        with np.load(path, allow_pickle=False) as file:
            images = np.atleast_1d(file["images"] if "images" in file else file[file.files[0]])
            settings = json.loads(str(file["settings"])) if "settings" in file else None
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise UserError(f"images {images.dtype} {images.shape}, must be uint8 (N, H, W, C)")
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        found = Samples(torch.from_numpy(np.ascontiguousarray(images)), _made_by(settings))
        if found.made_by is not None:
            found.check_shape(found.made_by.facts.data.image_shape, "its settings say otherwise")
    return found


def _made_by(settings: dict[str, Any] | None) -> MadeBy | None:
    if settings is None:
        return None
    ((name, chosen),) = settings["sampler"].items()
    return MadeBy(
        facts=read(settings["config"], Facts),
        config=settings["config"],
        model=str(settings["model"]),
        sha256=settings.get(WEIGHTS_SHA256),  # None: of an older version
        seed=int(settings["seed"]),
        name=name,
        sampler=read(chosen, parts.Sampler, f"sampler.{name}"),
        guide=dict(settings["guide"]) if settings.get("guide") else None,
    )


def _pictures(folder: Path) -> Samples:
    """All PNGs of one size; grey ones have one channel, others three."""
    images: list[np.ndarray] = []
    for file in sorted(folder.glob("*.png")):
        with reading(file, "a PNG"):
            with Image.open(file, formats=["PNG"]) as picture:
                mode = "L" if picture.mode in ("1", "L") else "RGB"
                image = np.asarray(picture.convert(mode))
            image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
            if images and image.shape != images[0].shape:
                raise UserError(f"shape {image.shape}, and the first has {images[0].shape}")
        images.append(image)
        if len(images) * image.size > LARGEST:
            raise UserError(f"{folder}: more than 4 GiB of images; take fewer")
    return Samples(torch.from_numpy(np.stack(images)), None)
