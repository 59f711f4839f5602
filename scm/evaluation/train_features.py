"""How a feature network is trained: a classifier of augmented images, by AdamW.

Every number follows from the seed: the same machine and number of threads give the same weights.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from scm.core import rng
from scm.data.images import ImageDataset
from scm.evaluation.features import FeatureNet

log = logging.getLogger(__name__)

EPOCHS = 14
BATCH = 256
PEAK_LR = 4e-3
WARMUP = 0.15  # part of the steps over which the rate rises; then half a cosine down to 0
WEIGHT_DECAY = 0.02
TURN, ZOOM, SHIFT = 0.17, 0.1, 0.15  # augmentation: radians, relative, in half image widths


def train(
    kind: type[FeatureNet],
    settings: dict[str, Any],
    dataset: ImageDataset,
    *,
    seed: int,
    epochs: int,
) -> FeatureNet:
    """The classifier after `epochs` of AdamW with a warm-up and half a cosine, in eval mode.

    The loss is the cross entropy of the classes and, for a set that has further targets, their mean
    squared error in units of their variance.
    """
    torch.manual_seed(rng.derive_seed(seed, "feature-weights"))
    device = dataset.device
    net = kind(**settings).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    per_epoch = max(1, len(dataset.train) // BATCH)
    steps = epochs * per_epoch
    losses = torch.zeros((), device=device)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * rate(step / steps)
        x0, labels = dataset.batch(seed, step, BATCH)
        x0 = augmented(x0, rng.generator(seed, "feature-augment", step, device="cpu"))
        features, logits = net(x0)
        loss = nn.functional.cross_entropy(logits, labels)
        if net.targets is not None and dataset.train_targets is not None:
            goal = dataset.train_targets[dataset.indices(seed, step, BATCH)]
            error = nn.functional.mse_loss(net.targets(features), goal)
            loss = loss + error / dataset.train_targets.var()
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
    # what comes in from outside is 0: the background of grey images, once black is 0. One in colour
    # goes on as its border is.
    outside = "zeros" if x.shape[1] == 1 else "border"
    moved = nn.functional.grid_sample(x + 0.5, grid, padding_mode=outside, align_corners=False)
    return moved - 0.5
