"""CIFAR-10's archive: read in place, verified before it is parsed, and nothing in it is called."""

import hashlib
import io
import pickle
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from runs import composed_once

from scm.core.errors import UserError
from scm.data import cifar
from scm.data.cifar import Cifar10

N = 20  # images in each batch's file


def batch_of(seed):
    rng = np.random.default_rng(seed)
    return {
        b"data": rng.integers(256, size=(N, 3072), dtype=np.uint8),
        b"labels": [int(label) for label in rng.integers(10, size=N)],
    }


def archive(folder, changed=None):
    """An archive as CIFAR-10's; `changed` stands in the place of the first batch's contents."""
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for seed, name in enumerate([*cifar.PARTS["train"], *cifar.PARTS["test"]]):
            data = pickle.dumps(batch_of(seed), protocol=2)
            data = changed if changed is not None and seed == 0 else data
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def made(folder, **changes):
    file = folder / "cifar-10-python.tar.gz"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "0" * 64
    common = {
        **{"name": "cifar10", "root": str(folder), "image_shape": [3, 32, 32], "num_classes": 10},
        **{"sigma_data": 0.29, "sigma_data_tolerance": 0.1, "download": False, "remedy": "ask"},
        "archive": {"file": file.name, "sha256": sha256},
    }
    return Cifar10(**{**common, **changes})


def test_images_and_labels_are_the_archives(tmp_path):
    archive(tmp_path)
    data = made(tmp_path, horizontal_flips=True)
    assert data.train.shape == (5 * N, 3, 32, 32) and data.test.shape == (N, 3, 32, 32)
    second = batch_of(1)
    # the first 1024 numbers are red, row by row
    assert data.train[N, 0, 0, 1] == second[b"data"][0, 1]
    assert data.train[N, 2, 31, 31] == second[b"data"][0, 3071]
    assert data.train_labels[N : 2 * N].tolist() == second[b"labels"]
    assert data.test_labels.tolist() == batch_of(5)[b"labels"]


def test_another_archive_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    archive(tmp_path)
    monkeypatch.setattr(tarfile, "open", None)
    said = r"not CIFAR-10's archive \(SHA-256 .* is not 000000000000"
    with pytest.raises(UserError, match=said):
        made(tmp_path, archive={"file": "cifar-10-python.tar.gz", "sha256": "0" * 64})


class Calls:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_a_pickle_calls_nothing(tmp_path):
    archive(tmp_path, pickle.dumps(Calls(tmp_path / "made"), protocol=2))
    unverified = {"file": "cifar-10-python.tar.gz", "sha256": None}
    with pytest.raises(UserError, match=r"names posix\.mkdir, which is no array"):
        made(tmp_path, archive=unverified)
    assert not (tmp_path / "made").exists()


def test_what_is_no_batch_is_named(tmp_path):
    floats = {b"data": np.zeros((2, 3072)), b"labels": [0, 1]}
    for changed, said in (
        (pickle.dumps(floats, protocol=2), "data_batch_1: its images are float64"),
        (pickle.dumps({b"data": 1}, protocol=2), "its images are int64"),
        (b"", "Ran out of input"),
    ):
        archive(tmp_path, changed)
        with pytest.raises(UserError, match=f"not CIFAR-10's archive .*{said}.*; ask"):
            made(tmp_path)


def test_a_missing_archive_and_a_failed_download_name_the_remedy(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is missing; ask"):
        made(tmp_path)

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(utils, "download_url", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded .*no network.*; ask"):
        made(tmp_path, download=True)


def test_the_download_is_torchvisions_with_its_md5(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10, utils

    asked = []

    def fetch(url, root, filename, md5):
        asked.append((url, filename, md5))
        archive(tmp_path)

    monkeypatch.setattr(utils, "download_url", fetch)
    with pytest.raises(UserError, match="SHA-256"):  # another archive than the asked one
        made(tmp_path, download=True)
    assert asked == [(CIFAR10.url, "cifar-10-python.tar.gz", CIFAR10.tgz_md5)]


def test_the_config_states_what_the_published_moments_say():
    config = composed_once(("data=cifar10",)).data
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    rms = (std.square() + (mean - 0.5).square()).mean().sqrt()
    assert config.sigma_data == pytest.approx(float(rms), abs=5e-4)
    assert config.archive.file == "cifar-10-python.tar.gz" and len(config.archive.sha256) == 64
