"""The shipped feature network is what it says, and the command that made it repeats itself."""

import copy
import json

import pytest
import torch
from PIL import Image
from runs import composed_once, mnist

from scm.commands import features as command
from scm.config.metrics import feature_weights
from scm.core import rng
from scm.core.errors import UserError
from scm.data import image_folder
from scm.data.dataset import to_uint8
from scm.evaluation import features, train_features
from scm.evaluation.quality import quality_of
from scm.storage import model as models
from scm.storage import store

SHIPPED = feature_weights("mnist")
CPU = torch.device("cpu")


SECOND = feature_weights("mnist", second=True)


def test_the_shipped_weights_are_small_and_say_what_they_are():
    for file, kind, made_by in (
        (SHIPPED, features.Strided, "features train --data mnist --seed 0"),
        (SECOND, features.Pooled, "features --data mnist --second --seed 0"),
    ):
        network = features.load(file, CPU)
        assert isinstance(network.net, kind) and file.stat().st_size < 2e6
        assert network.facts["data"] == "mnist" and network.facts["accuracy"] >= 0.994
        assert network.facts["command"].endswith(made_by)
        assert len(network.sha256) == 64 and not network.net.training


@pytest.mark.slow
@pytest.mark.parametrize(("file", "width"), [(SHIPPED, 64), (SECOND, 96)])
def test_the_shipped_accuracy_is_what_the_metadata_say(file, width):
    network, dataset = features.load(file, CPU), mnist()
    seen = network(dataset.test)
    correct = (seen.probabilities.argmax(1) == dataset.test_labels).double().mean()
    assert float(correct) == pytest.approx(network.facts["accuracy"], abs=2e-4)  # other rounding
    assert seen.features.shape == (10_000, width)
    assert torch.allclose(seen.probabilities.sum(1), torch.ones(10_000), atol=1e-5)


def test_features_do_not_depend_on_the_rest_of_the_batch(monkeypatch):
    network, images = features.load(SHIPPED, CPU), mnist().test[:20]
    whole = network(images)
    monkeypatch.setattr(features, "BATCH", 7)
    parts = network(images)
    assert torch.allclose(whole.features, parts.features, atol=1e-4)


def test_missing_and_damaged_weights_are_named_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"python -m scm features --data fashion_mnist`"):
        features.load(tmp_path / "features_fashion_mnist.safetensors", CPU)
    damaged = bytearray(SHIPPED.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file = tmp_path / "features_mnist.safetensors"
    file.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged, its contents do not match"):
        features.load(file, CPU)
    weights, facts = store.read_weights(SHIPPED)
    facts["network"]["features"] = 32
    store.save_weights(file, weights, facts)
    with pytest.raises(UserError, match="not a feature network"):
        features.load(file, CPU)


@pytest.mark.slow
def test_training_learns_and_its_seed_decides_the_weights():
    small = copy.copy(mnist())
    small.train, small.train_labels = small.train[:2048], small.train_labels[:2048]
    settings = {"image_shape": [1, 28, 28], "num_classes": 10, "widths": [8] * 4, "features": 16}
    train, kind = train_features.train, features.Strided
    nets = [train(kind, settings, small, seed=seed, epochs=5) for seed in (1, 1, 2)]
    digests = [store.weights_digest(dict(net.state_dict())) for net in nets]
    assert digests[0] == digests[1] != digests[2]
    seen = features.FeatureNetwork(nets[0], digests[0], {})(small.test[:1000])
    assert (seen.probabilities.argmax(1) == small.test_labels[:1000]).double().mean() > 0.6


@pytest.mark.parametrize("second", [False, True])
def test_the_command_writes_weights_that_load(second, tmp_path, monkeypatch):
    small = copy.copy(mnist())
    small.test, small.test_labels = small.test[:50], small.test_labels[:50]
    monkeypatch.setattr(command.model, "dataset", lambda _: small)
    monkeypatch.setattr(command, "train", lambda kind, settings, *_, **__: kind(**settings).eval())
    out = tmp_path / "features_mnist.safetensors"
    command.main(["--out", str(out), "--seed", "3", *(["--second"] if second else [])])
    network = features.load(out, CPU)
    assert isinstance(network.net, features.Pooled if second else features.Strided)
    said = "--data mnist --second --seed 3" if second else "--data mnist --seed 3"
    assert network.facts["seed"] == 3 and network.facts["command"].endswith(said)
    assert network.facts["layer"] == network.net.layer
    correct = network(small.test).probabilities.argmax(1) == small.test_labels
    assert network.facts["accuracy"] == pytest.approx(float(correct.double().mean()))
    assert "/" not in json.dumps(network.facts["versions"])


@pytest.mark.parametrize("stride", [1, 2])
def test_pooled_features_are_channel_means_after_residual_blocks(stride):
    """Of a block whose branch is zero: relu(skip(x)), averaged over the image."""
    settings = {"image_shape": [1, 8, 8], "num_classes": 3}
    widths = [4, 6] if stride == 1 else [4, 6, 6]
    net = features.Pooled(**settings, widths=widths).eval()
    blocks = [module for module in net.layers if hasattr(module, "skip")]
    assert [block.skip.stride[0] for block in blocks] == ([1] if stride == 1 else [2, 1])
    for block in blocks:
        block.branch[-1].weight.data.zero_()
    x = torch.randn(5, 1, 8, 8)
    h = net.layers[:3](x)
    for block in blocks:
        h = torch.relu(block.skip(h))
    found, logits = net(x)
    torch.testing.assert_close(found, h.mean((2, 3)))
    torch.testing.assert_close(logits, net.classes(found))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "exists; name another file, or add --overwrite"),
        (["train"], "exists; name another file, or add --overwrite"),
        (["--out", "x.safetensors", "--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--data", "bimodal"], "--data bimodal: has no images"),
        (["--data", "cifar"], "data/cifar"),
        (["--data", "image_folder"], "data.root=null: set data.root=FOLDER"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and error.count("\n") == 1


def test_augmentation_moves_little_and_keeps_the_background():
    x = mnist().test_batch(32).x0
    moved = train_features.augmented(x, rng.generator(0, "feature-augment", 0, device="cpu"))
    assert moved.shape == x.shape and moved.min() >= -0.5 - 1e-6 and moved.max() <= 0.5 + 1e-6
    assert torch.equal(to_uint8(moved[:, :, 0, 0]), torch.zeros(32, 1, dtype=torch.uint8))
    ink, ink_moved = (x + 0.5).sum((1, 2, 3)), (moved + 0.5).sum((1, 2, 3))
    assert torch.allclose(ink, ink_moved, rtol=0.4) and not torch.equal(x, moved)


def test_the_rate_rises_then_falls_to_0():
    rates = [train_features.rate(k / 100) for k in range(101)]
    top = max(range(101), key=rates.__getitem__)
    assert rates[top] == pytest.approx(1, abs=0.01) and rates[-1] == pytest.approx(0, abs=1e-9)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_augmentation_of_colour_goes_on_as_the_border_is():
    """There is no one background that could come in from outside."""
    x = torch.tensor([0.4, -0.3, 0.1])[None, :, None, None].expand(6, 3, 8, 8)
    moved = train_features.augmented(x, rng.generator(0, "test", device="cpu"))
    torch.testing.assert_close(moved, x.contiguous())


def test_a_network_learns_to_read_the_colours(digits):
    data = models.dataset(composed_once(("data=color_mnist", *digits)).data)
    settings = {"image_shape": [3, 32, 32], "num_classes": 10, "targets": 6}
    settings |= {"widths": [8] * 4, "features": 16}
    net = train_features.train(features.Strided, settings, data, seed=0, epochs=12)
    seen = features.FeatureNetwork(net, "", {})(data.test)
    assert command.explained(net, seen.features, data.test_targets) > 0.3
    exact = seen.features[:0].new_zeros(len(data.test), net.targets.in_features)
    mean = data.test_targets.mean(0)
    net.targets.weight.data.zero_(), net.targets.bias.data.copy_(mean)
    assert command.explained(net, exact, data.test_targets) == pytest.approx(0, abs=1e-5)


def test_images_without_classes_have_no_classifier(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_folder, "CACHE", tmp_path / "cache")
    for i in range(12):
        Image.new("RGB", (9, 9), (20 * i, 255 - 20 * i, 128)).save(tmp_path / f"{i}.png")
    told = ("image_folder", f"root={tmp_path}", "sigma_data_tolerance=9")
    with pytest.raises(SystemExit):
        command.main(["--data", *told, "--out", str(tmp_path / "x.safetensors")])
    assert "its images have no classes to tell apart" in capsys.readouterr().err
    overrides = ("data=image_folder", *[f"data.{one}" for one in told[1:]])
    data = models.dataset(composed_once(overrides).data)
    with pytest.raises(UserError, match="no quality metrics, since"):
        quality_of(data, CPU)
    data.num_classes = 2
    asked = f"--data image_folder name=image_folder root={tmp_path}"
    with pytest.raises(UserError, match=f"make one with `python -m scm features {asked}`"):
        quality_of(data, CPU)
