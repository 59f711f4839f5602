"""What is to be trained, in which folders, in which order; all of it checked, nothing started."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra import compose
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm.config import rules
from scm.config.compose import config_of, one_line
from scm.config.read import flatten, plain
from scm.config.schema import Config
from scm.core.errors import UserError
from scm.storage.folder import RunFolder

MACHINE = ("device", "deterministic", "threads", "precision")
INHERITED = ("seed", *(f"trainer.{key}" for key in MACHINE))  # by a recipe's teacher


@dataclass(frozen=True)
class Job:
    """One training in one folder."""

    config: Config
    folder: RunFolder
    teacher: str | None  # path of the model to distil


def hydra_files(config: dict[str, Any]) -> dict[str, str]:
    """What Hydra would write into .hydra/, and the command that makes this run alone."""
    hydra_cfg = HydraConfig.get()
    own = {"hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_cfg}))}
    return files(config, list(hydra_cfg.overrides.task), _command(hydra_cfg)) | own


def files(config: dict[str, Any], overrides: Sequence[str], command: str) -> dict[str, str]:
    """What stands in .hydra/ of every run; its config is resolved, so that it stands for itself."""
    return {
        "command.txt": command + "\n",
        "config.yaml": yaml.safe_dump(config, sort_keys=False),
        "overrides.yaml": yaml.safe_dump(list(overrides)),
    }


def plan(config: Config, folder: RunFolder) -> list[Job]:
    """The jobs that make a run, in their order: a recipe's teacher first, the run itself last.

    Raises UserError where one of them, or its folder for it, is impossible. Nothing is written.
    """
    rules.check(config)
    folder.check(plain(config))
    if not config.objective.teacher_recipe:
        return [Job(config, folder, config.objective.teacher)]
    teacher = Job(_recipe(config), folder.teacher, None)
    rules.check(teacher.config)
    teacher.folder.check(plain(teacher.config))
    source = _source(config)
    rules.check_fits(teacher.config, config, source)
    rules.check_velocity(teacher.config, source)
    if config.objective.init == rules.FROM_TEACHER:
        rules.check_same_network(teacher.config, config, source)
    return [teacher, Job(config, folder, str(teacher.folder.path))]


def _recipe(config: Config) -> Config:
    """The recipe's own config, on this run's seed and machine settings, then its overrides."""
    flat, objective = flatten(plain(config)), config.objective
    logger = [f"logger=[{','.join(config.logger)}]"]
    logger += [f"{key}={json.dumps(value)}" for key, value in flat.items() if _of_logger(key)]
    inherited = [f"{key}={'null' if flat[key] is None else flat[key]}" for key in INHERITED]
    recipe = f"experiment={objective.teacher_recipe}"
    overrides = [recipe, *inherited, *logger, *objective.teacher_overrides]
    try:
        return config_of(compose("config", overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{_source(config)}: {one_line(error)}") from None


def _of_logger(key: str) -> bool:
    return key.startswith("logger.") and not key.endswith("_target_")


def _source(config: Config) -> str:
    """How errors name the recipe's teacher."""
    objective = config.objective
    return (
        f"objective.teacher_recipe={objective.teacher_recipe} with "
        f"teacher_overrides={objective.teacher_overrides}"
    )


def _command(hydra_cfg: HydraConf) -> str:
    words = ["python", "run.py"]
    if hydra_cfg.job.config_name != "config":
        sources = hydra_cfg.runtime.config_sources
        for own in (source.path for source in sources if source.provider == "command-line"):
            words += ["-cd", os.path.relpath(own)]
        words += ["-cn", str(hydra_cfg.job.config_name), "hydra.mode=RUN"]
    words.append(f"hydra.run.dir={os.path.relpath(hydra_cfg.runtime.output_dir)}")
    return shlex.join([*words, *hydra_cfg.overrides.task])
