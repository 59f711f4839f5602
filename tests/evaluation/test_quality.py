"""Quality of images by name: falls as images get worse, and what is cached is what was computed."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from runs import small_quality
from torchvision.transforms.functional import gaussian_blur

from scm.config.metrics import QUALITY, SECOND
from scm.core.errors import UserError
from scm.data.dataset import to_float, to_uint8
from scm.evaluation import quality


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return small_quality(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def real(judge):
    """Training images, none of which the judge's data have."""
    images = small_quality(judge.cache, train=4000).train[2000:]
    return images[:800]


def worse(images, kind, amount):
    gen = torch.Generator().manual_seed(0)
    x = to_float(images)
    if kind == "noise":
        return to_uint8(x + amount * torch.randn(x.shape, generator=gen))
    return to_uint8(gaussian_blur(x, 9, amount))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "amounts"), [("noise", (0.05, 0.1, 0.2)), ("blur", (0.7, 1.0, 1.5))]
)
def test_worse_images_have_worse_numbers(kind, amounts, judge, real):
    rows = [judge.measure(real)]
    rows += [judge.measure(worse(real, kind, amount)) for amount in amounts]
    for better, next_ in pairwise(rows):
        for name in ("frechet_distance", "frechet_distance_train", SECOND, "kid"):
            assert next_[name] > better[name]
        assert next_["recall"] < better["recall"]
    # a slight blur makes images more typical, so that these rise before they fall
    for name in ("precision", "density", "coverage"):
        assert rows[-1][name] < 0.5 * rows[0][name]


def test_dropped_modes_have_worse_numbers(judge, real):
    classes = judge.network(real).probabilities.argmax(1)
    rows = []
    for kept in (10, 7, 4, 1):
        pool = real[classes < kept]
        rows.append(judge.measure(pool.repeat(-(-800 // len(pool)), 1, 1, 1)[:800]))
    for better, next_ in pairwise(rows):
        for name in ("frechet_distance", "kid", "class_variation"):
            assert next_[name] > better[name]
        for name in ("recall", "coverage"):
            assert next_[name] < better[name]
    assert rows[-1]["precision"] > 0.5 and rows[-1]["class_variation"] == pytest.approx(
        0.9, abs=0.03
    )


def test_real_images_are_near_the_floor(judge, real):
    measured, floor = judge.measure(real), judge.floor(800)
    assert set(measured) == set(floor) == set(QUALITY)
    assert measured["frechet_distance"] < 2 * floor["frechet_distance"]
    assert measured["memorisation"] == pytest.approx(1, abs=0.15)
    assert floor["memorisation"] == pytest.approx(1, abs=0.15)
    assert measured["confidence"] > 0.98 and abs(measured["kid"]) < 0.03


def test_copied_training_images_are_found(judge):
    assert judge.measure(judge.train[:100])["memorisation"] == pytest.approx(0, abs=1e-3)


def test_the_test_images_themselves_are_perfect(judge):
    measured = judge.measure(judge.test)
    assert measured["frechet_distance"] == pytest.approx(0, abs=1e-4)
    assert measured["precision"] == measured["recall"] == measured["coverage"] == 1
    assert measured["memorisation"] == pytest.approx(1)


def test_the_cache_gives_the_same_numbers(tmp_path, real):
    fresh = small_quality(tmp_path, train=300, test=100)
    first, floor = fresh.measure(real[:50]), fresh.floor(50)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 3  # of each network the reference, and the floor

    def never(self):
        raise AssertionError("computed again")

    again = small_quality(tmp_path, train=300, test=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality.Quality, "_looked_at", never)
        assert again.measure(real[:50]) == first and again.floor(50) == floor
        with pytest.raises(AssertionError):  # other images, other hash
            _ = small_quality(tmp_path, train=301, test=100).reference
        other = small_quality(tmp_path, train=300, test=100)
        object.__setattr__(other.network, "sha256", "0" * 64)
        with pytest.raises(AssertionError):  # another feature network
            _ = other.reference


def test_a_damaged_or_unwritable_cache_costs_time_only(tmp_path, real, caplog):
    first = small_quality(tmp_path, train=300, test=100)
    expected, floor = first.measure(real[:50]), first.floor(50)
    for file in tmp_path.iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(data)
    again = small_quality(tmp_path, train=300, test=100)
    assert again.measure(real[:50]) == expected and again.floor(50) == floor
    assert caplog.text.count("computed anew") == 3
    nowhere = tmp_path / "file"
    nowhere.write_text("in the way")
    assert small_quality(nowhere, train=300, test=100).measure(real[:50]) == expected
    assert "cannot keep" in caplog.text
    caplog.clear()
    assert small_quality(tmp_path, train=300, test=100).floor(50) == floor
    assert not caplog.records  # it was mended


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(20, 1, 28, 28), "images torch.float32"),
        (torch.zeros(20, 1, 32, 32, dtype=torch.uint8), r"\(1, 32, 32\)"),
        (torch.zeros(9, 1, 28, 28, dtype=torch.uint8), "9 images: 10 at least"),
    ],
)
def test_what_cannot_be_judged_is_named(images, said, judge):
    with pytest.raises(UserError, match=said):
        judge.measure(images)


def test_all_samples_alike_are_judged_too(judge):
    measured = judge.measure(judge.test[:1].repeat(20, 1, 1, 1))
    assert measured["frechet_distance"] > 50 and measured["recall"] < 0.05


def test_the_second_network_gives_one_metric_of_its_own(judge, real):
    alone = replace(judge, second=None)
    measured, without = judge.measure(real), alone.measure(real)
    assert measured.pop(SECOND) > 0 and measured == pytest.approx(without)
    assert judge.measure(judge.test)[SECOND] == pytest.approx(0, abs=1e-6)
    blurred = worse(real, "blur", 1.5)
    assert judge.measure(blurred)[SECOND] > 3 * judge.measure(real)[SECOND]
    assert SECOND in judge.floor(800) and SECOND not in alone.floor(800)  # a cache of each
