"""Picture files in a folder or a zip, read with distrust: listed, decoded, brought to one size.

A zip is read where it is: nothing is extracted, so no name in it leads anywhere. What would unpack
to too much is refused before it is unpacked.
"""

import io
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from scm.core.errors import UserError
from scm.core.files import reading

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
LARGEST_FILE = 2**28  # bytes of one picture's file, unpacked from a zip
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bits a channel
SEE_THROUGH = ("LA", "PA", "RGBA")
PIECE = 256  # pictures that are decoded at once


@dataclass(frozen=True)
class Entry:
    """One file: its name below the root (Unicode's form NFC), its size, what shows a change."""

    name: str
    size: int
    stamp: str  # a folder's: when it was last written; a zip's: CRC-32

    @property
    def folder(self) -> str:
        """The first sub-folder of its name; empty where there is none."""
        parts = PurePosixPath(self.name).parts
        return parts[0] if len(parts) > 1 else ""


class Source(Protocol):
    """Where pictures are."""

    entries: list[Entry]  # in the order of their names

    def read(self, entry: Entry) -> bytes:
        """The file's contents."""


class Folder:
    """The pictures below a folder; links to folders are not followed."""

    def __init__(self, root: Path) -> None:
        found = {}
        for path in root.rglob("*"):
            if _is_picture(path.relative_to(root).as_posix()) and path.is_file():
                facts = path.stat()
                name = _normal(path.relative_to(root).as_posix())
                found[Entry(name, facts.st_size, str(facts.st_mtime_ns))] = path
        self._paths = found
        self.entries = sorted(found, key=lambda entry: entry.name)

    def read(self, entry: Entry) -> bytes:
        return self._paths[entry].read_bytes()


class Zip:
    """The pictures in a zip file; of one that holds a single folder, those below this folder."""

    def __init__(self, path: Path) -> None:
        with reading(path, "a zip file"):
            self._file = zipfile.ZipFile(path)
        infos = [info for info in self._file.infolist() if _is_picture(info.filename)]
        top = _top([info.filename for info in infos])
        self._infos = {
            Entry(_normal(info.filename.removeprefix(top)), info.file_size, f"{info.CRC:08x}"): info
            for info in infos
        }
        self.entries = sorted(self._infos, key=lambda entry: entry.name)

    def read(self, entry: Entry) -> bytes:
        if entry.size > LARGEST_FILE:  # zipfile unpacks no more than the size that is written there
            raise ValueError(f"unpacks to {entry.size:,} bytes, more than {LARGEST_FILE:,}")
        return self._file.read(self._infos[entry])


def source(root: Path, remedy: str) -> Source:
    """The pictures below a folder or in a zip. Raises UserError where there are none."""
    if not root.exists():
        raise UserError(f"{root}: no such folder or zip file; {remedy}")
    found: Source = Folder(root) if root.is_dir() else Zip(root)
    if not found.entries:
        kinds = ", ".join(FORMATS)
        raise UserError(f"{root}: there are no pictures in it ({kinds}); {remedy}")
    return found


def _is_picture(name: str) -> bool:
    """By its ending; hidden files and what macOS adds to a zip are none."""
    path = PurePosixPath(name)
    hidden = any((p.startswith(".") and p.strip(".")) or p == "__MACOSX" for p in path.parts)
    return path.suffix.lower() in FORMATS and not hidden


def _top(names: list[str]) -> str:
    """ "pictures/" where all names begin with it, else nothing."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class Damaged:
    """A picture that cannot be read, and why."""

    name: str
    reason: str


def decoded(
    found: Source, entries: list[Entry], shape: tuple[int, int, int]
) -> Iterator[np.ndarray | Damaged]:
    """Each picture as uint8 (C, H, W), in their order; several are decoded at once."""

    def one(entry: Entry) -> np.ndarray | Damaged:
        try:
            return fitted(found.read(entry), shape)
        except Exception as error:  # PIL's decoders raise whatever they like
            said = next(iter(str(error).splitlines()), "") or type(error).__name__
            return Damaged(entry.name, said)

    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
        for start in range(0, len(entries), PIECE):
            yield from pool.map(one, entries[start : start + PIECE])


def fitted(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """A PNG or JPEG as uint8 (C, H, W): scaled with antialiasing so that it covers H x W, and
    the middle cut out.

    It is turned as its camera says; what can be seen through is laid on white; one channel is its
    brightness. Raises ValueError, or what PIL raises, where it is damaged, has more pixels than
    PIL's limit or more than 8 bits a channel.
    """
    channels, height, width = shape
    with Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values()))) as picture:
        pixels, most = picture.width * picture.height, Image.MAX_IMAGE_PIXELS or 0
        if pixels > most:
            raise ValueError(f"{pixels:,} pixels, more than PIL's limit {most:,}")
        if picture.mode not in MODES:
            raise ValueError(f"mode {picture.mode}: not 8 bits a channel")
        picture.load()
        image: Image.Image = ImageOps.exif_transpose(picture)
    if image.mode in SEE_THROUGH or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
