"""Colour images end to end: trained, sampled, drawn, exported and compared."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from runs import DIGITS, TINY, composed_once, small_digits, trained, untrained, write_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scm.commands import export, report, sample
from scm.config.metrics import feature_weights
from scm.evaluation import features
from scm.evaluation.quality import Quality
from scm.storage import model as models

COLOUR = ("data=color_mnist", *TINY["unet_small"], "trainer.budget.steps=2")


@pytest.fixture(scope="module")
def runs(shared, digits):
    """A teacher and its student."""

    def make(folder):
        teacher = folder / "teacher"
        own = (*COLOUR, *DIGITS)
        trained(teacher, *own, "objective=diffusion", "sampler.heun.steps=2")
        told = ("objective=scd", f"objective.teacher={teacher}")
        trained(folder / "student", *own, *told, teacher=teacher)

    return shared("colour", make)


def test_samples_are_drawn_in_colour(runs, tmp_path):
    grid, out = tmp_path / "grid.png", tmp_path / "samples.npz"
    sample.main([str(runs / "student"), "-n", "9", "--grid", str(grid), "--out", str(out)])
    picture = np.asarray(Image.open(grid))
    assert picture.shape == (2 * (2 * 33 + 1), 2 * (8 * 33 + 1), 3)
    images = np.load(out)["images"]
    assert images.shape == (9, 3, 32, 32) and images.dtype == np.uint8
    assert np.abs(picture[2:66:2, 2:66:2] - images[0].transpose(1, 2, 0).astype(int)).max() <= 1


def test_a_runs_pictures_are_in_colour_on_disk_and_in_tensorboard(runs):
    strips = sorted((runs / "student" / "samples").glob("denoising_strip_*.png"))
    last = np.asarray(Image.open(strips[-1]))
    assert last[:, -64:].astype(int).std(axis=2).max() > 20  # at the lowest noise the data show
    events = EventAccumulator(str(runs / "student")).Reload()
    shown = events.Images("samples/one_step")[-1]
    assert (shown.width, shown.height) == (2 * (8 * 33 + 1), 2 * (8 * 33 + 1))


def test_runs_in_colour_are_compared(runs, tmp_path):
    report.main([str(runs / "teacher"), str(runs / "student"), "--out", str(tmp_path / "compared")])
    text = (tmp_path / "compared" / "report.html").read_text()
    assert "student" in text and "data:image/png" in text


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs .[onnx]")
def test_a_network_in_colour_is_exported_to_onnx(runs, tmp_path):
    import onnxruntime

    export.main([str(runs / "student"), str(tmp_path / "colour"), "--to", "onnx"])
    session = onnxruntime.InferenceSession(tmp_path / "colour.onnx")
    assert session.get_inputs()[0].shape[1:] == [3, 32, 32]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["image_shape"]) == [3, 32, 32]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="needs .[diffusers]")
def test_the_pipeline_in_diffusers_makes_colour_pictures(runs, tmp_path):
    from scm.export.pipeline import Pipeline

    export.main([str(runs / "student"), str(tmp_path / "colour"), "--to", "diffusers"])
    images = Pipeline.from_pretrained(tmp_path / "colour")(2).images
    assert [image.size for image in images] == [(32, 32)] * 2 and images[0].mode == "RGB"


@pytest.mark.parametrize("name", ["unet", "unet_small", "unet_attention", "unet_mobile"])
def test_every_network_takes_colour(name):
    model = untrained("data=color_mnist", *TINY[name])
    assert model.sample(3, steps=2).shape == (3, 3, 32, 32)


# ---------------------------------------------------------------- quality


@pytest.fixture(scope="module")
def network():
    return features.load(feature_weights("color_mnist"), torch.device("cpu"))


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """A small set of the kind, whatever order the tests come in."""
    folder = tmp_path_factory.mktemp("digits") / "idx"
    write_digits(folder)
    return models.dataset(composed_once(("data=color_mnist", *small_digits(folder))).data)


def test_the_shipped_classifier_tells_digits_and_colours(network, some):
    assert network.facts["accuracy"] >= 0.97 and network.facts["targets_explained"] >= 0.9
    seen = network(some.test)
    correct = (seen.probabilities.argmax(1) == some.test_labels).double().mean()
    assert float(correct) == pytest.approx(network.facts["accuracy"], abs=0.02)
    left = network.net.targets(seen.features) - some.test_targets
    r2 = 1 - left.square().mean() / some.test_targets.var()
    assert float(r2) == pytest.approx(network.facts["targets_explained"], abs=0.03)


def test_the_frechet_distance_sees_colour(network, some, tmp_path):
    """Images whose colours are wrong are far; a classifier of digits alone would not see it."""
    quality = Quality(some.train, some.test, network, None, tmp_path)
    real = quality.measure(some.train[:500])["frechet_distance"]
    grey = some.train[:500].float().mean(1, keepdim=True).round().to(torch.uint8)
    grey = quality.measure(grey.expand(-1, 3, -1, -1))["frechet_distance"]
    assert grey > 5 * real
