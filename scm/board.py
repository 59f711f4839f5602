"""What TensorBoard is told beside scalars: a run's row of settings, a sweep's columns and charts.

No torch before something is written; knows nothing of training.
"""

from collections.abc import Collection, Sequence
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


def layout(samplers: Sequence[str], tags: Collection[str]) -> dict[str, dict[str, list[Any]]]:
    """The Custom Scalars page: quality by sampler, a line per run; tangents, the toy's errors.

    Charts of `tags` alone, since one without a line would show an empty frame.
    """
    groups = {
        sampler: {
            name.replace("_", " "): ["Multiline", [f"^quality/{sampler}/{name}$"]]
            for name in CHARTS
            if f"quality/{sampler}/{name}" in tags
        }
        for sampler in samplers
    }
    groups["tangent"] = {"RMS of g": ["Multiline", ["^tangent/rms$"]]}
    if any(tag.startswith("eval/toy/") for tag in tags):
        groups["toy"] = {"errors": ["Multiline", ["^eval/toy/.*_rms$"]]}
    return {title: charts for title, charts in groups.items() if charts}


def describe(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    metrics: dict[str, str],
    charts: dict[str, dict[str, list[Any]]],
) -> None:
    """Write a sweep's own event file: the runs' `hparams`, metrics (tag: shown name), charts.

    It replaces an earlier one. What differs between runs comes first. The hyperparameters have no
    domains: those of the first sweep below a log folder would hide all other runs.
    """
    from tensorboard.plugins.hparams import plugin_data_pb2, summary_v2
    from torch.utils.tensorboard import SummaryWriter

    for earlier in folder.glob("events.out.tfevents.*"):
        earlier.unlink()
    experiment = summary_v2.hparams_config_pb(
        hparams=[summary_v2.HParam(n, display_name=n.replace("_", " ")) for n in rows[0]],
        metrics=[summary_v2.Metric(tag, display_name=shown) for tag, shown in metrics.items()],
    )
    plugin_data = experiment.value[0].metadata.plugin_data
    content = plugin_data_pb2.HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = len({row[info.name] for row in rows}) > 1
    plugin_data.content = content.SerializeToString()
    board = SummaryWriter(str(folder))
    board._get_file_writer().add_summary(experiment)
    board.add_custom_scalars(charts)
    board.close()
