"""Idx files (MNIST's format) are read with every check that a file from elsewhere needs.

Length, then SHA-256 of the raw contents, then the header: nothing is parsed that was not verified,
and no more is decompressed than the expected length, so a gzip bomb cannot fill the memory.
"""

import gzip
import hashlib
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypedDict, cast

import torch
from torch import Tensor

from scm.core.errors import UserError
from scm.core.files import REPOSITORY, expanded, reading

log = logging.getLogger(__name__)

PIECE = 2**24  # bytes


class FileSource(TypedDict):
    """One file: its name without .gz, and the SHA-256 of its raw contents (None: unverified)."""

    file: str
    sha256: str | None


class IdxFolder:
    """A folder of idx files.

    Args:
        root: the folder; a relative path counts from the repository's root.
        remedy: what the user can do about a missing or damaged file; ends each error's line.
    """

    def __init__(self, *, root: str, remedy: str) -> None:
        self.root = REPOSITORY / expanded(root)
        self.remedy = remedy

    def read(self, source: FileSource, shape: tuple[int, ...]) -> Tensor:
        """Return the file's unsigned bytes as uint8 of `shape`; UserError where it has others."""
        path = self._find(source["file"])
        # Header: two zero bytes, 8 for unsigned bytes, the rank, then big-endian int32 dimensions.
        header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
        size = len(header) + torch.Size(shape).numel()
        with reading(path, f"an idx file of unsigned bytes {list(shape)}", self.remedy):
            raw = _unpacked(path, size + 1)
            if len(raw) != size:
                length = f"more than {size}" if len(raw) > size else str(len(raw))
                raise ValueError(f"{length} raw bytes instead of {size}")
            sha256, expected = hashlib.sha256(raw).hexdigest(), source["sha256"]
            if expected is not None and sha256 != expected:
                raise ValueError(f"SHA-256 {sha256[:12]}... is not {expected[:12]}...")
            if not raw.startswith(header):
                raise ValueError("its header says otherwise")
        if expected is None:
            log.warning("%s: contents not verified, SHA-256 %s", path.name, sha256)
        return torch.frombuffer(raw, dtype=torch.uint8, offset=len(header)).reshape(shape)

    def download(self, torchvision_class: str | None) -> None:
        """Fetch what is missing, or has not torchvision's MD5, into the folder, gzipped.

        `torchvision_class` is one of `torchvision.datasets` that knows addresses and MD5 sums.
        """
        import torchvision.datasets  # slow, and of no use to anyone whose files are in place

        source = getattr(torchvision.datasets, torchvision_class or "", None)
        if source is None or not hasattr(source, "mirrors"):
            raise UserError(
                f"data.download=true: no download by data.torchvision={torchvision_class}; "
                f"{self.remedy}"
            )
        for name, md5 in source.resources:
            if (self.root / name.removesuffix(".gz")).is_file():
                continue
            fetched(source.mirrors[0] + name, md5, self.root / name, self.remedy)

    def _find(self, name: str) -> Path:
        for path in (self.root / f"{name}.gz", self.root / name):
            if path.is_file():
                return path
        raise UserError(f"{self.root / name}.gz is missing; {self.remedy}")


def fetched(url: str, md5: str, path: Path, remedy: str) -> None:
    """Download by torchvision what is missing or has another MD5. UserError where it cannot be."""
    from torchvision.datasets.utils import download_url

    try:
        download_url(url, str(path.parent), filename=path.name, md5=md5)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise UserError(f"{path} cannot be downloaded ({error}); {remedy}") from error


def _unpacked(path: Path, most: int) -> bytearray:
    """The raw contents, `most` bytes of them at most.

    In pieces: one read of so many bytes would take the memory for them first.
    """
    open_file = cast(Callable[..., BinaryIO], gzip.open if path.suffix == ".gz" else open)
    raw = bytearray()  # writable, as torch.frombuffer wants
    with open_file(path, "rb") as file:
        while piece := file.read(min(PIECE, most - len(raw))):
            raw += piece
    return raw
