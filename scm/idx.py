"""Read idx files (MNIST's format) with every check a file from elsewhere needs.

Length, then SHA-256 of the raw contents, then the header: nothing is parsed that was not verified,
and no more is decompressed than the expected length, so a gzip bomb cannot fill the memory.
"""

import gzip
import hashlib
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypedDict, cast

import torch
from torch import Tensor

from scm.errors import UserError
from scm.files import REPOSITORY, expanded

log = logging.getLogger(__name__)

PIECE = 2**24  # bytes


class IdxSource(TypedDict):
    """One file: its name without .gz, and the SHA-256 of its raw contents (None: unverified)."""

    file: str
    sha256: str | None


def resolve_root(root: str) -> Path:
    """Return `root` as an absolute path; a relative one counts from the repository's root."""
    return REPOSITORY / expanded(root)


class IdxFolder:
    """A folder of idx files.

    Args:
        root: the folder; a relative path counts from the repository's root.
        remedy: what the user can do about a missing or damaged file; ends each error's line.
    """

    def __init__(self, *, root: str, remedy: str) -> None:
        self.root = resolve_root(root)
        self.remedy = remedy

    def images(self, source: IdxSource, shape: tuple[int, int, int, int]) -> Tensor:
        """Return uint8 images of `shape` (N, C, H, W); idx stores (N, H, W), so C is 1."""
        count, channels, height, width = shape
        if channels != 1:
            raise UserError(f"data.image_shape={list(shape[1:])}: idx images have one channel")
        return self._read(source, (count, height, width)).reshape(shape)

    def labels(self, source: IdxSource, count: int, num_classes: int) -> Tensor:
        """Return int64 labels (count,), each in 0 .. num_classes - 1."""
        labels = self._read(source, (count,)).long()
        if count and int(labels.max()) >= num_classes:
            raise self._error(
                self.root / source["file"],
                f"holds label {int(labels.max())}, but data.num_classes={num_classes}",
            )
        return labels

    def download(self, torchvision_class: str | None) -> None:
        """Fetch what is missing (or does not have torchvision's MD5) into the folder, gzipped.

        Args:
            torchvision_class: the class of `torchvision.datasets` that knows mirrors and MD5 sums.
        """
        if torchvision_class is None:
            raise UserError(f"data.download=true: no download for {self.root.name}; {self.remedy}")
        # Imported here: slow, and of no use to anyone whose files are in place.
        import torchvision.datasets
        from torchvision.datasets.utils import download_url

        source = getattr(torchvision.datasets, torchvision_class, None)
        if source is None or not hasattr(source, "mirrors"):
            raise UserError(
                f"data.torchvision={torchvision_class}: allowed is a class of torchvision.datasets "
                "that downloads idx files, such as FashionMNIST"
            )
        for name, md5 in source.resources:
            if (self.root / name.removesuffix(".gz")).is_file():
                continue
            problems = []
            for mirror in source.mirrors:
                try:
                    download_url(mirror + name, str(self.root), filename=name, md5=md5)
                    break
                except (OSError, RuntimeError) as error:  # URLError is an OSError
                    problems.append(f"{mirror}: {error}")
            else:
                problem = f"cannot be downloaded ({'; '.join(problems)})"
                raise self._error(self.root / name, problem)

    def _read(self, source: IdxSource, shape: tuple[int, ...]) -> Tensor:
        path = self._find(source["file"])
        # Header: two zero bytes, 8 for unsigned bytes, the rank, then big-endian int32 dimensions.
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        expected = len(header) + torch.Size(shape).numel()
        raw = self._read_raw(path, expected)
        if len(raw) != expected:
            length = f"more than {expected}" if len(raw) > expected else str(len(raw))
            raise self._error(path, f"is damaged: {length} raw bytes instead of {expected}")
        self._verify(path, raw, source["sha256"])
        if not raw.startswith(header):
            raise self._error(
                path,
                f"is not an idx file of unsigned bytes with dimensions {list(shape)}",
            )
        return torch.frombuffer(raw, dtype=torch.uint8, offset=len(header)).reshape(shape)

    def _find(self, name: str) -> Path:
        for path in (self.root / f"{name}.gz", self.root / name):
            if path.is_file():
                return path
        raise self._error(self.root / f"{name}.gz", "is missing")

    def _read_raw(self, path: Path, expected: int) -> bytearray:
        """Return the raw contents, but at most one byte more than expected.

        In pieces: one read of so many bytes would take the memory for them first.
        """
        open_file = cast(Callable[..., BinaryIO], gzip.open if path.suffix == ".gz" else open)
        try:
            raw = bytearray()  # writable, as torch.frombuffer wants
            with open_file(path, "rb") as file:
                while piece := file.read(min(PIECE, expected + 1 - len(raw))):
                    raw += piece
            return raw
        except (OSError, EOFError, zlib.error) as error:
            raise self._error(path, f"cannot be read ({error})") from error

    def _verify(self, path: Path, raw: bytearray, sha256: str | None) -> None:
        digest = hashlib.sha256(raw).hexdigest()
        if sha256 is None:
            log.warning("%s: contents not verified, SHA-256 %s", path.name, digest)
        elif digest != sha256:
            raise self._error(path, f"is damaged: SHA-256 {digest[:12]}... is not {sha256[:12]}...")

    def _error(self, path: Path, problem: str) -> UserError:
        shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
        return UserError(f"{shown} {problem}; {self.remedy}")
