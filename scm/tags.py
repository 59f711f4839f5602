"""Which numbers the evaluation of a run gives, by tag, known from its config alone. No torch.

So a metric that does not exist is refused before training rather than missed after it.
"""

import math
from pathlib import Path
from typing import Any

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
SMALLEST = 10  # images that can be judged at all
QUALITY = {  # what `scm.quality` measures; + where higher is better, - where lower is
    "frechet_distance": "- Frechet distance to the test images",
    "frechet_distance_train": "- Frechet distance to the training images",
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
HEADLINE = "frechet_distance"


def feature_weights(data_name: str) -> Path:
    """Where the feature network of a data set stands."""
    return PRETRAINED / f"features_{data_name}.safetensors"


def quality_groups(config: dict[str, Any]) -> list[str]:
    """Tag groups of quality metrics that this run has: `quality` at intervals, `final` once.

    None where no feature network for its data is there.
    """
    trainer = config["trainer"]
    wanted = {"quality": trainer["quality_images"], "final": trainer["final_quality_images"]}
    if not feature_weights(config["data"]["name"]).exists():
        return []
    return [group for group, images in wanted.items() if images]


def available(config: dict[str, Any]) -> list[str]:
    """Tags of all numbers that the run's last evaluation will have."""
    samplers = list(config["sampler"])
    plain = ("calls", "images_per_second", "mean", "std")
    return [
        LOSS,
        "eval/error",
        *(f"eval/{sampler}/{name}" for sampler in samplers for name in plain),
        *_toy(config),
        *(
            f"{group}/{sampler}/{name}"
            for group in quality_groups(config)
            for sampler in [*samplers, "floor"]
            for name in QUALITY
        ),
    ]


def _toy(config: dict[str, Any]) -> list[str]:
    """Errors against the exact solution, which the unconditional toy has."""
    if config["data"]["_target_"] != "scm.data.Bimodal" or config["model"]["num_classes"]:
        return []
    learned = "consistency" if "tangent" in config["objective"] else "denoiser"
    # an image to compare comes from samplers that draw no further noise on their way
    samplers = [name for name, sampler in config["sampler"].items() if not sampler.get("times")]
    return [f"eval/toy/{name}_rms" for name in (learned, *samplers)]


def optimized_metric(config: dict[str, Any]) -> str:
    """The tag that a sweeper optimises: the one named, or the first sampler's Frechet distance.

    The held-out loss where quality is not measured: it says little of a consistency model, whose
    target moves, but it is always there.
    """
    if config["optimized_metric"] is not None:
        return config["optimized_metric"]
    groups = quality_groups(config)
    return f"{groups[0]}/{next(iter(config['sampler']))}/{HEADLINE}" if groups else LOSS


def direction(tag: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where neither."""
    group, _, name = tag.partition("/")
    sampler, _, name = name.rpartition("/")
    if group == "eval":
        return -1 if name in ("loss", "error") or name.endswith("_rms") else 0
    if sampler == "floor":  # of real images
        return 0
    return {"+": 1, "-": -1}.get(QUALITY.get(name, "")[:1], 0)


def to_minimise(config: dict[str, Any], metrics: dict[str, float]) -> float | None:
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
