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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm import distributed, guard, report, sweep, tags, validate
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


class CheckFirst(Callback):
    """Refuses an impossible run before Hydra makes its folder."""

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


class Sweep(Callback):
    """Begins a sweep, or goes on with it, and reports at its end."""

    def __init__(self, *, retry_failed: bool) -> None:
        self.retry_failed = retry_failed  # `main` reads it in the job's config

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the folder for all jobs, in whatever process; refuse one of another sweep."""
        _refuse_processes(config.hydra)
        _share_time(config, "hydra.sweep.dir")
        folder = Path(config.hydra.sweep.dir)
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        swept = _swept(config.hydra)
        shared = [key for key in _keys(config.hydra, choices=False) if key not in swept]
        config.hydra.overrides.hydra += [  # of every job
            f"hydra.sweep.dir='{quoted}'",
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(repr, shared))}]",
        ]
        try:
            with refusals_named():
                distributed.world().first(lambda: sweep.begin(folder, _sweep_record(config)))
        except UserError as error:
            fail(error)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report; exit code 1 where a job of the sweep has failed."""
        try:
            with refusals_named():  # Hydra makes a warning of what a callback raises
                first = distributed.world().is_first
                whole = not first or report.report_sweep(Path(config.hydra.sweep.dir))
        except UserError as error:
            fail(error)
        if not whole:
            sys.exit(1)


def _refuse_processes(hydra_cfg: DictConfig) -> None:
    """Exit where torchrun's processes would each start other processes, or another search."""
    for part in ("launcher", "sweeper"):
        target = str(hydra_cfg[part]._target_).rpartition(".")[2]
        if target != f"Basic{part.title()}" and distributed.several():
            fail(
                f"hydra/{part}={hydra_cfg.runtime.choices[f'hydra/{part}']}: not under torchrun, "
                "whose processes share each run of a plain sweep; leave one of the two out"
            )


def _sweep_record(config: DictConfig) -> sweep.Record:
    """What sweep.json is to keep."""
    from scm.runtime import git_commit  # imports torch

    hydra_cfg = config.hydra
    shared = OmegaConf.to_container(_shared_config(hydra_cfg), enum_to_str=True)
    return sweep.Record(
        name=Path(hydra_cfg.sweep.dir).name,
        question=_question(hydra_cfg),
        command=shlex.join(["python", "run.py", *sys.argv[1:]]),
        git_commit=git_commit(),
        config=flatten(shared),
        swept=_swept(hydra_cfg),
    )


def _shared_config(hydra_cfg: DictConfig) -> DictConfig:
    """The jobs' config without what any of them varies: the same for a part of the sweep."""
    swept = _swept(hydra_cfg)
    overrides = OverridesParser.create().parse_overrides(list(hydra_cfg.overrides.task))
    shared = [str(o.input_line) for o in overrides if o.key_or_group not in swept]
    given: Any = OmegaConf.to_container(hydra_cfg.overrides.hydra, resolve=False)  # ${...} as typed
    paths = [text for text in given if text.startswith("hydra.searchpath=")]
    return compose(hydra_cfg.job.config_name, overrides=[*shared, *paths])


def _swept(hydra_cfg: DictConfig) -> list[str]:
    """Keys and groups in which jobs differ: the sweeper's params, and overrides with choices."""
    return sorted({*_keys(hydra_cfg, choices=True), *(hydra_cfg.sweeper.get("params") or {})})


def _keys(hydra_cfg: DictConfig, *, choices: bool) -> list[str]:
    """Keys and groups of the command line's overrides, with several choices or with one."""
    overrides = OverridesParser.create().parse_overrides(list(hydra_cfg.overrides.task))
    return [o.key_or_group for o in overrides if o.is_sweep_override() == choices]


def _question(hydra_cfg: DictConfig) -> str:
    """Line 1 of a sweep's own yaml, without the command in it."""
    name = hydra_cfg.job.config_name
    files = [Path(source.path) / f"{name}.yaml" for source in hydra_cfg.runtime.config_sources]
    found = [file for file in files if name != "config" and file.is_file()]
    if not found:
        return ""
    line = found[0].read_text().partition("\n")[0]
    return line.removeprefix("#").partition(" python run.py")[0].strip()


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
    from scm import build  # imports torch

    return build.experiment(config, folder, config_text=OmegaConf.to_yaml(cfg), teacher=teacher)


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
