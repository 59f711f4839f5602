"""Parts of an objective, and objectives made of them: what each takes, and what it learns."""

from enum import Enum
from typing import ClassVar

from scm.config.parts import Kind, Optimizer, Part
from scm.config.ranges import allowed, at_least_0, between, positive, runs_own, sigma, whole


class Form(Enum):
    """How dF/dt is computed: one pass that carries it, or torch.func.jvp beside the pass."""

    dual = "dual"
    split = "split"


class Norm(Enum):
    """How long a tangent is: `l2` as in the paper, or `rms` = l2 / sqrt(D), alike at any size."""

    rms = "rms"
    l2 = "l2"


class Rule(Enum):
    """Which difference stands for g: of Lu & Song 2025 (Algorithm 2), or of Song et al. 2023."""

    lu_song = "lu_song"
    song = "song"


class Velocity(Part):
    """pair: of one data and noise pair."""

    targets = ("scm.method.velocity.Pair",)
    needs_teacher: ClassVar[bool] = False
    maps: ClassVar[bool] = False  # whether only a flow map has it
    exact: ClassVar[bool] = False  # whether data have it that are known in closed form
    anywhere: ClassVar[bool] = False  # whether it is known off the pair's own line


class DataMeanVelocity(Velocity):
    """data_mean: the pair's mean over the training set."""

    targets = ("scm.method.velocity.DataMean",)
    sigma_min: float = sigma()
    points: int | None = whole(1, 2**32 - 1)


class OwnVelocity(Velocity):
    """own: of the network's own diagonal."""

    targets = ("scm.method.velocity.Own",)
    maps: ClassVar[bool] = True
    anywhere: ClassVar[bool] = True


class TeacherVelocity(Velocity):
    """teacher: of a diffusion model."""

    targets = ("scm.method.velocity.Teacher",)
    needs_teacher: ClassVar[bool] = True
    anywhere: ClassVar[bool] = True


class GuidedTeacherVelocity(TeacherVelocity):
    """guided: of a diffusion model, moved away from a weaker one's."""

    targets = ("scm.method.velocity.GuidedTeacher",)
    guide: str
    guidance: float = between(0, 100)
    below: float | None = positive()


class ExactVelocity(Velocity):
    """exact: the closed form of the toy."""

    targets = ("scm.method.velocity.Exact",)
    exact: ClassVar[bool] = True
    anywhere: ClassVar[bool] = True


class Times(Part):
    """log_normal."""

    targets = ("scm.method.times.LogNormal",)
    pairs: ClassVar[bool | None] = False  # whether a second time is drawn; None: not known
    P_mean: float = between(-50, 50)  # of ln(sigma)
    P_std: float = allowed("a number in (0, 50]", lambda v: 0 < v <= 50)


class AnyPair(Times):
    """any_pair."""

    targets = ("scm.method.times.AnyPair",)
    pairs: ClassVar[bool | None] = True
    diagonal: float = between(0, 1)  # share with s = t
    to_data: float = between(0, 1)  # share with s = 0


class TwoLogNormals(Times):
    """two_log_normals."""

    targets = ("scm.method.times.TwoLogNormals",)
    pairs: ClassVar[bool | None] = True
    diagonal: float = between(0, 1)  # share with s = t
    second_P_mean: float = between(-50, 50)
    second_P_std: float = allowed("a number in (0, 50]", lambda v: 0 < v <= 50)


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
    rule: Rule
    sigma_min: float = sigma()
    sigma_max: float = sigma()
    rho: float = between(0.1, 1000)


class Shrinking(Derivative):
    """shrinking: over an interval that halves."""

    targets = ("scm.method.derivative.Shrinking",)
    first: float = between(0, 1)
    last: float = between(0, 1)
    halving_steps: int = whole(1, 99_999_999)
    k: float = at_least_0()
    b: float = at_least_0()


class Annealed(Derivative):
    """annealed: from the whole way to the JVP."""

    targets = ("scm.method.derivative.Annealed",)
    steps: int = whole(1, 99_999_999)
    sharpness: float = between(0.1, 1000)
    clamp: float = between(0.0001, 0.5)
    form: Form


class Tangent(Part):
    """none: g as it is."""

    targets = ("scm.method.tangent.Raw",)


class Normalize(Tangent):
    """normalize: g / (||g|| + c)."""

    targets = ("scm.method.tangent.Normalize",)
    c: float = at_least_0()
    norm: Norm


class Power(Tangent):
    """power: g / (||g||^2 + c)^p."""

    targets = ("scm.method.tangent.Power",)
    p: float = between(0, 1)
    c: float = positive()
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
    """sct, scd, discrete_ct, discrete_cd, ect, meanflow, improved_meanflow, alpha_flow, and
    align_your_flow.
    """

    targets = ("scm.method.objective.Eulerian",)
    has_tangent: ClassVar[bool | None] = True
    derivative: Derivative
    direction: Velocity | None = None  # of the JVP, where it is not the velocity's
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


class Endpoint(Objective):
    """cmt."""

    targets = ("scm.method.objective.Endpoint",)
    has_tangent: ClassVar[bool | None] = False
    steps: int = whole(2, 1000)


class Matching(Part):
    """dmd: beside an objective, samples of the network's own are matched with the data."""

    targets = ("scm.method.matching.Dmd",)
    weight: float = positive()
    score_steps: int = whole(1, 100)
    calls_at: list[float]
    sigma_max: float = sigma()
    velocity: Velocity
    times: Times
    optimizer: Optimizer = runs_own()  # of the score network


class Weighting(Part):
    """unit, inv_sigma: a factor of the squared error."""

    targets = ("scm.method.weighting.Unit", "scm.method.weighting.InverseSigma")
    changes_tangent: ClassVar[bool] = False


class TangentWeighting(Weighting):
    """no_prior, sin_tangent: a factor of the tangent."""

    targets = ("scm.method.weighting.NoPrior", "scm.method.weighting.SinTangent")
    changes_tangent: ClassVar[bool] = True
