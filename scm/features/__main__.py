"""Train a feature network: `python -m scm.features train [--data mnist] [--seed 0]`.

Every number follows from the seed: the same machine and number of threads give the same weights.
"""

import argparse
import logging
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from scm import build, checkpoint, features, rng, runtime, tags
from scm.cli import Parser, check_count, check_file, command
from scm.composing import composed
from scm.config import Device
from scm.data import IdxImages
from scm.errors import UserError
from scm.features import FeatureNet, FeatureNetwork

log = logging.getLogger(__name__)

NETWORK = {"widths": [24, 48, 64, 96], "features": 64}  # 0.4 M weights: a 1.6 MB file
EPOCHS = 14
MOST_EPOCHS = 10_000
BATCH = 256
PEAK_LR = 4e-3
WARMUP = 0.15  # part of the steps over which the rate rises; then half a cosine down to 0
WEIGHT_DECAY = 0.02
TURN, ZOOM, SHIFT = 0.17, 0.1, 0.15  # augmentation: radians, relative, in half image widths


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="python -m scm.features",
        description="Train the classifier whose features the quality metrics are computed from.",
    )
    commands = p.add_subparsers(dest="command", required=True)
    train_parser = commands.add_parser("train", help="train one and write it")
    train_parser.add_argument(
        "--data",
        nargs="+",
        default=["mnist"],
        metavar=("NAME", "KEY=VALUE"),
        help="one of conf/data, and changes to its values, such as download=true (mnist)",
    )
    train_parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    train_parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    train_parser.add_argument("--out", type=Path, help="(pretrained/features_DATA.safetensors)")
    train_parser.add_argument("--device", choices=[d.name for d in Device], default="cpu")
    train_parser.add_argument("--overwrite", action="store_true", help="replace a file")
    return p


def main(argv: list[str] | None = None) -> None:
    """Train and write; a user's mistake is one line and exit code 2."""
    command(parser(), make, argv)


def make(arguments: argparse.Namespace) -> None:
    """Train what `arguments` (of `parser`) ask for and write it with what is known of it."""
    name, *changes = arguments.data
    out = arguments.out or tags.feature_weights(name)
    check_file(out, overwrite=arguments.overwrite)
    check_count("--epochs", arguments.epochs, 1, MOST_EPOCHS)
    runtime.prepare(None)
    device = runtime.find_device(Device[arguments.device])
    config = composed([f"data={name}", *(f"data.{change}" for change in changes)])["data"]
    dataset = build.dataset(config)
    if not isinstance(dataset, IdxImages):
        raise UserError(f"--data {name}: has no images, so no feature network")
    settings = {
        "image_shape": list(dataset.image_shape),
        "num_classes": dataset.num_classes,
        **NETWORK,
    }
    started = time.perf_counter()
    net = train(settings, dataset.to(device), seed=arguments.seed, epochs=arguments.epochs)
    weights = dict(net.state_dict())
    sha256 = checkpoint.weights_digest(weights)
    seen = FeatureNetwork(net, sha256, {})(dataset.test)
    accuracy = float((seen.probabilities.argmax(1) == dataset.test_labels).double().mean())
    facts = {
        "network": settings,
        "data": dataset.name,
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "accuracy": accuracy,
        "layer": features.LAYER,
        "command": f"{features.train_command(' '.join(arguments.data))} --seed {arguments.seed}",
        "seconds": round(time.perf_counter() - started),
        "device": runtime.device_name(device),
        "versions": runtime.versions(),
    }
    checkpoint.save_weights(out, weights, facts)
    log.info("test accuracy %.2f %%, SHA-256 %s, written to %s", 100 * accuracy, sha256, out)


def train(settings: dict, dataset: IdxImages, *, seed: int, epochs: int) -> FeatureNet:
    """The classifier after `epochs` of AdamW with a warm-up and half a cosine, in eval mode."""
    torch.manual_seed(rng.derive_seed(seed, "feature-weights"))
    device = dataset.train.device
    net = FeatureNet(**settings).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    per_epoch = len(dataset.train) // BATCH
    steps = epochs * per_epoch
    losses = torch.zeros((), device=device)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * rate(step / steps)
        x0, labels = dataset.batch(seed, step, BATCH)
        x0 = augmented(x0, rng.generator(seed, "feature-augment", step, device="cpu"))
        _, logits = net(x0)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses += loss.detach()
        if (step + 1) % per_epoch == 0:
            mean = float(losses) / per_epoch
            log.info("epoch %d of %d: loss %.4f", (step + 1) // per_epoch, epochs, mean)
            losses.zero_()
    return net.eval().requires_grad_(False)


def rate(progress: float) -> float:
    """The learning rate's factor at this part of training: up linearly, down by a cosine."""
    if progress < WARMUP:
        return max(progress, 1e-3) / WARMUP
    return (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2


def augmented(x: Tensor, gen: torch.Generator) -> Tensor:
    """Each image turned, zoomed and shifted a little; `gen` is on the CPU."""
    turn, zoom, right, down = (2 * torch.rand(4, len(x), generator=gen) - 1).to(x.device)
    cos, sin = (TURN * turn).cos() * (1 + ZOOM * zoom), (TURN * turn).sin() * (1 + ZOOM * zoom)
    rows = [torch.stack([cos, -sin, SHIFT * right], 1), torch.stack([sin, cos, SHIFT * down], 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    # what comes in from outside is 0: the background, once black is 0
    moved = nn.functional.grid_sample(x + 0.5, grid, align_corners=False)
    return moved - 0.5


if __name__ == "__main__":
    main()
