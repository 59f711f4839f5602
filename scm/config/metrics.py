"""Names, meanings and directions of metrics; the one that a run is judged by.

A metric that does not exist is refused before training rather than missed after it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scm.config.parts import Bimodal, Kind
from scm.core.errors import UserError
from scm.core.files import REPOSITORY

if TYPE_CHECKING:
    from scm.config.schema import Config

PRETRAINED = REPOSITORY / "pretrained"
SECOND = "second_frechet_distance"  # measured where there is a second feature network
QUALITY = {  # what `scm.evaluation.quality` measures; + where higher is better, - where lower is
    "frechet_distance": "- Frechet distance to the test images",
    "frechet_distance_train": "- Frechet distance to the training images",
    SECOND: "- Frechet distance to the test images in a second network's features",
    "kid": "- kernel distance (KID) to the test images",
    "precision": "+ share of samples on the test images' manifold",
    "recall": "+ share of test images on the samples' manifold",
    "density": "test images' balls round a sample, 1 for equal distributions",
    "coverage": "+ share of test images' balls that hold a sample",
    "class_variation": "- total variation between class histograms, training images' and samples'",
    "confidence": "mean probability of the most probable class",
    "memorisation": "median distance to the nearest training image, test images' is 1",
}
LOSS = "eval/loss"
Hopeless = Callable[[int, dict[str, float]], bool]  # stop early? of a step and its metrics
HEADLINE = "frechet_distance"


def feature_weights(data_name: str, *, second: bool = False) -> Path:
    """Where the feature network of a data set stands, or the second one, which may be missing."""
    return PRETRAINED / f"features_{data_name}{'_second' * second}.safetensors"


def quality_groups(config: "Config") -> list[str]:
    """Tag groups of quality metrics that this run has: `quality` at intervals, `final` once.

    None where no feature network for its data is there.
    """
    trainer = config.trainer
    wanted = {"quality": trainer.quality_images, "final": trainer.final_quality_images}
    if not feature_weights(config.data.name).exists():
        return []
    return [group for group, images in wanted.items() if images]


def optimised(config: "Config") -> list[str]:
    """Tags of this run's numbers of which lower, or higher, is better."""
    quality = [
        f"{group}/{sampler}/{name}"
        for group in quality_groups(config)
        for sampler in config.sampler
        for name in QUALITY
        if name != SECOND or feature_weights(config.data.name, second=True).exists()
    ]
    return [LOSS, "eval/error", *_toy(config), *filter(direction, quality)]


def _toy(config: "Config") -> list[str]:
    """Errors against the exact solution, which the unconditional toy has."""
    if not isinstance(config.data, Bimodal) or config.model.num_classes:
        return []
    learned = "denoiser" if config.objective.learns is Kind.velocity else "consistency"
    # an image to compare comes from samplers that draw no further noise on their way
    samplers = [name for name, one in config.sampler.items() if not getattr(one, "times", None)]
    return [f"eval/toy/{name}_rms" for name in (learned, *samplers)]


def check_optimized(config: "Config") -> None:
    """Raise UserError where `optimized_metric` is none that this run has and that can be better."""
    metric, there = optimized_metric(config), optimised(config)
    if metric not in there:
        raise UserError(
            f"optimized_metric={metric}: no number of this run of which lower or higher is better; "
            f"there is: {', '.join(there)}"
        )


def optimized_metric(config: "Config") -> str:
    """The tag that a sweeper optimises: the one named, or the first sampler's Frechet distance.

    The held-out loss where quality is not measured: it says little of a consistency model, whose
    target moves, but it is always there.
    """
    if config.optimized_metric is not None:
        return config.optimized_metric
    groups = quality_groups(config)
    return f"{groups[0]}/{next(iter(config.sampler))}/{HEADLINE}" if groups else LOSS


def early(config: "Config") -> str | None:
    """The tag that stands for the optimised one before a run's end; None where there is none.

    For a final/ one it is the same number of fewer images.
    """
    group, _, rest = optimized_metric(config).partition("/")
    tag = f"quality/{rest}" if group == "final" else f"{group}/{rest}"
    return tag if tag in optimised(config) else None


def direction(tag: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither."""
    group, _, name = tag.partition("/")
    sampler, _, name = name.rpartition("/")
    if group == "eval":
        return -1 if name in ("loss", "error") or name.endswith("_rms") else 0
    if sampler == "floor":  # of real images
        return 0
    return {"+": 1, "-": -1}.get(QUALITY.get(name, "")[:1], 0)


def to_minimise(config: "Config", metrics: dict[str, float]) -> float | None:
    """The optimised metric's value, negative where higher is better: a sweeper minimises."""
    metric = optimized_metric(config)
    return -direction(metric) * metrics[metric] if metric in metrics else None


def is_better(metric: str, value: float, than: float | None) -> bool:
    """Whether a value of this metric is better than another, or the first; never where not finite.

    Which way is better says `direction`.
    """
    if not math.isfinite(value) or than is None:
        return math.isfinite(value)
    return direction(metric) * (value - than) > 0
