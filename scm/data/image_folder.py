"""Pictures of one's own, from a folder or a zip, as a data set that is decoded once.

What was decoded is kept as one file of uint8 in outputs/.cache, mapped into memory and never read
whole: a set may be larger than the memory.
"""

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm.core.errors import UserError
from scm.core.files import CACHE, expanded, write_json
from scm.core.progress import shown
from scm.data.dataset import Batch, to_float
from scm.data.images import ImageDataset
from scm.data.pictures import Damaged, Entry, Source, decoded, source

log = logging.getLogger(__name__)

VERSION = 1  # of what is kept: to be raised when its computation changes
NAMED = 5  # damaged files that an error names


class ImageFolder(ImageDataset):
    """Pictures below a folder or in a zip; the first sub-folder of each is its class.

    Without sub-folders there is one class, 0. Which pictures are held out follows from the hash of
    each one's name, so it stays when others are added.

    Raises UserError where there are none, where some are damaged and `skip_damaged` is false, or
    as `ImageDataset` does.
    """

    classes: list[str]  # names of the sub-folders, in the order of their labels

    def __init__(
        self,
        *,
        root: str | None,
        image_shape: tuple[int, int, int] | list[int],
        held_out: float,
        skip_damaged: bool,
        remedy: str,
        **described: Any,  # the other arguments of `ImageDataset`
    ) -> None:
        if root is None:
            raise UserError(f"data.root=null: {remedy}")
        channels, height, width = image_shape
        if channels not in (1, 3):
            raise UserError(
                f"data.image_shape={list(image_shape)}: must have 1 channel (grey) or 3 (colour)"
            )
        self.root = root
        path, shape = expanded(root), (channels, height, width)
        found = source(path, remedy)
        self.classes = classes_of(found.entries, path)
        kept = _Kept(found, shape, held_out, skip_damaged, path)
        images, facts = kept.read() or kept.make()
        label = {name: i for i, name in enumerate(self.classes)}
        labels = torch.tensor([label[Entry(name, 0, "").folder] for name in facts["names"]]).long()
        n = facts["train"]
        for part, size in (("to train with", n), ("held out", len(images) - n)):
            if size == 0:
                raise UserError(
                    f"data.root={root}: none of {len(images)} images is {part}; add images, or "
                    f"change data.held_out={held_out:g}"
                )
        log.info("%s: %d images to train with, %d held out", path.name, n, len(images) - n)
        super().__init__(
            image_shape=shape,
            num_classes=len(self.classes),
            train=(images[:n], labels[:n]),
            test=(images[n:], labels[n:]),
            **described,
        )

    @property
    def told_as(self) -> str:
        return f"image_folder name={self.name} root={self.root}"

    def test_batch(self, n: int) -> Batch:
        """Of fewer held-out images, each several times."""
        rows = torch.arange(n) % len(self.test)
        return Batch(to_float(self._here(self.test[rows])), self._here(self.test_labels[rows]))


def classes_of(entries: list[Entry], path: Path) -> list[str]:
    """The sub-folders' names in their order. Raises UserError where some pictures are in none."""
    folders = sorted({entry.folder for entry in entries})
    if len(folders) > 1 and "" in folders:
        beside = next(entry.name for entry in entries if not entry.folder)
        raise UserError(
            f"{path}: {beside} lies beside sub-folders of pictures, whose names are classes; put "
            "each picture into one, or none"
        )
    return folders


def is_held_out(name: str, share: float) -> bool:
    """Whether a picture of this name is one of `share` that are held out."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class _Kept:
    """The decoded images of one source and these options, in two files of the cache."""

    def __init__(
        self,
        found: Source,
        shape: tuple[int, int, int],
        held_out: float,
        skip_damaged: bool,
        path: Path,
    ) -> None:
        self.found, self.shape, self.path = found, shape, path
        self.skip_damaged = skip_damaged
        entries = found.entries
        self.train = [entry for entry in entries if not is_held_out(entry.name, held_out)]
        self.test = [entry for entry in entries if is_held_out(entry.name, held_out)]
        depends_on = [VERSION, shape, held_out, skip_damaged, [asdict(one) for one in entries]]
        key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
        self.images = CACHE / f"images-{key[:24]}.bin"
        self.facts = self.images.with_suffix(".json")

    def read(self) -> tuple[Tensor, dict[str, Any]] | None:
        """Images (N, C, H, W), mapped, the training ones first, and what is known of them.

        None where they are not kept, or not whole.
        """
        try:
            facts = json.loads(self.facts.read_text())
            size = (len(facts["names"]), *self.shape)
            if self.images.stat().st_size != torch.Size(size).numel():
                raise ValueError("its length is another")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: decoded anew (%s)", self.facts.name, error)
            return None
        self._tell(facts)
        return self._mapped(size), facts

    def make(self) -> tuple[Tensor, dict[str, Any]]:
        """Decode all and keep them. Raises UserError where some are damaged and may not be."""
        CACHE.mkdir(parents=True, exist_ok=True)
        temporary = self.images.with_name(f".{self.images.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                facts = self._decode(file)
            os.replace(temporary, self.images)
        finally:
            temporary.unlink(missing_ok=True)
        self._tell(facts)
        write_json(self.facts, facts)  # the last: what it describes is whole
        return self._mapped((len(facts["names"]), *self.shape)), facts

    def _decode(self, file: Any) -> dict[str, Any]:
        """Write the images; returns their names, how many of them train, and what is damaged."""
        names: list[str] = []
        damaged: list[Damaged] = []
        entries = [*self.train, *self.test]
        images = decoded(self.found, entries, self.shape)
        train = 0
        for entry, image in shown(zip(entries, images, strict=True), len(entries), self.path.name):
            if isinstance(image, Damaged):
                damaged.append(image)
                continue
            file.write(image.tobytes())
            names.append(entry.name)
            train += len(names) + len(damaged) <= len(self.train)
        if damaged and not self.skip_damaged:
            raise UserError(
                f"data.root={self.path}: {_named(damaged)} of {len(entries):,} cannot be read; "
                "mend or remove them, or set data.skip_damaged=true"
            )
        return {"names": names, "train": train, "damaged": [asdict(one) for one in damaged]}

    def _tell(self, facts: dict[str, Any]) -> None:
        if facts["damaged"]:
            damaged = [Damaged(**one) for one in facts["damaged"]]
            log.warning("%s: left out %s", self.path.name, _named(damaged))

    def _mapped(self, size: tuple[int, ...]) -> Tensor:
        n = torch.Size(size).numel()
        if n == 0:
            return torch.empty(size, dtype=torch.uint8)
        return torch.from_file(str(self.images), shared=False, size=n, dtype=torch.uint8).view(size)


def _named(damaged: list[Damaged]) -> str:
    """How many, and the first of them with the reason."""
    names = "; ".join(f"{one.name} ({one.reason})" for one in damaged[:NAMED])
    more = f"; {len(damaged) - NAMED} more" if len(damaged) > NAMED else ""
    return f"{len(damaged):,} damaged image{'s' * (len(damaged) > 1)} ({names}{more})"
