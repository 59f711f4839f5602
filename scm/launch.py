"""From a composed config to a finished run: check, refuse or open the folder, build, run.

No torch is imported before the run is known to be possible, so a mistake is answered at once.
"""

import logging
import math
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm import distributed, guard, sweep, tags, validate
from scm.cli import fail, interrupted
from scm.composing import one_line, plain
from scm.errors import UserError
from scm.files import refusals_named
from scm.runfolder import NotThisRuns, RunFolder, Status, flatten

if TYPE_CHECKING:
    from scm.experiment import Experiment

log = logging.getLogger(__name__)

INHERITED = (
    "seed",
    "trainer.device",
    "trainer.deterministic",
    "trainer.threads",
    "trainer.precision",
)  # by a recipe's teacher


OmegaConf.register_new_resolver("sweep_name", sweep.sweep_name, replace=True)
OmegaConf.register_new_resolver("job_name", sweep.job_name, replace=True)


@contextmanager
def composition_errors_in_one_line() -> Iterator[None]:
    """Let Hydra compose what `guard` allows, its several lines about a wrong key or type as one.

    So is a UserError, or what the disk refuses. Everything else, a mistake of this code's among
    it, keeps its traceback.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints and exits by itself
    guard.check_arguments(sys.argv[1:])
    try:
        with refusals_named(), guard.guarded():
            yield
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        fail(one_line(error))
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        interrupted()


def check(config: dict[str, Any], folder: RunFolder) -> None:
    """Raise UserError where this configuration, or this folder for it, is impossible."""
    validate.check(config)
    folder.check(config)
    if config["objective"].get("teacher_recipe"):
        _check_recipe(config, RunFolder(folder.path / "teacher"))


def _check_recipe(config: dict[str, Any], folder: RunFolder) -> None:
    """Refuse a teacher that could be trained but not distilled."""
    teacher, objective = plain(_teacher_config(config)), config["objective"]
    check(teacher, folder)
    recipe, overrides = objective["teacher_recipe"], objective["teacher_overrides"]
    source = f"objective.teacher_recipe={recipe} with teacher_overrides={overrides}"
    validate.check_fits(teacher, config, source)
    validate.check_velocity(teacher, source)
    if objective["init"] == validate.FROM_TEACHER:
        validate.check_same_network(teacher, config, source)


def main(cfg: DictConfig) -> float | None:
    """The task of `run.py`: one run in Hydra's run folder; returns what a sweeper minimises."""
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    if hydra_cfg.mode is RunMode.MULTIRUN:
        return _job(cfg, folder, retry_failed=hydra_cfg.callbacks["sweep"].retry_failed)
    try:
        with refusals_named():
            metrics = run(cfg, folder)
    except UserError as error:
        folder.remove_if_empty()
        fail(error)
    if metrics["status"] == Status.stopped:
        sys.exit(128 + metrics["signal"])
    return tags.to_minimise(plain(cfg), metrics["metrics"])


def _job(cfg: DictConfig, folder: RunFolder, *, retry_failed: bool) -> float:
    """One job of a sweep; the others go on where it fails, and it is then worth nothing (nan).

    Raises UserError where its folder is not its own: nothing is written there.
    """
    config = plain(cfg)
    status = sweep.state(folder, retry_failed=retry_failed)
    if status is Status.failed and not retry_failed:
        return math.nan
    try:
        metrics = run(cfg, folder)
    except NotThisRuns:
        raise
    except Exception as error:
        log.error("failed: %s: %s", folder.path.name, one_line(error))
        text = traceback.format_exc()
        distributed.world().first(
            lambda: folder.record_failure(
                _config_files(cfg, config),
                {"objective": config["objective"]["_target_"].rpartition(".")[2].lower()},
                text,
            )
        )
        return math.nan
    if metrics["status"] == Status.stopped:
        sys.exit(128 + metrics["signal"])
    value = tags.to_minimise(config, metrics["metrics"])
    return math.nan if value is None else value


def run(cfg: DictConfig, folder: RunFolder) -> dict[str, Any]:
    """Train `cfg` in `folder`, or go on with it, or say that it is done; returns its metrics."""
    config = plain(cfg)
    check(config, folder)
    if folder.status() is Status.done:
        log.info("done already: %s", folder.path)
        return folder.metrics()
    files = _config_files(cfg, config)
    recipe = config["objective"].get("teacher_recipe")
    with ExitStack() as stack:
        first = distributed.world().first
        if recipe:
            first(lambda: stack.enter_context(folder.open(files)))
            own_teacher = RunFolder(folder.path / "teacher")
            metrics = run(_teacher_config(config), own_teacher)
            if metrics["status"] == Status.stopped:
                return metrics
            experiment = _built(cfg, config, folder, str(own_teacher.path))
        else:
            experiment = _built(cfg, config, folder, config["objective"].get("teacher"))
            first(lambda: stack.enter_context(folder.open(files)))
        first(lambda: stack.enter_context(_log_file(folder)))
        return experiment.run()


def _built(
    cfg: DictConfig, config: dict[str, Any], folder: RunFolder, teacher: str | None
) -> "Experiment":
    from scm import assembly  # imports torch

    return assembly.experiment(config, folder, config_text=OmegaConf.to_yaml(cfg), teacher=teacher)


def _teacher_config(config: dict[str, Any]) -> DictConfig:
    """The recipe's own config, on this run's seed and machine settings, then its overrides.

    Raises UserError where it cannot be composed.
    """
    flat, objective = flatten(config), config["objective"]
    inherited = [f"{key}={'null' if flat[key] is None else flat[key]}" for key in INHERITED]
    recipe = f"experiment={objective['teacher_recipe']}"
    try:
        return compose("config", overrides=[recipe, *inherited, *objective["teacher_overrides"]])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"objective.teacher_recipe={objective['teacher_recipe']} with "
            f"teacher_overrides={objective['teacher_overrides']}: {one_line(error)}"
        ) from None


def _config_files(cfg: DictConfig, config: dict[str, Any]) -> dict[str, str]:
    """What Hydra would write into .hydra/, the config resolved so that it stands for itself.

    And the command that makes this run alone.
    """
    hydra_cfg = HydraConfig.get()
    return {
        "command.txt": _command(hydra_cfg) + "\n",
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(config)),
        "overrides.yaml": OmegaConf.to_yaml(hydra_cfg.overrides.task),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_cfg})),
    }


def _command(hydra_cfg: HydraConf) -> str:
    words = ["python", "run.py"]
    if hydra_cfg.job.config_name != "config":
        sources = hydra_cfg.runtime.config_sources
        for own in (source.path for source in sources if source.provider == "command-line"):
            words += ["-cd", os.path.relpath(own)]
        words += ["-cn", str(hydra_cfg.job.config_name), "hydra.mode=RUN"]
    words.append(f"hydra.run.dir={os.path.relpath(hydra_cfg.runtime.output_dir)}")
    return shlex.join([*words, *hydra_cfg.overrides.task])


class LogFile(logging.FileHandler):
    """A log that ends where the disk is full; the console still has every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: logging would show a traceback per line."""


@contextmanager
def _log_file(folder: RunFolder) -> Iterator[None]:
    """While entered, everything logged also goes to the folder's run.log."""
    handler = LogFile(folder.path / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
