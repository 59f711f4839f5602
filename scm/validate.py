"""Is a composed configuration possible? Ranges and combinations, before building. No torch.

The schema has already refused unknown keys and wrong types. Values that only an object can judge (a
sampler's times, a model's image size) are judged when it is built.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from scm import tags
from scm.errors import UserError
from scm.files import found
from scm.runfolder import flatten

FROM_TEACHER = "teacher"  # objective.init: start from the teacher's weights
TARGET_PREFIXES = ("scm.", "torch.optim.")
TANGENT_WEIGHTINGS = {  # those whose changes_tangent is true, and their options' names
    "scm.weighting.NoPrior": "no_prior",
    "scm.weighting.SinTangent": "sin_tangent",
}
VELOCITY_SAMPLERS = ("scm.samplers.Ddim", "scm.samplers.Heun")  # those whose uses_velocity is true


@dataclass(frozen=True)
class Range:
    """What values a key may have."""

    allowed: str  # in words, for the error
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Range:
    """Whole numbers; the upper end keeps a slip of the keyboard from filling the memory."""
    return Range(f"a whole number in {low:,} ... {high:,}", lambda v: low <= v <= high)


def wholes(low: int, high: int) -> Range:
    """A list of them, not empty; its items come one by one too."""
    return Range(
        f"whole numbers in {low:,} ... {high:,}",
        lambda v: _all_in(v if isinstance(v, list) else [v], low, high),
    )


def _all_in(values: list[int], low: int, high: int) -> bool:
    return 0 < len(values) <= 64 and all(low <= value <= high for value in values)


def between(low: float, high: float, more: str = "") -> Range:
    """Numbers in which nothing overflows."""
    return Range(f"a number in [{low:g}, {high:g}]{more}", lambda v: low <= v <= high)


LAST_STEP = 99_999_999  # a checkpoint's name has eight digits
COUNT = whole(1, LAST_STEP)
WHOLE = whole(0, LAST_STEP)
WIDTH = whole(1, 2**14)
BATCH = whole(1, 2**20)
POSITIVE = Range("a finite number above 0", lambda v: 0 < v < math.inf)
AT_LEAST_0 = Range("a finite number of at least 0", lambda v: 0 <= v < math.inf)
FINITE = Range("a finite number", math.isfinite)
LOG_SIGMA = between(-50, 50, ", a natural logarithm")
SIGMA = between(1e-9, 1e9)
RHO = between(0.1, 1000)
FRACTION = between(0, 1)
IMAGE_SHAPE = Range(
    "three whole numbers in 1 ... 16,384",
    lambda v: isinstance(v, list) and len(v) == 3 and _all_in(v, 1, 2**14),
)
JUDGED = Range(
    f"0 (none) or a whole number of at least {tags.SMALLEST}",
    lambda v: v == 0 or v >= tags.SMALLEST,
)
BELOW_1 = Range("a number in [0, 1)", lambda v: 0 <= v < 1)
BETAS = Range("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v))

RANGES = {
    "seed": whole(0, 2**63 - 1),
    "data.image_shape": IMAGE_SHAPE,
    "data.num_classes": whole(1, 2**16),
    "data.train_size": whole(1, 2**32 - 1),  # idx files count no further
    "data.test_size": whole(512, 2**32 - 1),  # what an evaluation looks at
    "data.sigma_data": POSITIVE,
    "data.sigma_data_tolerance": POSITIVE,
    "data.std": POSITIVE,
    "data.mean": FINITE,
    "model.image_shape": IMAGE_SHAPE,
    "model.num_classes": whole(0, 2**16),
    "model.width": WIDTH,
    "model.embedding_width": whole(0, 2**14),
    "model.widths": wholes(1, 2**14),
    "model.blocks": wholes(1, 1000),
    "model.multipliers": wholes(1, 1000),
    "model.patch": WIDTH,
    "model.groups": WIDTH,
    "model.attention_heads": whole(0, 2**14),
    "model.time_embedding.dim": Range(
        "an even number in 2 ... 16,384", lambda v: 2 <= v <= 2**14 and v % 2 == 0
    ),
    "model.time_embedding.scale": POSITIVE,
    "model.time_embedding.max_positions": POSITIVE,
    "objective.P_mean": LOG_SIGMA,
    "objective.P_std": Range("a number in (0, 50]", lambda v: 0 < v <= 50),
    "objective.dropout": BELOW_1,
    "objective.lr": POSITIVE,
    "objective.tangent_warmup_steps": WHOLE,
    "objective.N": whole(1, 2**20),
    "objective.sigma_min": SIGMA,
    "objective.sigma_max": SIGMA,
    "objective.rho": RHO,
    "objective.tangent.c": AT_LEAST_0,
    "objective.tangent.bound": POSITIVE,
    "weighting.sigma_data": POSITIVE,
    "sampler.*.steps": whole(1, 100_000),
    "sampler.*.sigma_min": SIGMA,
    "sampler.*.sigma_max": SIGMA,
    "sampler.*.rho": RHO,
    "optimizer.lr": POSITIVE,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.betas": BETAS,
    "objective.betas": BETAS,
    "trainer.budget.steps": COUNT,
    "trainer.budget.images": whole(1, 2**63 - 1),
    "trainer.budget.minutes": POSITIVE,
    "trainer.batch_size": BATCH,
    "trainer.micro_batch_size": BATCH,
    "trainer.lr_warmup_steps": WHOLE,
    "trainer.lr_decay_fraction": FRACTION,
    "trainer.grad_clip": POSITIVE,
    "trainer.max_skipped_steps": COUNT,
    "trainer.ema_half_life_images": POSITIVE,
    "trainer.ema_rampup": POSITIVE,
    "trainer.threads": whole(1, 4096),
    "trainer.*_every": COUNT,
    "trainer.quality_images": JUDGED,
    "trainer.final_quality_images": JUDGED,
    "trainer.keep_checkpoints": COUNT,
}


def check(config: dict[str, Any]) -> None:
    """Raise UserError naming key, value and what is allowed; `config` is resolved and plain."""
    check_values(config)
    _check_copies(config)
    _check_budget(config)
    _check_compile(config["trainer"])
    _check_weighting(config)
    _check_paths(config)
    _check_samplers(config)
    _check_optimized_metric(config)
    _check_grid("objective", config["objective"])


def check_values(config: dict[str, Any]) -> None:
    """Raise UserError for a foreign target, or for the first value out of its range."""
    flat = flatten(config)
    for key in sorted(flat, key=lambda key: key.startswith("optimizer.")):  # its lr is objective.lr
        check_target(key, flat[key])
        _check_range(key, flat[key])


def check_target(key: str, value: Any) -> None:
    """A `_target_` will be called: nothing but this project's and torch's optimisers."""
    if key.rpartition(".")[2] == "_target_" and not str(value).startswith(TARGET_PREFIXES):
        allowed = " or ".join(f"{prefix}*" for prefix in TARGET_PREFIXES)
        raise UserError(f"{key}={value}: refused, a target must be {allowed}")


def _check_range(key: str, value: Any) -> None:
    for pattern, allowed in RANGES.items():
        if value is None or not fnmatchcase(key, pattern):
            continue
        try:
            holds = allowed.holds(value)
        except TypeError:  # of a type that no schema has checked: out of a checkpoint
            holds = False
        if not holds:
            raise UserError(f"{key}={value}: must be {allowed.allowed}")


COPIES = {  # what other groups take from data
    "model.image_shape": "data.image_shape",
    "model.time_embedding.sigma_data": "data.sigma_data",
    "weighting.sigma_data": "data.sigma_data",
}


def _check_copies(config: dict[str, Any]) -> None:
    flat = flatten(config)
    for key, source in COPIES.items():
        if flat[key] != flat[source]:
            raise UserError(
                f"{key}={flat[key]}: {source} is {flat[source]}, and the two must be equal; "
                f"change {source} alone"
            )


def _check_budget(config: dict[str, Any]) -> None:
    if all(limit is None for limit in config["trainer"]["budget"].values()):
        raise UserError(
            "trainer.budget: steps, images and minutes are all null, so the run would never end; "
            "set one, for example trainer.budget.steps=3000"
        )


def _check_compile(trainer: dict[str, Any]) -> None:
    if trainer["compile"] == "cuda_graphs" and trainer["micro_batch_size"] is not None:
        raise UserError(
            "trainer.compile=cuda_graphs: its graphs reuse the memory that gradients would be "
            "added up in; use trainer.compile=default, or trainer.micro_batch_size=null"
        )


def _check_weighting(config: dict[str, Any]) -> None:
    weighting, objective = config["weighting"]["_target_"], config["objective"]
    if weighting in TANGENT_WEIGHTINGS and "tangent" not in objective:
        raise UserError(
            f"weighting={TANGENT_WEIGHTINGS[weighting]}: changes the tangent, and "
            "objective=diffusion has none; use weighting=unit or weighting=inv_sigma"
        )


def _check_paths(config: dict[str, Any]) -> None:
    objective = config["objective"]
    if "teacher" in objective and not objective["teacher"] and not objective["teacher_recipe"]:
        raise UserError(
            "objective.teacher=null: objective=scd distils a diffusion model; train one with "
            "`python run.py objective=diffusion hydra.run.dir=outputs/teacher` and add "
            "objective.teacher=outputs/teacher"
        )
    for key in ("teacher", "init"):
        path = objective.get(key)
        if path and not (key == "init" and path == FROM_TEACHER) and not found(path).exists():
            raise UserError(
                f"objective.{key}={path}: no such file or folder; name a run's folder or a "
                "checkpoint file"
            )


def _check_samplers(config: dict[str, Any]) -> None:
    if not config["sampler"]:
        raise UserError("sampler: none is chosen; use for example sampler=[one_step,two_step]")
    for name, sampler in config["sampler"].items():
        check_sampler(name, sampler, config["objective"])


def _check_optimized_metric(config: dict[str, Any]) -> None:
    metric, there = tags.optimized_metric(config), tags.available(config)
    useful = [tag for tag in there if tags.direction(tag)]
    if metric not in useful:
        wrong = "neither lower nor higher is better" if metric in there else "this run has none"
        raise UserError(f"optimized_metric={metric}: {wrong}; there is: {', '.join(useful)}")


def check_sampler(name: str, sampler: dict[str, Any], objective: dict[str, Any]) -> None:
    """Raise UserError where this sampler makes no sense, or none for a model of this objective."""
    if sampler["_target_"] in VELOCITY_SAMPLERS and "tangent" in objective:
        raise UserError(
            f"sampler={name}: integrates the ODE with the network as its velocity, but this "
            "objective trains a consistency function, which is none; "
            "use sampler=[one_step,two_step]"
        )
    _check_grid(f"sampler.{name}", sampler)


def _check_grid(key: str, grid: dict[str, Any]) -> None:
    low, high = grid.get("sigma_min"), grid.get("sigma_max")
    if low is not None and high is not None and low >= high:
        raise UserError(f"{key}.sigma_min={low}: must be below {key}.sigma_max={high}")


def check_fits(theirs: dict[str, Any], mine: dict[str, Any], source: str) -> None:
    """Raise UserError where a network of config `theirs`, out of `source`, has other data."""
    for group, name in (("data", "name"), ("data", "sigma_data"), ("model", "num_classes")):
        ours, given = mine[group][name], theirs[group][name]
        if ours != given:
            raise UserError(
                f"{source}: trained with {group}.{name}={given}, this run has {ours}; "
                "make them equal"
            )


def check_velocity(theirs: dict[str, Any], source: str) -> None:
    """Raise UserError where a network of config `theirs` is none that can be distilled."""
    if "tangent" in theirs["objective"]:
        raise UserError(
            f"{source}: a consistency model, so not a velocity to distil; "
            "train one with objective=diffusion"
        )


def check_same_network(theirs: dict[str, Any], mine: dict[str, Any], source: str) -> None:
    """Weights may fit a network by their shapes alone and still mean something else in it."""
    ours, given = flatten(mine["model"], "model"), flatten(theirs["model"], "model")
    for key in sorted((ours | given).keys() - {"model.dropout"}):
        if ours.get(key) != given.get(key):
            raise UserError(
                f"{source}: its weights are of another network, with {key}={given.get(key)}, and "
                f"this run has {ours.get(key)}; make them equal, or train from scratch with "
                "objective.init=null"
            )
