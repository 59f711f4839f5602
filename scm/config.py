"""The schema of conf/: names and types, no values and no torch.

Every field is MISSING here: a value stands once, in yaml, with its source. Group options name their
schema first (`defaults: [schema_..., _self_]`), so an unknown key or a wrong type fails at once.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING


class Jvp(Enum):
    """How dF/dt is computed: one pass that carries it, or torch.func.jvp beside the pass."""

    dual = "dual"
    split = "split"


class Norm(Enum):
    """How long a tangent is: `l2` as in the paper, or `rms` = l2 / sqrt(D), alike at any size."""

    rms = "rms"
    l2 = "l2"


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


@dataclass
class Targeted:
    """A group whose option names the class it builds."""

    _target_: str = MISSING


@dataclass
class DataConfig(Targeted):
    """What every data set has."""

    name: str = MISSING
    image_shape: list[int] = MISSING  # (channels, height, width)
    sigma_data: float = MISSING
    sigma_data_tolerance: float = MISSING  # relative
    teacher: str | None = MISSING  # the weights of a diffusion model of these data


@dataclass
class IdxFileConfig:
    """One idx file."""

    file: str = MISSING  # name in the folder, without .gz
    sha256: str | None = MISSING  # of the raw contents


@dataclass
class IdxImagesConfig(DataConfig):
    """mnist, fashion_mnist."""

    root: str = MISSING
    num_classes: int = MISSING
    train_size: int = MISSING
    test_size: int = MISSING
    train_images: IdxFileConfig = MISSING
    train_labels: IdxFileConfig = MISSING
    test_images: IdxFileConfig = MISSING
    test_labels: IdxFileConfig = MISSING
    torchvision: str | None = MISSING
    download: bool = MISSING
    remedy: str = MISSING


@dataclass
class BimodalConfig(DataConfig):
    """The toy."""

    mean: float = MISSING
    std: float = MISSING


@dataclass
class TimeEmbeddingConfig(Targeted):
    """What every time embedding has."""

    dim: int = MISSING
    c_noise: str = MISSING
    sigma_data: float = MISSING


@dataclass
class PositionalConfig(TimeEmbeddingConfig):
    """positional."""

    max_positions: float = MISSING


@dataclass
class FourierConfig(TimeEmbeddingConfig):
    """fourier."""

    scale: float = MISSING


@dataclass
class ModelConfig(Targeted):
    """What every network has."""

    time_embedding: TimeEmbeddingConfig = MISSING
    image_shape: list[int] = MISSING
    dropout: float = MISSING
    num_classes: int = MISSING
    embedding_width: int = MISSING
    norm: str = MISSING


@dataclass
class UNetConfig(ModelConfig):
    """unet, unet_small, unet_attention."""

    patch: int = MISSING
    widths: list[int] = MISSING
    blocks: list[int] = MISSING
    attention_heads: int = MISSING


@dataclass
class MobileConfig(ModelConfig):
    """unet_mobile."""

    width: int = MISSING
    multipliers: list[int] = MISSING
    groups: int = MISSING


@dataclass
class MLPConfig(ModelConfig):
    """mlp."""

    width: int = MISSING
    blocks: int = MISSING


@dataclass
class TangentConfig(Targeted):
    """What is done to g: `raw` needs nothing."""


@dataclass
class NormalizeConfig(TangentConfig):
    """g / (||g|| + c)."""

    c: float = MISSING
    norm: Norm = MISSING


@dataclass
class ClipConfig(TangentConfig):
    """g in [-bound, bound]."""

    bound: float = MISSING


@dataclass
class ObjectiveConfig(Targeted):
    """diffusion, and what all objectives have."""

    P_mean: float = MISSING
    P_std: float = MISSING
    adaptive_weight: bool = MISSING
    dropout: float = MISSING  # the network's
    lr: float = MISSING  # the optimiser's peak rate, which depends on the objective
    betas: list[float] = MISSING  # and its decay rates


@dataclass
class ConsistencyConfig(ObjectiveConfig):
    """What all consistency objectives have."""

    tangent: TangentConfig = MISSING
    tangent_warmup_steps: int = MISSING
    init: str | None = MISSING  # a path whose EMA weights to start from


@dataclass
class DistillationConfig(ConsistencyConfig):
    """What both distillations have. `init` may be `teacher`."""

    teacher: str | None = MISSING
    teacher_recipe: str | None = MISSING
    teacher_overrides: list[str] = MISSING


@dataclass
class SCTConfig(ConsistencyConfig):
    """sct."""

    jvp: Jvp = MISSING


@dataclass
class SCDConfig(DistillationConfig):
    """scd."""

    jvp: Jvp = MISSING


@dataclass
class DiscreteCTConfig(ConsistencyConfig):
    """discrete_ct."""

    N: int = MISSING
    sigma_min: float = MISSING
    sigma_max: float = MISSING
    rho: float = MISSING


@dataclass
class DiscreteCDConfig(DistillationConfig):
    """discrete_cd."""

    N: int = MISSING
    sigma_min: float = MISSING
    sigma_max: float = MISSING
    rho: float = MISSING


@dataclass
class WeightingConfig(Targeted):
    """unit, inv_sigma, no_prior, sin_tangent."""

    sigma_data: float = MISSING


@dataclass
class SamplerConfig(Targeted):
    """What every sampler has."""

    sigma_max: float = MISSING


@dataclass
class ConsistencyStepsConfig(SamplerConfig):
    """one_step, two_step, multi_step."""

    times: list[float] = MISSING


@dataclass
class OdeConfig(SamplerConfig):
    """ddim, heun."""

    steps: int = MISSING
    sigma_min: float = MISSING
    rho: float = MISSING


@dataclass
class OptimizerConfig(Targeted):
    """radam, and what all optimisers have."""

    lr: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING


@dataclass
class FusedOptimizerConfig(OptimizerConfig):
    """adamw."""

    fused: bool = MISSING


@dataclass
class BudgetConfig:
    """When a run ends: whichever is reached first; null does not count."""

    steps: int | None = MISSING
    images: int | None = MISSING
    minutes: float | None = MISSING  # of training, without evaluation


@dataclass
class TrainerConfig:
    """The loop's settings."""

    budget: BudgetConfig = MISSING
    batch_size: int = MISSING
    micro_batch_size: int | None = MISSING
    lr_warmup_steps: int = MISSING
    lr_decay_fraction: float = MISSING
    grad_clip: float | None = MISSING
    max_skipped_steps: int = MISSING
    ema_half_life_images: float = MISSING
    ema_rampup: float | None = MISSING
    precision: Precision = MISSING
    compile: Compile | None = MISSING
    device: Device = MISSING
    deterministic: bool = MISSING
    threads: int | None = MISSING
    log_every: int = MISSING
    evaluate_every: int = MISSING
    quality_images: int = MISSING
    final_quality_images: int = MISSING
    save_every: int = MISSING
    keep_checkpoints: int = MISSING


@dataclass
class Config:
    """A run."""

    data: DataConfig = MISSING
    model: ModelConfig = MISSING
    sampler: dict[str, SamplerConfig] = field(default_factory=dict)
    weighting: WeightingConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    objective: ObjectiveConfig = MISSING
    seed: int = MISSING
    optimized_metric: str | None = MISSING


SCHEMAS: dict[tuple[str | None, str], type] = {
    (None, "schema"): Config,
    ("data", "schema_idx"): IdxImagesConfig,
    ("data", "schema_bimodal"): BimodalConfig,
    ("model", "schema_unet"): UNetConfig,
    ("model", "schema_mobile"): MobileConfig,
    ("model", "schema_mlp"): MLPConfig,
    ("model/time_embedding", "schema_positional"): PositionalConfig,
    ("model/time_embedding", "schema_fourier"): FourierConfig,
    ("objective", "schema_diffusion"): ObjectiveConfig,
    ("objective", "schema_sct"): SCTConfig,
    ("objective", "schema_scd"): SCDConfig,
    ("objective", "schema_discrete_ct"): DiscreteCTConfig,
    ("objective", "schema_discrete_cd"): DiscreteCDConfig,
    ("objective/tangent", "schema_normalize"): NormalizeConfig,
    ("objective/tangent", "schema_clip"): ClipConfig,
    ("objective/tangent", "schema_raw"): TangentConfig,
    ("weighting", "schema_weighting"): WeightingConfig,
    ("sampler", "schema_consistency"): ConsistencyStepsConfig,
    ("sampler", "schema_ode"): OdeConfig,
    ("optimizer", "schema_radam"): OptimizerConfig,
    ("optimizer", "schema_adamw"): FusedOptimizerConfig,
    ("trainer", "schema_trainer"): TrainerConfig,
}
