"""What is read, what is refused, and which batch belongs to which step."""

import gzip
import hashlib
import logging
import struct
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import yaml

from scm.core.errors import UserError
from scm.data import dataset as data
from scm.data import readers
from scm.data.bimodal import Bimodal
from scm.data.dataset import batch_indices, epoch_order, to_float, to_uint8
from scm.data.images import IdxImages, ImageDataset

CPU = torch.device("cpu")
FILES = ("train_images", "train_labels", "test_images", "test_labels")
SIZES = {"train": 20, "test": 6}
REMEDY = "ask for another"


def idx_bytes(values: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path) -> dict:
    """The arguments of a set of 20 + 6 images of 4x4 pixels, written gzipped to tmp_path."""
    gen = torch.Generator().manual_seed(0)
    config: dict = {}
    for name in FILES:
        size = SIZES[name.split("_")[0]]
        if name.endswith("images"):
            values = 255 * torch.randint(2, (size, 4, 4), generator=gen)  # black and white: RMS 0.5
        else:
            values = torch.arange(size) % 10
        raw = idx_bytes(values)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw))
        config[name] = {"file": name, "sha256": sha256(raw)}
    return config | {
        "name": "tiny",
        "root": str(tmp_path),
        "image_shape": [1, 4, 4],
        "num_classes": 10,
        "train_size": 20,
        "test_size": 6,
        "sigma_data": 0.5,
        "sigma_data_tolerance": 0.1,
        "torchvision": None,
        "download": False,
        "remedy": REMEDY,
    }


def load_yaml(name: str, root: Path) -> dict:
    config = yaml.safe_load((root / "conf" / "data" / f"{name}.yaml").read_text())
    del config["_target_"], config["teacher"]
    return config


def refused(config: dict, *words: str) -> None:
    """The set is refused with one line that holds every word and the remedy."""
    with pytest.raises(UserError) as caught:
        IdxImages(**config)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, config["remedy"]):
        assert word in message


# The images themselves


@pytest.fixture(scope="module")
def mnist() -> IdxImages:
    return IdxImages(**load_yaml("mnist", readers.REPOSITORY))


def test_mnist_is_whole_and_uint8(mnist):
    assert mnist.train.shape == (60000, 1, 28, 28) and mnist.test.shape == (10000, 1, 28, 28)
    assert mnist.train.dtype == mnist.test.dtype == torch.uint8
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]  # the set's well-known beginning
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_sigma_data_is_measured(mnist):
    assert mnist.measured_sigma_data() == pytest.approx(0.481, abs=1e-3)
    rms = to_float(mnist.train).double().square().mean().sqrt()
    assert mnist.measured_sigma_data() == pytest.approx(float(rms), rel=1e-6)


def test_mnist_checksums_are_the_attributed_ones(repository):
    text = (repository / "data" / "mnist" / "ATTRIBUTION.md").read_text()
    config = load_yaml("mnist", repository)
    assert all(config[name]["sha256"] in text for name in FILES)


def test_relative_root_counts_from_the_repository(tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    for root, found in (("data/mnist", repository / "data" / "mnist"), (str(tmp_path), tmp_path)):
        assert readers.IdxFolder(root=root, remedy="").root == found


def test_gzipped_and_raw_files_read_alike(tiny):
    gzipped = IdxImages(**tiny)
    for path in Path(tiny["root"]).glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    raw = IdxImages(**tiny)
    assert torch.equal(gzipped.train, raw.train) and torch.equal(gzipped.test, raw.test)
    assert torch.equal(gzipped.train_labels, raw.train_labels)


def test_to_float_covers_the_range_and_inverts():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_float(levels)
    assert x.dtype == torch.float32 and x.min() == -0.5 and x.max() == 0.5
    assert torch.equal(to_uint8(x), levels)
    outside = torch.tensor([-7.0, -0.51, 0.51, 7.0])
    assert to_uint8(outside).tolist() == [0, 0, 255, 255]


# What is refused


def test_missing_file(tiny):
    (Path(tiny["root"]) / "test_images.gz").unlink()
    refused(tiny, "test_images", "is missing")


def test_missing_mnist_names_the_file_and_git(repository):
    config = load_yaml("mnist", repository) | {"root": "data/nowhere"}
    refused(config, "data/nowhere/train-images-idx3-ubyte.gz", "git checkout", "data.root=")


def test_flipped_bit(tiny):
    path = Path(tiny["root"]) / "train_images.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[100] ^= 1
    path.write_bytes(gzip.compress(raw))
    refused(tiny, "train_images.gz", "not an idx file", "SHA-256")


def test_flipped_bit_in_the_header_fails_before_parsing(tiny):
    path = Path(tiny["root"]) / "train_images.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[7] ^= 1
    path.write_bytes(gzip.compress(raw))
    refused(tiny, "train_images.gz", "SHA-256")


def test_damaged_gzip(tiny):
    path = Path(tiny["root"]) / "train_labels.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(tiny, "train_labels.gz", "not an idx file")
    path.write_bytes(b"<html>not found</html>")
    refused(tiny, "train_labels.gz", "not an idx file")
    path.write_bytes(whole[:-8] + b"\0" * 4 + whole[-4:])  # a wrong CRC
    refused(tiny, "train_labels.gz", "not an idx file")


def test_short_file(tiny):
    path = Path(tiny["root"]) / "test_images.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5]))
    refused(tiny, "test_images.gz", "107 raw bytes instead of 112")


def test_gzip_bomb_is_not_decompressed(tiny, monkeypatch):
    path = Path(tiny["root"]) / "test_images.gz"
    path.write_bytes(gzip.compress(bytes(64 * 2**20)))
    lengths = []
    unpacked = readers._unpacked

    def spy(path, most):
        raw = unpacked(path, most)
        lengths.append(len(raw))
        return raw

    monkeypatch.setattr(readers, "_unpacked", spy)
    refused(tiny, "test_images.gz", "more than 112 raw bytes")
    assert lengths[-1] == 113


@pytest.mark.parametrize("offset, value", [(0, 1), (2, 9), (3, 2), (11, 2)])
def test_wrong_header(tiny, offset, value):
    """A wrong magic number, type, rank or dimension, in a file that nobody has a checksum for."""
    path = Path(tiny["root"]) / "test_images.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[offset] = value
    path.write_bytes(gzip.compress(raw))
    tiny["test_images"]["sha256"] = None
    refused(tiny, "test_images.gz", "not an idx file", "[6, 4, 4]", "header")


def test_label_out_of_range(tiny):
    with pytest.raises(UserError, match=r"data\.num_classes=9: tiny has labels from 0 to 9"):
        IdxImages(**(tiny | {"num_classes": 9}))


def test_unverified_contents_are_said_in_the_log(tiny, caplog):
    digest = tiny["train_images"]["sha256"]
    tiny["train_images"]["sha256"] = None
    with caplog.at_level(logging.WARNING):
        IdxImages(**tiny)
    assert caplog.messages == [f"train_images.gz: contents not verified, SHA-256 {digest}"]


def test_sigma_data_far_from_the_measured_one(tiny):
    with pytest.raises(UserError, match=r"data\.sigma_data=0\.4: tiny measures 0\.5 .*=0\.5$"):
        IdxImages(**(tiny | {"sigma_data": 0.4}))


def test_more_than_one_channel_is_refused(tiny):
    with pytest.raises(UserError, match=r"data\.image_shape=\[3, 4, 4\]"):
        IdxImages(**(tiny | {"image_shape": [3, 4, 4]}))


def test_no_download_for_a_set_that_ships(tiny):
    refused(tiny | {"download": True}, "data.download=true")


def test_failed_download_names_the_remedy(tmp_path, monkeypatch, repository):
    from torchvision.datasets import utils

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(utils, "download_url", offline)
    config = load_yaml("fashion_mnist", repository) | {"root": str(tmp_path), "download": True}
    refused(config, "train-images-idx3-ubyte.gz", "cannot be downloaded", "no network", "data.root")


def test_download_is_asked_for_what_is_missing_only(tiny, monkeypatch):
    from torchvision.datasets import FashionMNIST, utils

    root = Path(tiny["root"])
    packed = {path.name: path.read_bytes() for path in root.glob("*.gz")}
    (root / "train_images.gz").unlink()
    (root / "train_labels").write_bytes(gzip.decompress(packed["train_labels.gz"]))
    asked = []

    def fetch(url, root, filename, md5):
        asked.append((url, filename, md5))
        (Path(root) / filename).write_bytes(packed[filename])

    monkeypatch.setattr(utils, "download_url", fetch)
    monkeypatch.setattr(FashionMNIST, "mirrors", ["https://mirror/"])
    resources = [(f"{name}.gz", f"md5 {name}") for name in FILES[:2]]
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    IdxImages(**(tiny | {"download": True, "torchvision": "FashionMNIST"}))
    assert asked == [("https://mirror/train_images.gz", "train_images.gz", "md5 train_images")]


# Any set of images

COLOUR = {  # of 5 x 7 pixels
    **{"name": "colour", "image_shape": [3, 5, 7], "num_classes": 2},
    **{"sigma_data": 0.5, "sigma_data_tolerance": 0.1},
}


def colours(n):
    """Black and white: their RMS about zero is 0.5."""
    gen = torch.Generator().manual_seed(n)
    images = 255 * torch.randint(2, (n, 3, 5, 7), generator=gen)
    return images.to(torch.uint8), torch.arange(n) % 2


def test_a_set_in_colour_is_its_tensors():
    colour = ImageDataset(**COLOUR, train=colours(20), test=colours(6))
    x0, labels = colour.batch(0, 1, 8)
    assert x0.shape == (8, 3, 5, 7) and set(labels.tolist()) == {0, 1}
    assert torch.equal(to_uint8(colour.test_batch(6).x0), colours(6)[0])
    assert colour.measured_sigma_data() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "train", "said"),
    [
        ({"image_shape": [3, 7, 5]}, colours(20), r"data\.image_shape=\[3, 7, 5\]: colour has"),
        ({}, (colours(20)[0].float(), colours(20)[1]), "torch.float32 of"),
        ({}, (colours(20)[0], colours(19)[1]), "one int64 per image"),
        ({}, (colours(20)[0], colours(20)[1] - 1), "data.num_classes=2: colour has labels from -1"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, train, said):
    with pytest.raises(ValueError, match=said):  # a UserError is one
        ImageDataset(**{**COLOUR, **changes}, train=train, test=colours(6))


# Which batch belongs to which step


def test_every_sample_once_per_epoch():
    epochs = [epoch_order(3, epoch, 100, CPU) for epoch in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(100))
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("batch_size", [1, 7, 20, 23, 64])
def test_batches_number_the_samples_across_epoch_borders(batch_size):
    """Batches laid end to end are the epochs laid end to end, whatever the batch size."""
    size, steps = 20, 130 // batch_size + 1
    batches = [batch_indices(5, step, batch_size, size, CPU) for step in range(steps)]
    assert {len(batch) for batch in batches} == {batch_size}
    joined = torch.cat(batches)
    epochs = torch.cat([epoch_order(5, epoch, size, CPU) for epoch in range(len(joined) // size)])
    assert torch.equal(joined[: len(epochs)], epochs)


def test_a_batch_copies_no_whole_order(monkeypatch):
    """Else its cost grew with the number of images: this order would take 80 TB."""
    order = torch.zeros(1, dtype=torch.int64).expand(10**13)
    monkeypatch.setattr(data, "epoch_order", lambda *_: order)
    for step in (3, 10**13 // 4 - 1, 10**13 // 4):
        assert torch.equal(batch_indices(0, step, 4, 10**13, CPU), torch.zeros(4).long())


def test_batch_follows_from_seed_and_step_alone(tiny):
    images = IdxImages(**tiny)
    first = [images.batch(1, step, 8) for step in range(6)]
    data.epoch_order.cache_clear()
    fresh = IdxImages(**tiny)
    for step in (5, 0, 3):  # another order, and after other seeds
        fresh.batch(2, step, 8)
        x0, labels = fresh.batch(1, step, 8)
        assert torch.equal(x0, first[step].x0) and torch.equal(labels, first[step].labels)
    assert not torch.equal(fresh.batch(2, 0, 8).x0, first[0].x0)


def test_batch_keeps_images_and_labels_together(tiny):
    images = IdxImages(**tiny)
    x0, labels = images.batch(0, 2, 8)
    assert x0.shape == (8, 1, 4, 4) and x0.dtype == torch.float32 and labels.dtype == torch.int64
    index = batch_indices(0, 2, 8, 20, CPU)
    assert torch.equal(to_uint8(x0), images.train[index])
    assert torch.equal(labels, images.train_labels[index])


def test_test_batch_is_the_beginning_of_the_test_set(tiny):
    images = IdxImages(**tiny)
    x0, labels = images.test_batch(4)
    assert torch.equal(to_uint8(x0), images.test[:4]) and labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="6 test images"):
        images.test_batch(7)


def test_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1"):
        batch_indices(0, -1, 4, 20, CPU)


def test_to_moves_a_copy(tiny):
    images = IdxImages(**tiny)
    moved = images.to("meta")
    assert moved.train.device.type == "meta" and images.train.device.type == "cpu"
    assert moved.sigma_data == 0.5 and moved.measured_sigma_data() == images.measured_sigma_data()


# The toy


@pytest.fixture
def bimodal(repository) -> Bimodal:
    return Bimodal(**load_yaml("bimodal", repository))


def test_bimodal_is_scaled_to_sigma_data(bimodal):
    mean, std = bimodal.exact.mean, bimodal.exact.std
    assert mean == pytest.approx(0.5 / 1.25**0.5) and std == pytest.approx(mean / 2)
    assert mean**2 + std**2 == pytest.approx(bimodal.sigma_data**2)


def test_bimodal_moments(bimodal):
    n = 200_000
    x0, labels = bimodal.batch(0, 0, n)
    assert x0.shape == (n, 1, 1, 1) and x0.dtype == torch.float32
    x = x0.flatten().double()
    assert abs(float(x.mean())) < 4 * 0.5 / n**0.5  # four standard errors
    assert float(x.std()) == pytest.approx(0.5, rel=5e-3)
    for label, mean in enumerate((-bimodal.exact.mean, bimodal.exact.mean)):
        component = x[labels == label]
        assert float(component.mean()) == pytest.approx(mean, abs=4 * 0.224 / (n / 2) ** 0.5)
        assert float(component.std()) == pytest.approx(bimodal.exact.std, rel=1e-2)
    assert bimodal.measured_sigma_data() == pytest.approx(0.5, rel=1e-2)


def test_bimodal_batch_follows_from_seed_and_step(bimodal):
    x0, labels = bimodal.batch(1, 9, 16)
    assert torch.equal(x0, bimodal.batch(1, 9, 16).x0)
    assert set(labels.tolist()) == {0, 1}
    for other in (bimodal.batch(1, 8, 16), bimodal.batch(2, 9, 16), bimodal.test_batch(16)):
        assert not torch.equal(x0, other.x0)
    assert torch.equal(bimodal.test_batch(16).x0, bimodal.test_batch(16).x0)


def test_impossible_bimodal(bimodal, repository):
    with pytest.raises(UserError, match=r"data\.std=0 "):
        Bimodal(**(load_yaml("bimodal", repository) | {"std": 0.0}))
