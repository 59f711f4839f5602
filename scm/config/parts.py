"""The parts of a run that have a class: what each takes, and what a config alone tells of it.

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


class Form(Enum):
    """How dF/dt is computed: one pass that carries it, or torch.func.jvp beside the pass."""

    dual = "dual"
    split = "split"


class Norm(Enum):
    """How long a tangent is: `l2` as in the paper, or `rms` = l2 / sqrt(D), alike at any size."""

    rms = "rms"
    l2 = "l2"


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
class IdxFile:
    """One idx file."""

    file: str  # name in the folder, without .gz
    sha256: str | None  # of the raw contents


class IdxImages(Data):
    """mnist, fashion_mnist."""

    targets = ("scm.data.images.IdxImages",)
    root: str
    num_classes: int = whole(1, 2**16)
    train_size: int = whole(1, 2**32 - 1)  # idx files count no further
    test_size: int = whole(512, 2**32 - 1)  # what an evaluation looks at
    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile
    torchvision: str | None
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


class MLP(Model):
    """mlp."""

    targets = ("scm.nets.mlp.MLP",)
    width: int = size()
    blocks: int = size(1000)


# ---------------------------------------------------------------- objectives


class Velocity(Part):
    """pair: of one data and noise pair."""

    targets = ("scm.method.velocity.Pair",)
    needs_teacher: ClassVar[bool] = False


class OwnVelocity(Velocity):
    """own: of the network's own diagonal."""

    targets = ("scm.method.velocity.Own",)


class TeacherVelocity(Velocity):
    """teacher: of a diffusion model."""

    targets = ("scm.method.velocity.Teacher",)
    needs_teacher: ClassVar[bool] = True


class Times(Part):
    """log_normal."""

    targets = ("scm.method.times.LogNormal",)
    P_mean: float = between(-50, 50)  # of ln(sigma)
    P_std: float = allowed("a number in (0, 50]", lambda v: 0 < v <= 50)


class AnyPair(Times):
    """any_pair."""

    targets = ("scm.method.times.AnyPair",)
    diagonal: float = between(0, 1)  # share with s = t
    to_data: float = between(0, 1)  # share with s = 0


class Derivative(Part):
    """How df/dt is found."""


class Jvp(Derivative):
    """jvp: in continuous time."""

    targets = ("scm.method.derivative.Jvp",)
    form: Form


class Difference(Derivative):
    """difference: over one of N intervals."""

    targets = ("scm.method.derivative.Difference",)
    N: int = whole(1, 2**20)
    sigma_min: float = sigma()
    sigma_max: float = sigma()
    rho: float = between(0.1, 1000)


class Tangent(Part):
    """none: g as it is."""

    targets = ("scm.method.tangent.Raw",)


class Normalize(Tangent):
    """normalize: g / (||g|| + c)."""

    targets = ("scm.method.tangent.Normalize",)
    c: float = at_least_0()
    norm: Norm


class Clip(Tangent):
    """clip: g in [-bound, bound]."""

    targets = ("scm.method.tangent.Clip",)
    bound: float = positive()


class Objective(Part):
    """What every objective has."""

    has_tangent: ClassVar[bool | None] = None  # None: only the class from elsewhere knows
    name: str = runs_own()
    learns: Kind = runs_own()
    adaptive_weight: bool
    velocity: Velocity
    times: Times
    init: str | None = runs_own()  # whose weights to start from: a path, or `teacher`
    teacher: str | None = runs_own()  # a diffusion run's folder or weights
    teacher_recipe: str | None = runs_own()  # or an experiment to run first
    teacher_overrides: list[str] = runs_own()


class Regression(Objective):
    """diffusion."""

    targets = ("scm.method.objective.Regression",)
    has_tangent: ClassVar[bool | None] = False


class Eulerian(Objective):
    """sct, scd, discrete_ct, discrete_cd."""

    targets = ("scm.method.objective.Eulerian",)
    has_tangent: ClassVar[bool | None] = True
    derivative: Derivative
    tangent: Tangent
    tangent_warmup_steps: int = whole(0, 99_999_999)


class Lagrangian(Objective):
    """lsd, lmd."""

    targets = ("scm.method.objective.Lagrangian",)
    has_tangent: ClassVar[bool | None] = True
    form: Form
    tangent: Tangent
    tangent_warmup_steps: int = whole(0, 99_999_999)


class Semigroup(Objective):
    """psd."""

    targets = ("scm.method.objective.Semigroup",)
    has_tangent: ClassVar[bool | None] = False


class Weighting(Part):
    """unit, inv_sigma: a factor of the squared error."""

    targets = ("scm.method.weighting.Unit", "scm.method.weighting.InverseSigma")
    changes_tangent: ClassVar[bool] = False


class TangentWeighting(Weighting):
    """no_prior, sin_tangent: a factor of the tangent."""

    targets = ("scm.method.weighting.NoPrior", "scm.method.weighting.SinTangent")
    changes_tangent: ClassVar[bool] = True


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
