"""What TensorBoard is told beside scalars: a run's row of settings, a sweep's columns and charts.

No torch before something is written; knows nothing of training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Flat = dict[str, Any]  # a config by dotted keys
CHARTS = ("frechet_distance", "kid", "precision", "recall", "coverage")


def hparams(config: Flat) -> dict[str, Any]:
    """A run's row on the HParams page: the same keys and types in every run, never None.

    What the config of another version lacks is empty or 0.
    """
    return {
        "objective": _name(config, "objective"),
        "N": config.get("objective.N", 0),  # 0: continuous time
        "weighting": _name(config, "weighting"),
        "adaptive_weight": config.get("objective.adaptive_weight", False),
        "tangent": _name(config, "objective.tangent"),
        "tangent_warmup_steps": config.get("objective.tangent_warmup_steps", 0),
        "from_scratch": config.get("objective.init") is None,
        "model": _name(config, "model"),
        "norm": config.get("model.norm", ""),
        "time_embedding": _name(config, "model.time_embedding"),
        "embedding_scale": float(config.get("model.time_embedding.scale", 0)),
        "c_noise": config.get("model.time_embedding.c_noise", ""),
        "optimizer": _name(config, "optimizer"),
        "lr": config.get("optimizer.lr", 0.0),
        "batch_size": config.get("trainer.batch_size", 0),
        "P_mean": config.get("objective.P_mean", 0.0),
        "P_std": config.get("objective.P_std", 0.0),
        "seed": config.get("seed", 0),
    }


def _name(config: Flat, key: str) -> str:
    return str(config.get(f"{key}._target_", "none")).rpartition(".")[2]


def layout(samplers: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """The Custom Scalars page: quality by sampler, a line per run; tangents, the toy's errors."""
    charts = {
        sampler: {
            name.replace("_", " "): ["Multiline", [f"^quality/{sampler}/{name}$"]]
            for name in CHARTS
        }
        for sampler in samplers
    }
    return {
        **charts,
        "tangent": {"RMS of g": ["Multiline", ["^tangent/rms$"]]},
        "toy": {"errors": ["Multiline", ["^eval/toy/.*_rms$"]]},
    }


def describe(
    folder: Path, names: Sequence[str], metrics: dict[str, str], samplers: Sequence[str]
) -> None:
    """Write a sweep's own event file: hyperparameters, metrics (tag: shown name), charts.

    It replaces an earlier one. The hyperparameters have no domains: those of the first sweep below
    a log folder would hide all other runs.
    """
    from tensorboard.plugins.hparams import summary_v2
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    experiment = summary_v2.hparams_config_pb(
        hparams=[summary_v2.HParam(n, display_name=n.replace("_", " ")) for n in names],
        metrics=[summary_v2.Metric(tag, display_name=shown) for tag, shown in metrics.items()],
    )
    board = SummaryWriter(str(folder))
    board._get_file_writer().add_summary(experiment)
    board.add_custom_scalars(layout(samplers))
    board.close()
