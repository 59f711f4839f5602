"""Train a feature network: `python -m scm features [--data mnist] [--seed 0]`."""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from scm.commands import options
from scm.config.compose import composed
from scm.config.metrics import feature_weights
from scm.core import machine, provenance
from scm.core.cli import Parser, check_count, check_file, command
from scm.core.errors import UserError
from scm.data.images import ImageDataset
from scm.evaluation import features
from scm.evaluation.features import FeatureNet, FeatureNetwork
from scm.evaluation.train_features import EPOCHS, train
from scm.storage import model, store

log = logging.getLogger(__name__)

NETWORKS: dict[str, dict[str, Any]] = {
    "strided": {"widths": [24, 48, 64, 96], "features": 64},  # 0.4 M weights: a 1.6 MB file
    "pooled": {"widths": [16, 32, 64, 96]},  # 0.2 M weights
}
MOST_EPOCHS = 10_000


def main(argv: list[str] | None = None) -> None:
    """Train and write; a user's mistake is one line and exit code 2."""
    p = Parser(
        prog="python -m scm features",
        description="Train the classifier whose features the quality metrics are computed from.",
    )
    p.add_argument("former", nargs="?", choices=["train"], help=argparse.SUPPRESS)
    p.add_argument(
        "--data",
        nargs="+",
        default=["mnist"],
        metavar=("NAME", "KEY=VALUE"),
        help="one of conf/data, and changes to its values, such as download=true (mnist)",
    )
    p.add_argument(
        "--second",
        action="store_true",
        help="the second network, of another architecture, for a metric that nothing is tuned by",
    )
    p.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    p.add_argument("--out", type=Path, help="(pretrained/features_DATA.safetensors, ..._second)")
    options.add(p, "--device", default="cpu")
    options.add(p, "--seed", "--overwrite")
    command(p, make, argv)


def make(arguments: argparse.Namespace) -> None:
    """Train what `arguments` ask for and write it with what is known of it."""
    name, *changes = arguments.data
    config = composed([f"data={name}", *(f"data.{change}" for change in changes)]).data
    architecture = "pooled" if arguments.second else "strided"
    out = arguments.out or feature_weights(config.name, second=arguments.second)
    check_file(out, overwrite=arguments.overwrite)
    check_count("--epochs", arguments.epochs, 1, MOST_EPOCHS)
    device = options.chosen_device(arguments)
    dataset = model.dataset(config)
    if not isinstance(dataset, ImageDataset):
        raise UserError(f"--data {name}: has no images, so no feature network")
    if dataset.num_classes < 2:
        raise UserError(
            f"--data {' '.join(arguments.data)}: its images have no classes to tell apart, so no "
            "feature network; put those of each class into a sub-folder of their own"
        )
    settings = {
        "image_shape": list(dataset.image_shape),
        "num_classes": dataset.num_classes,
        **NETWORKS[architecture],
    }
    if dataset.train_targets is not None:
        settings["targets"] = dataset.train_targets.shape[1]
    train_command = features.train_command(" ".join(arguments.data), second=arguments.second)
    if arguments.epochs != EPOCHS:
        train_command += f" --epochs {arguments.epochs}"
    started = time.perf_counter()
    kind = features.ARCHITECTURES[architecture]
    net = train(kind, settings, dataset.to(device), seed=arguments.seed, epochs=arguments.epochs)
    weights = dict(net.state_dict())
    sha256 = store.weights_digest(weights)
    seen = FeatureNetwork(net, sha256, {})(dataset.test)
    accuracy = float((seen.probabilities.argmax(1) == dataset.test_labels).double().mean())
    read = explained(net, seen.features, dataset.test_targets)
    facts = {
        "architecture": architecture,
        "network": settings,
        "data": dataset.name,
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "accuracy": accuracy,
        **({} if read is None else {"targets_explained": read}),
        "layer": net.layer,
        "command": f"{train_command} --seed {arguments.seed}",
        "seconds": round(time.perf_counter() - started),
        "device": machine.device_name(device),
        "versions": provenance.versions(),
    }
    if read is not None:
        log.info("%.2f %% of the variance of the other targets is read", 100 * read)
    store.save_weights(out, weights, facts)
    log.info("test accuracy %.2f %%, SHA-256 %s, written to %s", 100 * accuracy, sha256, out)


def explained(net: FeatureNet, features: Tensor, targets: Tensor | None) -> float | None:
    """R^2, the share of the targets' variance that the network reads from the features.

    None for a network that reads none.
    """
    if net.targets is None or targets is None:
        return None
    left = net.targets(features.to(net.targets.weight)).cpu() - targets
    return float(1 - left.square().mean() / (targets - targets.mean(0)).square().mean())
