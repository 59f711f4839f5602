"""Parts of a run that have a class: data, networks, samplers, optimisers; what each takes.

A part's `_target_` names the class; `targets` says for which classes a schema stands. A class from
elsewhere (a user's own module) has the schema of its place, and its further keys pass as they are.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, dataclass_transform

from scm.config.ranges import (
    allowed,
    at_least_0,
    below_1,
    between,
    finite,
    positive,
    runs_own,
    sigma,
    size,
    whole,
    wholes,
)


class Kind(Enum):
    """What a network learns: what sigma_data F, or f(x_t, t), is to become."""

    velocity = "velocity"  # dx/dt of the ODE, as a diffusion model does
    consistency = "consistency"  # the end of the ODE's trajectory
    flow_map = "flow_map"  # any later point of it


@dataclass_transform(kw_only_default=True, frozen_default=True)
@dataclass(frozen=True, kw_only=True)
class Part:
    """Something that a class builds; every schema below is a frozen dataclass as this is."""

    targets: ClassVar[tuple[str, ...]] = ()
    _target_: str
    further: dict[str, Any] = field(default_factory=dict)  # of a class from elsewhere

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


# ---------------------------------------------------------------- data


class Data(Part):
    """What every data set has."""

    name: str
    image_shape: list[int] = wholes(1, 2**14, count=3)  # (channels, height, width)
    sigma_data: float = positive()
    sigma_data_tolerance: float = positive()  # relative
    teacher: str | None = runs_own()  # the weights of a diffusion model of these data


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a data set."""

    file: str  # name in the folder; of an idx file without .gz
    sha256: str | None  # of the raw contents


class IdxData(Data):
    """What sets that are made of MNIST's four files have."""

    root: str
    num_classes: int = whole(1, 2**16)
    train_size: int = whole(1, 2**32 - 1)  # idx files count no further
    test_size: int = whole(512, 2**32 - 1)  # what an evaluation looks at
    train_images: DataFile
    train_labels: DataFile
    test_images: DataFile
    test_labels: DataFile
    remedy: str


class IdxImages(IdxData):
    """mnist, fashion_mnist."""

    targets = ("scm.data.images.IdxImages",)
    torchvision: str | None
    download: bool


class ColorMnist(IdxData):
    """color_mnist."""

    targets = ("scm.data.color_mnist.ColorMnist",)
    pad: int = whole(0, 1024)
    colour_seed: int = whole(0, 2**63 - 1)
    contrast: float = between(0, 441)  # the cube's diagonal is 441.7


class ImageFolder(Data):
    """image_folder."""

    targets = ("scm.data.image_folder.ImageFolder",)
    root: str | None
    held_out: float = allowed("a number between 0 and 1", lambda v: 0 < v < 1)
    skip_damaged: bool
    horizontal_flips: bool
    remedy: str


class Cifar10(Data):
    """cifar10."""

    targets = ("scm.data.cifar.Cifar10",)
    root: str
    archive: DataFile
    num_classes: int = whole(1, 2**16)
    horizontal_flips: bool
    download: bool
    remedy: str


class Bimodal(Data):
    """The toy."""

    targets = ("scm.data.bimodal.Bimodal",)
    mean: float = finite()
    std: float = positive()


# ---------------------------------------------------------------- networks


class TimeEmbedding(Part):
    """What every time embedding has."""

    dim: int = allowed("an even number in 2 ... 16,384", lambda v: 2 <= v <= 2**14 and v % 2 == 0)
    c_noise: str


class Positional(TimeEmbedding):
    """positional."""

    targets = ("scm.nets.embedding.Positional",)
    max_positions: float = positive()


class Fourier(TimeEmbedding):
    """fourier."""

    targets = ("scm.nets.embedding.Fourier",)
    scale: float = positive()


class Model(Part):
    """What every network has."""

    time_embedding: TimeEmbedding
    dropout: float = below_1()
    num_classes: int = whole(0, 2**16)
    embedding_width: int = whole(0, 2**14)
    norm: str
    second_time: bool = False  # files of before have none


class UNet(Model):
    """unet, unet_small, unet_attention."""

    targets = ("scm.nets.unet.UNet",)
    patch: int = size()
    widths: list[int] = wholes(1, 2**14)
    blocks: list[int] = wholes(1, 1000)
    attention_heads: int = whole(0, 2**14)


class Mobile(Model):
    """unet_mobile."""

    targets = ("scm.nets.mobile.Mobile",)
    width: int = size()
    multipliers: list[int] = wholes(1, 1000)
    groups: int = size()


class DiT(Model):
    """dit."""

    targets = ("scm.nets.dit.DiT",)
    patch: int = size()
    width: int = size()
    blocks: int = size(1000)
    attention_heads: int = size()
    expansion: int = size(1000)


class MLP(Model):
    """mlp."""

    targets = ("scm.nets.mlp.MLP",)
    width: int = size()
    blocks: int = size(1000)


# ---------------------------------------------------------------- loggers


class Board(Part):
    """What every logger has."""

    package: ClassVar[str] = ""  # that it needs beside this project's own


class OwnBoard(Board):
    """tensorboard, csv."""

    targets = ("scm.storage.boards.TensorBoard", "scm.storage.boards.Csv")


class Wandb(Board):
    """wandb."""

    targets = ("scm.storage.boards.Wandb",)
    package = "wandb"
    project: str
    mode: str = allowed(
        "offline, online or disabled", lambda v: v in ("offline", "online", "disabled")
    )


class Mlflow(Board):
    """mlflow."""

    targets = ("scm.storage.boards.Mlflow",)
    package = "mlflow"
    experiment: str
    uri: str
    artifacts: str


# ---------------------------------------------------------------- samplers, optimisers


class Sampler(Part):
    """What every sampler has."""

    suits: ClassVar[frozenset[Kind]] = frozenset(Kind)  # the models that it makes sense for
    sigma_max: float = sigma()


class ConsistencySteps(Sampler):
    """one_step, two_step, three_step, multi_step: also of a diffusion model, whose f is blurred."""

    targets = ("scm.method.samplers.ConsistencySteps",)
    times: list[float]


class FlowSteps(Sampler):
    """flow_two_step, flow_four_step."""

    targets = ("scm.method.samplers.FlowSteps",)
    suits = frozenset({Kind.flow_map})
    times: list[float]
    gamma: float = between(0, 1)  # noise of a step


class Ode(Sampler):
    """ddim, heun."""

    targets = ("scm.method.samplers.Ddim", "scm.method.samplers.Heun")
    suits = frozenset({Kind.velocity})
    steps: int = whole(1, 100_000)
    sigma_min: float = sigma()
    rho: float = between(0.1, 1000)


class Optimizer(Part):
    """radam, and what all optimisers have."""

    targets = ("torch.optim.RAdam",)
    lr: float = positive()  # the schedule's peak
    betas: list[float] = allowed(
        "two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v)
    )
    eps: float = positive()
    weight_decay: float = at_least_0()


class FusedOptimizer(Optimizer):
    """adamw."""

    targets = ("torch.optim.AdamW",)
    fused: bool


class MomentumOptimizer(Optimizer):
    """muon."""

    targets = ("scm.training.muon.Muon",)
    momentum: float = below_1()
