"""From a composed config to objects: networks out of runs, and all that a run needs.

Configs are plain resolved dicts here, whether they come from Hydra or out of a checkpoint.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from torch import nn

from scm import checkpoint, distributed, features, rng, runtime, tags, validate
from scm.config import TrainerConfig
from scm.construct import construct
from scm.data import Dataset, IdxImages
from scm.errors import UserError
from scm.evaluator import Evaluator
from scm.experiment import Experiment
from scm.files import found
from scm.judge import Judge
from scm.objectives import Objective
from scm.quality import Quality, quality_of
from scm.runfolder import RunFolder, Status, flatten
from scm.samplers import Sampler

WEIGHTS_SHA256 = "weights_sha256"
NOT_ARGUMENTS = (  # keys of the objective group that its class does not take
    "lr",
    "betas",
    "dropout",
    "init",
    "teacher",
    "teacher_recipe",
    "teacher_overrides",
)

NOT_WHOLE = (KeyError, TypeError, AttributeError, InstantiationException)  # of a file's config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A network out of a run, with the config that made it."""

    net: nn.Module  # EMA weights, eval mode, without gradients
    config: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.config["data"]["image_shape"]
        return channels, height, width

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation in the run."""
        return self.config["data"]["sigma_data"]


def dataset(config: dict[str, Any]) -> Dataset:
    """The data set that the `data` group says."""
    return construct(Dataset, "data", {key: v for key, v in config.items() if key != "teacher"})


def stored_dataset(config: dict[str, Any], path: str | Path) -> Dataset:
    """The data set of a config that came with the file `path`; nothing is downloaded for it.

    Raises UserError where the config has no such group, or the data are not here.
    """
    data = config["data"]
    try:
        return dataset({**data, "download": False} if "download" in data else data)
    except NOT_WHOLE as error:
        raise _no_config(path, error) from error


def network(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A new network as the `model` group says, its inner layers computing in `dtype`."""
    net = construct(nn.Module, "model", config["model"])
    net.compute_dtype = dtype  # type: ignore[assignment]
    return net.to(device).to(memory_format=torch.channels_last)


def trained_network(path: str | Path, device: torch.device, dtype: torch.dtype) -> Trained:
    """The EMA network of a run folder, a checkpoint or a safetensors file.

    Raises UserError where there is none, or where it is damaged or does not fit its own config.
    """
    weights, config = checkpoint.read_weights(Path(path))
    try:
        check_stored(config)
        with torch.device("meta"):  # takes no memory, whatever size the config claims
            _refuse_misfit(construct(nn.Module, "model", config["model"]), weights, str(path))
        net = network(config, device, dtype)
    except UserError as error:
        named = str(error).startswith(str(path))
        raise UserError(str(error) if named else f"{path}: {error}") from error
    except NOT_WHOLE as error:
        raise _no_config(path, error) from error
    load_weights(net, weights, str(path))
    return Trained(net.eval().requires_grad_(False), config)


def check_stored(config: dict[str, Any]) -> None:
    """Raise UserError, or one of `NOT_WHOLE`, where a file's config is not whole.

    Its values are in their ranges afterwards, and those used by themselves are of their types.
    """
    groups = ("data", "model", "objective", "sampler")
    validate.check_values({group: config[group] for group in groups})
    data, objective = config["data"], config["objective"]
    numbers = [data["sigma_data"], *data["image_shape"], config["model"]["num_classes"]]
    texts = [data["name"], data["_target_"], objective["_target_"]]
    texts += [sampler["_target_"] for sampler in config["sampler"].values()]
    texts += [path for key in ("teacher", "init") if (path := objective.get(key)) is not None]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"no numbers: {numbers}")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"no names: {texts}")


def _no_config(path: str | Path, error: Exception) -> UserError:
    return UserError(f"{path}: holds no config of this project ({_first_line(error)})")


def load_weights(net: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Copy weights into a network; UserError, naming the first misfit, where they do not fit."""
    _refuse_misfit(net, weights, source)
    net.load_state_dict(weights)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _refuse_misfit(net: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    mine = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    misfits = [k for k in sorted(mine | theirs) if mine.get(k) != theirs.get(k)]
    if misfits:
        name = misfits[0]
        raise UserError(
            f"{source}: its weights are of another network: {name} is {theirs.get(name)} there and "
            f"{mine.get(name)} here; use the model group it was trained with"
        )


def sampler(config: dict[str, Any], name: str, sigma_data: float) -> Sampler:
    """The sampler that stands under sampler.NAME."""
    return construct(Sampler, f"sampler.{name}", config, sigma_data=sigma_data)


def quality(dataset: Dataset, device: torch.device) -> Quality:
    """What judges images of this data set.

    Raises UserError where its samples are no images, or its feature network is missing or damaged.
    """
    if not isinstance(dataset, IdxImages):
        raise UserError(f"data={dataset.name}: its samples are no images, so no quality metrics")
    return quality_of(dataset, features.load(tags.feature_weights(dataset.name), device))


def experiment(
    config: dict[str, Any], folder: RunFolder, *, config_text: str, teacher: str | None
) -> Experiment:
    """Build everything that a run needs; nothing is written. UserError where the parts do not fit.

    `teacher` is the path of the model to distil, for an objective that does.
    """
    trainer: TrainerConfig = OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(TrainerConfig), config["trainer"])
    )  # type: ignore[assignment]
    runtime.prepare(trainer.threads)
    device = runtime.find_device(trainer.device)
    dtype = runtime.find_dtype(trainer.precision, device)
    world = distributed.world()
    world.check(trainer.batch_size, device)
    data = dataset(config["data"]).to(device)
    torch.manual_seed(rng.derive_seed(config["seed"], "weights"))
    net = network(config, device, dtype)
    objective, sources = _objective(config, net, teacher, device, dtype)
    _check_sources(folder, sources)
    samplers = {
        name: sampler(settings, name, data.sigma_data)
        for name, settings in config["sampler"].items()
    }
    labels = config["model"]["num_classes"] > 0
    if labels and config["model"]["num_classes"] != data.num_classes:
        raise UserError(
            f"model.num_classes={config['model']['num_classes']}: {data.name} has "
            f"{data.num_classes} classes; use that number, or 0 for an unconditional model"
        )
    return Experiment(
        folder=folder,
        config=config,
        config_text=config_text,
        trainer=trainer,
        dataset=data,
        net=net,
        objective=objective,
        sources=sources,
        optimizer=construct(
            torch.optim.Optimizer, "optimizer", config["optimizer"], params=list(net.parameters())
        ),
        evaluator=Evaluator(
            objective=objective,
            dataset=data,
            samplers=samplers,
            seed=config["seed"],
            labels=labels,
            device=device,
            judge=_judge(config, data, samplers, device),
        ),
        device=device,
        dtype=dtype,
        world=world,
    )


def _judge(
    config: dict[str, Any], dataset: Dataset, samplers: dict[str, Sampler], device: torch.device
) -> Judge | None:
    """What measures the samples of the run; None where it is not to, or cannot."""
    trainer = config["trainer"]
    wanted = trainer["quality_images"] or trainer["final_quality_images"]
    if not wanted or not isinstance(dataset, IdxImages):
        return None
    if not tags.quality_groups(config):
        log.info(
            "no quality metrics: there is no feature network for %s; `%s` makes one",
            dataset.name,
            features.train_command(dataset.name),
        )
        return None
    return Judge(
        quality=quality(dataset, device),
        samplers=samplers,
        images=trainer["quality_images"],
        final_images=trainer["final_quality_images"],
        seed=config["seed"],
        num_classes=config["model"]["num_classes"],
        image_shape=dataset.image_shape,
        sigma_data=dataset.sigma_data,
        device=device,
    )


def _objective(
    config: dict[str, Any],
    net: nn.Module,
    teacher: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Objective, dict[str, dict[str, str]]]:
    """The objective with its weighting and teacher; `net` gets its starting weights.

    And where the weights of both came from, for metrics.json.
    """
    settings = config["objective"]
    parts: dict[str, Any] = {
        "weighting": construct(object, "weighting", config["weighting"]),
        "sigma_data": config["data"]["sigma_data"],
    }
    init, sources = settings.get("init"), {}
    start: Trained | None = None
    if teacher:
        distilled = velocity_model(teacher, "objective.teacher", config, device, dtype)
        parts["teacher"], sources["teacher"] = distilled.net, _source(teacher, distilled)
        if init == validate.FROM_TEACHER:
            start, init = distilled, teacher
    if init is not None and start is None:
        start = _fitting(init, "objective.init", config, device, dtype)
        sources["init"] = _source(init, start)
    if start is not None:
        key = f"objective.init={init}"
        validate.check_same_network(start.config, config, key)
        load_weights(net, start.net.state_dict(), key)
    arguments = {key: value for key, value in settings.items() if key not in NOT_ARGUMENTS}
    return construct(Objective, "objective", arguments, **parts), sources


def _source(path: str, trained: Trained) -> dict[str, str]:
    return {"path": path, WEIGHTS_SHA256: checkpoint.weights_digest(dict(trained.net.state_dict()))}


def _check_sources(folder: RunFolder, sources: dict[str, dict[str, str]]) -> None:
    """Refuse to go on with a run where other weights now stand at the path of its teacher's."""
    if not any(folder.checkpoints.glob(f"*{checkpoint.SUFFIX}")):
        return  # it begins anew
    before = flatten(folder.metrics().get("sources"))
    for key, source in sources.items():
        if before.get(f"{key}.{WEIGHTS_SHA256}", source[WEIGHTS_SHA256]) != source[WEIGHTS_SHA256]:
            raise UserError(
                f"{folder.path}: its objective.{key} at {source['path']} has other weights now "
                "than when the run began; put the former back, or begin a run in another folder"
            )


def velocity_model(
    path: str, key: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Trained:
    """A trained diffusion network for this run's data and classes; `key` names it in errors."""
    trained = _fitting(path, key, config, device, dtype)
    validate.check_velocity(trained.config, f"{key}={path}")
    return trained


def _fitting(
    path: str, key: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Trained:
    """A trained network for this run's data and classes."""
    trained = trained_network(path, device, dtype)
    validate.check_fits(trained.config, config, f"{key}={path}")
    _warn_unfinished(Path(path), key)
    return trained


def _warn_unfinished(path: Path, key: str) -> None:
    """Say so where the weights are of a run that has not come to its end."""
    file = found(path)
    run = file if file.is_dir() else file.parent.parent
    with suppress(UserError):  # its metrics.json is unreadable
        status = RunFolder(run).status()
        if status not in (Status.done, Status.new):  # new: no run's folder
            log.warning("%s=%s: that run is %s, not done", key, path, status)
