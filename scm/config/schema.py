"""A run's configuration as frozen dataclasses: names, types, ranges; no values and no torch.

A value stands once, in yaml, with its source. What has a `_target_` is a part (`scm.config.parts`).
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from scm.config.methods import Matching, Objective, Velocity, Weighting
from scm.config.parts import Board, Data, Kind, Model, Optimizer, Sampler
from scm.config.ranges import (
    between,
    count,
    judged,
    positive,
    size,
    whole,
)


class Precision(Enum):
    """What the network's inner layers compute in; times, tangents' coefficients are float32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Compile(Enum):
    """How training's passes through the network are compiled; the value is torch's name."""

    default = "default"
    cuda_graphs = "reduce-overhead"


class Device(Enum):
    """Where to train; `auto` takes the first of cuda, mps, cpu that is there."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a run ends: whichever is reached first; null does not count."""

    steps: int | None = count()
    images: int | None = whole(1, 2**63 - 1)
    minutes: float | None = positive()  # of training, without evaluation


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The loop's settings."""

    budget: Budget
    batch_size: int = size(2**20)
    micro_batch_size: int | None = size(2**20)
    lr_warmup_steps: int = whole(0, 99_999_999)
    lr_decay_fraction: float = between(0, 1)
    grad_clip: float | None = positive()
    max_skipped_steps: int = count()
    ema_sigma_rel: float = between(0.001, 0.28)
    precision: Precision
    compile: Compile | None
    device: Device
    deterministic: bool
    threads: int | None = whole(1, 4096)
    log_every: int = count()
    evaluate_every: int = count()
    quality_images: int = judged()
    final_quality_images: int = judged()
    save_every: int = count()
    keep_checkpoints: int = count()
    branch: str | None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    data: Data
    model: Model
    sampler: dict[str, Sampler] = field(default_factory=dict)
    weighting: Weighting
    optimizer: Optimizer
    trainer: Trainer
    objective: Objective
    matching: Matching | None = None
    logger: dict[str, Board] = field(default_factory=dict)
    seed: int = whole(0, 2**63 - 1)
    optimized_metric: str | None


@dataclass(frozen=True, kw_only=True)
class LearnedFacts:
    """What is to be known of the objective that a network was trained with."""

    others_too: ClassVar[bool] = True
    name: str
    learns: Kind
    velocity: Velocity
    teacher: str | None
    teacher_recipe: str | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is to be known of a trained network: a part of its run's config, beside its weights."""

    others_too: ClassVar[bool] = True
    data: Data
    model: Model
    sampler: dict[str, Sampler]
    objective: LearnedFacts
