"""From a composed config to a finished run: check, refuse or open the folder, build, run.

No torch is imported before the run is known to be possible, so a mistake is answered at once.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm import distributed, guard, tags, validate
from scm.cli import fail
from scm.config import one_line, plain
from scm.errors import UserError
from scm.files import refusals_named
from scm.runfolder import RunFolder, Status, flatten

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


class CheckFirst(Callback):
    """Refuses an impossible run before Hydra makes its folder."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """All processes name the sweep's folder alike; Hydra's jobs inherit the resolved time."""
        _share_time(config, "hydra.sweep.dir")

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 and one line on standard error."""
        _share_time(config, "hydra.run.dir")
        task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            with refusals_named():
                check(plain(task), RunFolder(Path(config.hydra.run.dir)))
        except UserError as error:
            fail(error)
        except OmegaConfBaseException as error:  # an interpolation to nowhere, a missing value
            fail(one_line(error))


def _share_time(config: DictConfig, key: str) -> None:
    """Give every process the first one's `${now:...}`, so that all work in one folder."""
    OmegaConf.select(config, key)  # resolves it, into the cache
    OmegaConf.set_cache(config, distributed.world().share(OmegaConf.get_cache(config)))


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


def check(config: dict[str, Any], folder: RunFolder) -> None:
    """Raise UserError where this configuration, or this folder for it, is impossible."""
    validate.check(config)
    folder.check(config)


def main(cfg: DictConfig) -> float | None:
    """The task of `run.py`: one run in Hydra's run folder; returns the optimized metric's value."""
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    try:
        with refusals_named():
            metrics = run(cfg, folder)
    except UserError as error:
        folder.remove_if_empty()
        if hydra_cfg.mode is RunMode.MULTIRUN:  # the sweep goes on with its other jobs
            raise
        fail(error)
    if metrics["status"] == Status.stopped:
        sys.exit(128 + metrics["signal"])
    return metrics["metrics"].get(tags.optimized_metric(plain(cfg)))


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
    from scm import build  # imports torch

    return build.experiment(config, folder, config_text=OmegaConf.to_yaml(cfg), teacher=teacher)


def _teacher_config(config: dict[str, Any]) -> DictConfig:
    """The recipe's own config, on this run's seed and machine settings, then its overrides."""
    flat, objective = flatten(config), config["objective"]
    inherited = [f"{key}={'null' if flat[key] is None else flat[key]}" for key in INHERITED]
    recipe = f"experiment={objective['teacher_recipe']}"
    return compose("config", overrides=[recipe, *inherited, *objective["teacher_overrides"]])


def _config_files(cfg: DictConfig, config: dict[str, Any]) -> dict[str, str]:
    """What Hydra would write into .hydra/, the config resolved so that it stands for itself."""
    hydra_cfg = HydraConfig.get()
    return {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(config)),
        "overrides.yaml": OmegaConf.to_yaml(hydra_cfg.overrides.task),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra_cfg})),
    }


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
