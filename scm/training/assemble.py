"""From a run's config to all its parts, built and fitted to each other; nothing is written."""

import copy
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from scm.config import methods, metrics, parts, rules
from scm.config.allow import construct
from scm.config.read import flatten, read
from scm.config.schema import Config, Facts
from scm.core import distributed, machine, rng
from scm.core.errors import UserError
from scm.core.files import found
from scm.data.dataset import Dataset
from scm.data.images import ImageDataset
from scm.evaluation import features
from scm.evaluation.evaluator import Evaluator
from scm.evaluation.quality import Quality, quality_of
from scm.method.matching import Dmd
from scm.method.objective import Objective
from scm.storage import model as models
from scm.storage import store
from scm.storage.folder import RunFolder
from scm.storage.model import Model
from scm.training.learner import Learner
from scm.training.loop import Task
from scm.training.watch import Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """All that a run in one folder consumes."""

    folder: RunFolder
    config: Config
    task: Task
    learner: Learner
    score: Learner | None  # of matching's score network
    watch: Watch
    evaluator: Evaluator
    sources: dict[str, dict[str, str]]  # teacher, init -> path and digest of their weights
    device: torch.device
    dtype: torch.dtype


def assemble(config: Config, folder: RunFolder, *, teacher: str | None) -> Assembly:
    """Build everything that a run needs. UserError where the parts do not fit.

    `teacher` is the path of the model to distil or to start from, where there is one.
    """
    trainer = config.trainer
    machine.prepare(trainer.threads)
    device = machine.find_device(trainer.device.name)
    dtype = machine.find_dtype(trainer.precision.name, device)
    _check_form(config.objective, device, dtype)
    world = distributed.world()
    world.check(trainer.batch_size, device)
    data = models.dataset(config.data).to(device)
    _check_classes(config.model.num_classes, data)
    torch.manual_seed(rng.derive_seed(config.seed, "weights"))
    net = models.network(config, device, dtype)
    objective, sources = _objective(config, net, teacher, data, device, dtype)
    _check_sources(folder, sources)
    evaluator = Evaluator(
        config=config,
        objective=objective,
        dataset=data,
        samplers={
            name: models.sampler(name, settings, data.sigma_data)
            for name, settings in config.sampler.items()
        },
        device=device,
        quality=_quality(config, data, device),
    )
    learner, score = _learner(net, "optimizer", config.optimizer, dtype), None
    if config.matching is not None and objective.matching is not None:
        settings = config.matching.optimizer
        score = _learner(objective.matching.score, "matching.optimizer", settings, dtype)
    watch = Watch(device)
    if trainer.branch is not None and not _begun(folder):
        sources["branch"] = _branch(learner, score, watch, config, found(trainer.branch))
    return Assembly(
        folder=folder,
        config=config,
        task=Task(objective, data, trainer, config.seed, config.model.num_classes > 0, world),
        learner=learner,
        score=score,
        watch=watch,
        evaluator=evaluator,
        sources=sources,
        device=device,
        dtype=dtype,
    )


def _learner(net: nn.Module, key: str, settings: parts.Optimizer, dtype: torch.dtype) -> Learner:
    given = {"params": lambda: list(net.parameters()), "dtype": lambda: dtype}
    return Learner(net, construct(torch.optim.Optimizer, key, settings, given))


def _check_classes(num_classes: int, data: Dataset) -> None:
    if num_classes not in (0, data.num_classes):
        raise UserError(
            f"model.num_classes={num_classes}: {data.name} has {data.num_classes} classes; use "
            "that number, or 0 for an unconditional model"
        )


def _check_form(objective: methods.Objective, device: torch.device, dtype: torch.dtype) -> None:
    """There torch gives the norm's tangent in float32, and the next weight is in 16 bits."""
    derivative = getattr(objective, "derivative", None)
    for key, part in (("objective", objective), ("objective.derivative", derivative)):
        split = getattr(part, "form", None) is methods.Form.split
        if split and device.type == "cuda" and dtype.itemsize == 2:
            raise UserError(
                f"{key}.form=split: torch.func.jvp mixes types on a GPU in 16 bits; use "
                f"{key}.form=dual, or trainer.precision=fp32"
            )


def _quality(config: Config, dataset: Dataset, device: torch.device) -> Quality | None:
    """What judges the samples of the run; None where nothing is to, or can."""
    wanted = config.trainer.quality_images or config.trainer.final_quality_images
    if not wanted or not isinstance(dataset, ImageDataset):
        return None
    if not metrics.quality_groups(config):
        log.info("%s", features.lacking(dataset))
        return None
    return quality_of(dataset, device)


def _objective(
    config: Config,
    net: nn.Module,
    teacher: str | None,
    data: Dataset,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Objective, dict[str, dict[str, str]]]:
    """The objective with its parts, matching among them; `net` gets its starting weights.

    And where the weights of both came from, for metrics.json. A teacher is loaded because a part
    of the objective asks for one.
    """
    load = partial(models.load_fitting, config=config, device=device, dtype=dtype)
    loaded: dict[str, Model] = {}

    def load_teacher() -> nn.Module:
        if "teacher" not in loaded:
            loaded["teacher"] = load(str(teacher), "objective.teacher", to_distil=True)
        return loaded["teacher"].net

    def load_guide(path: str) -> tuple[nn.Module, bool]:
        guide = load(path, "guide", to_distil=True, or_classless=True)
        loaded[f"guide {path}"] = guide
        return guide.net, guide.facts.model.num_classes > 0

    def score() -> nn.Module:
        """It starts as the teacher, where there is one."""
        if teacher is not None:
            return copy.deepcopy(load_teacher()).requires_grad_(True)
        model = replace(config.model, second_time=False)
        return models.network(replace(config, model=model), device, dtype)

    given = {
        "sigma_data": lambda: config.data.sigma_data,
        "teacher": load_teacher,
        "training_set": data.training_set,
        "exact_velocity": lambda: data.exact and data.exact.velocity,
        "score": score,
        "load_guide": lambda: load_guide,
    }
    weighting = construct(object, "weighting", config.weighting, given)
    given |= {"weighting": lambda: weighting}
    objective = construct(Objective, "objective", config.objective, given)  # type: ignore[type-abstract]
    if config.matching is not None:
        objective = objective.beside(construct(Dmd, "matching", config.matching, given))
    init = config.objective.init
    path = teacher if init == rules.FROM_TEACHER else init
    if path is not None:
        if path != teacher or (start := loaded.get("teacher")) is None:
            start = loaded["init"] = load(path, "objective.init", or_classless=True)
        rules.check_same_network(start.facts, config, f"objective.init={path}")
        # what another network lacks starts at zero here: layers for s and for classes
        zeros = (".second.", ".label.")
        own = {k: w for k, w in net.state_dict().items() if any(zero in k for zero in zeros)}
        weights = own | dict(start.net.state_dict())
        models.check_weights(net, weights)
        net.load_state_dict(weights)
    sources = {
        key: {"path": str(model.path), store.WEIGHTS_SHA256: model.sha256}
        for key, model in loaded.items()
    }
    return objective, sources


def _begun(folder: RunFolder) -> bool:
    """Whether the run goes on from a checkpoint of its own."""
    return any(folder.checkpoints.glob(f"*{store.SUFFIX}"))


def _branch(
    learner: Learner, score: Learner | None, watch: Watch, config: Config, path: Path
) -> dict[str, str]:
    """Let all stand where another run's checkpoint does; returns what that was."""
    source = f"trainer.branch={path}"
    if not path.is_file():
        raise UserError(f"{source}: no such file; name another run's checkpoints/step-*.pt")
    saved = store.read(path)
    theirs = read(saved["config"], Facts)
    rules.check_fits(theirs, config, source)
    rules.check_same_network(theirs, config, source, "branch from another run")
    learner.branch_from(saved)
    if score is not None and "score" in saved:
        score.branch_from(saved["score"])
    watch.load_state_dict(saved["watch"])
    return {"path": str(path), store.WEIGHTS_SHA256: store.weights_digest(saved["net"])}


def _check_sources(folder: RunFolder, sources: dict[str, dict[str, str]]) -> None:
    """Refuse to go on with a run where other weights now stand at the path of its teacher's."""
    if not _begun(folder):
        return
    before = flatten(folder.metrics().get("sources"))
    for key, source in sources.items():
        now = source[store.WEIGHTS_SHA256]
        if before.get(f"{key}.{store.WEIGHTS_SHA256}", now) != now:
            raise UserError(
                f"{folder.path}: its objective.{key} at {source['path']} has other weights now "
                "than when the run began; put the former back, or begin a run in another folder"
            )
