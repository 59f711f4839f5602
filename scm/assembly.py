"""From a run's composed config to the whole run: every part built, fitted and put together.

The config is a plain resolved dict here.
"""

import logging
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from scm import build, checkpoint, distributed, features, rng, runtime, tags, validate
from scm.checkpoint import WEIGHTS_SHA256
from scm.config import TrainerConfig
from scm.construct import construct
from scm.data import Dataset, IdxImages
from scm.errors import UserError
from scm.evaluator import Evaluator
from scm.experiment import Experiment
from scm.judge import Judge
from scm.objectives import Objective
from scm.runfolder import RunFolder, flatten
from scm.samplers import Sampler

NOT_ARGUMENTS = (  # keys of the objective group that its class does not take
    "lr",
    "betas",
    "dropout",
    "init",
    "teacher",
    "teacher_recipe",
    "teacher_overrides",
)

log = logging.getLogger(__name__)


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
    data = build.dataset(config["data"]).to(device)
    torch.manual_seed(rng.derive_seed(config["seed"], "weights"))
    net = build.network(config, device, dtype)
    objective, sources = _objective(config, net, teacher, device, dtype)
    _check_sources(folder, sources)
    samplers = {
        name: build.sampler(settings, name, data.sigma_data)
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
        quality=build.quality(dataset, device),
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
    start: build.Trained | None = None
    if teacher:
        distilled = build.velocity_model(teacher, "objective.teacher", config, device, dtype)
        parts["teacher"], sources["teacher"] = distilled.net, _source(teacher, distilled)
        if init == validate.FROM_TEACHER:
            start, init = distilled, teacher
    if init is not None and start is None:
        start = build.fitting_network(init, "objective.init", config, device, dtype)
        sources["init"] = _source(init, start)
    if start is not None:
        key = f"objective.init={init}"
        validate.check_same_network(start.config, config, key)
        build.load_weights(net, start.net.state_dict(), key)
    arguments = {key: value for key, value in settings.items() if key not in NOT_ARGUMENTS}
    return construct(Objective, "objective", arguments, **parts), sources


def _source(path: str, trained: build.Trained) -> dict[str, str]:
    return {"path": path, WEIGHTS_SHA256: trained.sha256}


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
