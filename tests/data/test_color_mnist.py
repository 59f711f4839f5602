"""MNIST in colour: where its pixels come from, and that they are the same everywhere."""

import pytest
import torch
from runs import DIGITS, composed_once, mnist

from scm.core.errors import UserError
from scm.data import color_mnist
from scm.data.dataset import to_uint8
from scm.storage import model as models


@pytest.fixture
def small(digits):
    return models.dataset(composed_once(("data=color_mnist", *DIGITS)).data)


def test_images_are_ink_on_paper_with_mnists_grey_as_the_share(small):
    """x = paper + u / 255 (ink - paper), to the nearest of 256 levels."""
    grey = mnist().train[: len(small.train)].double() / 255
    ink, paper = ((small.train_targets.double() + 0.5) * 255)[:, :, None, None].split(3, dim=1)
    expected = paper + grey * (ink - paper)
    inner = small.train[:, :, 2:-2, 2:-2].double()
    assert (inner - expected).abs().max() <= 0.5 + 1e-4
    border = small.train.clone()
    border[:, :, 2:-2, 2:-2] = paper.round().to(torch.uint8)
    assert (border == paper.round()).all()
    assert torch.equal(small.train_labels, mnist().train_labels[: len(small.train)])


def test_colours_follow_from_seed_part_and_index():
    few, many = (color_mnist.colours(n, "train", 0, 128) for n in (5, 50))
    assert all(torch.equal(a, b[:5]) for a, b in zip(few, many, strict=True))
    for part, seed in (("test", 0), ("train", 1)):
        assert not torch.equal(color_mnist.colours(5, part, seed, 128)[0], few[0])
    # of the first two images, on any machine
    assert few[0][:2].tolist() == [[202, 56, 226], [242, 183, 29]]
    assert few[1][:2].tolist() == [[112, 1, 87], [167, 124, 211]]


def test_ink_and_paper_are_apart_and_else_uniform():
    def distances(contrast):
        ink, paper = color_mnist.colours(20_000, "train", 0, contrast)
        return (ink.double() - paper.double()).norm(dim=1)

    near, far = ((distances(contrast) < 128).double().mean() for contrast in (0, 128))
    assert near > 0.2 and far < 3e-4  # there all of eight pairs are near
    free = torch.cat(color_mnist.colours(20_000, "train", 0, 0)).double()
    assert free.mean() == pytest.approx(127.5, abs=1)
    assert free.std() == pytest.approx((256**2 / 12) ** 0.5, rel=0.01)


def test_the_config_states_the_measured_sigma_data():
    data = models.dataset(composed_once(("data=color_mnist",)).data)
    assert data.train.shape == (60_000, 3, 32, 32) and data.test.shape == (10_000, 3, 32, 32)
    assert data.measured_sigma_data() == pytest.approx(data.sigma_data, rel=2e-3)


def test_a_batch_holds_images_labels_and_targets_of_the_same_index(small):
    index = small.indices(3, 1, 8)
    x0, labels = small.batch(3, 1, 8)
    assert torch.equal(to_uint8(x0), small.train[index])
    assert torch.equal(labels, small.train_labels[index])
    corner = small.train_targets[index][:, 3:]  # paper
    assert torch.equal(x0[:, :, 0, 0], corner)


@pytest.mark.parametrize("shape", ["[1,32,32]", "[3,4,32]"])
def test_impossible_shapes_are_named(shape, digits):
    with pytest.raises(UserError, match=r"data\.image_shape=.*three channels and more than 2 data"):
        models.dataset(
            composed_once(("data=color_mnist", *DIGITS, f"data.image_shape={shape}")).data
        )


def test_another_size_is_named(digits):
    with pytest.raises(UserError, match=r"not an idx file of unsigned bytes \[600, 30, 30\]"):
        models.dataset(composed_once(("data=color_mnist", *DIGITS, "data.pad=1")).data)
