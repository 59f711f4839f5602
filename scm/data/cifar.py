"""CIFAR-10 out of its archive, as torchvision downloads it: verified, read in place, run by nobody.

The archive holds pickles, which can call anything when they are loaded. Its SHA-256 is compared
first, and the loader knows only what arrays are made of.
"""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scm.core.errors import UserError
from scm.core.files import REPOSITORY, expanded, reading
from scm.data.images import ImageDataset
from scm.data.readers import FileSource, fetched

FOLDER = "cifar-10-batches-py"
PARTS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
LARGEST = 2**26  # bytes of one batch's file, unpacked: they have 31 MB
ARRAYS = {  # what a pickle may name: of numpy 1 and 2, of Python 2 and 3
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class Cifar10(ImageDataset):
    """32x32 photographs of ten kinds of things (Krizhevsky 2009).

    Raises UserError where the archive is missing, damaged or another, or as `ImageDataset` does.
    """

    def __init__(
        self, *, root: str, archive: FileSource, download: bool, remedy: str, **described: Any
    ) -> None:
        path = REPOSITORY / expanded(root) / archive["file"]
        if download:
            from torchvision.datasets import CIFAR10  # slow, and else of no use

            fetched(CIFAR10.url, CIFAR10.tgz_md5, path, remedy)
        if not path.is_file():
            raise UserError(f"{path} is missing; {remedy}")
        with reading(path, "CIFAR-10's archive", remedy):
            _check_sha256(path, archive["sha256"])
            with tarfile.open(path) as tar:
                parts = {part: _part(tar, names) for part, names in PARTS.items()}
        super().__init__(train=parts["train"], test=parts["test"], **described)


def _check_sha256(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected:
        raise ValueError(f"SHA-256 {sha256[:12]}... is not {expected[:12]}...")


def _part(tar: tarfile.TarFile, names: list[str]) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of these files, one after the other."""
    images, labels = [], []
    for name in names:
        member = tar.getmember(f"{FOLDER}/{name}")
        file = tar.extractfile(member)
        if file is None or member.size > LARGEST:
            raise ValueError(f"{name}: not a file of at most {LARGEST:,} bytes")
        batch = _Arrays(io.BytesIO(file.read()), encoding="bytes").load()
        data = np.asarray(batch[b"data"])
        if data.dtype != np.uint8:
            raise ValueError(f"{name}: its images are {data.dtype}")
        images.append(torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()))
        labels.append(torch.tensor(batch[b"labels"], dtype=torch.int64))
    return torch.cat(images), torch.cat(labels)


class _Arrays(pickle.Unpickler):
    """Loads arrays, lists, numbers and strings; anything else that a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise ValueError(f"it names {module}.{name}, which is no array")
        return super().find_class(module, name)
