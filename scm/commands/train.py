"""The task of `run.py`: carry out the jobs of a plan, one after another.

No torch is imported before the plan is known to be possible, so a mistake is answered at once.
"""

import logging
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm.commands import study, sweep
from scm.commands.plan import Job, files, hydra_files, plan
from scm.config import metrics
from scm.config.compose import CONF, config_of, one_line, prepare, resolved
from scm.config.read import plain
from scm.config.schema import Config
from scm.core import distributed
from scm.core.cli import fail, mistakes_in_one_line
from scm.core.neighbours import make_threads_yield
from scm.storage.folder import NotThisRuns, RunFolder, Status

log = logging.getLogger(__name__)

COMPLETION = re.compile(r"(install|uninstall|query)=(bash|fish|zsh)")

OmegaConf.register_new_resolver("sweep_name", sweep.sweep_name, replace=True)
OmegaConf.register_new_resolver("job_name", sweep.job_name, replace=True)


@contextmanager
def composition_errors_in_one_line() -> Iterator[None]:
    """Let Hydra's several lines about a wrong key or type be one.

    So is a UserError, or what the disk refuses. Everything else, a mistake of this code's among
    it, keeps its traceback.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints and exits by itself
    check_arguments(sys.argv[1:])
    with mistakes_in_one_line():
        try:
            yield
        except InstantiationException:
            raise
        except (HydraException, OmegaConfBaseException) as error:
            fail(one_line(error))
        except ValueError as error:
            if not str(error).startswith("Config group override must be"):  # as for trainer=null
                raise
            fail(f"{' '.join(sys.argv[1:])}: a group takes the name of an option ({error})")


def launch() -> None:
    """The command line: `python run.py`, and `python -m scm train` where there is no clone."""
    prepare()
    with composition_errors_in_one_line():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(main)()


def check_arguments(arguments: list[str]) -> None:
    """End with one line where Hydra's own flags are wrong, or would unpickle a file."""
    parser = get_args_parser()
    parser.prog = "run.py"
    parser.error = lambda message: fail(f"{message}; see `python run.py --hydra-help`")  # type: ignore[method-assign]
    if any(argument in ("--version", "-h", "--help") for argument in arguments):
        return
    given = parser.parse_args(arguments)
    if given.experimental_rerun is not None:
        fail("--experimental-rerun: refused, it loads a pickle, which may run code; name overrides")
    if given.shell_completion and not [o for o in given.overrides if COMPLETION.fullmatch(o)]:
        fail("--shell-completion: what to do? -sc install=bash, or uninstall=, for bash, fish, zsh")


def main(cfg: DictConfig) -> float | None:
    """One run in Hydra's run folder; returns what a sweeper minimises."""
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    if hydra_cfg.mode is RunMode.MULTIRUN:
        retry_failed = hydra_cfg.callbacks["sweep"].retry_failed
        return _one_of_a_sweep(cfg, folder, retry_failed=retry_failed)
    with mistakes_in_one_line():
        try:
            config = config_of(cfg)
            found = run(config, folder)
        finally:
            folder.remove_if_empty()
    return _value(config, found)


def _one_of_a_sweep(cfg: DictConfig, folder: RunFolder, *, retry_failed: bool) -> float:
    """One run of a sweep; the others go on where it fails, and it is then worth nothing (nan).

    Raises UserError where its folder is not its own: nothing is written there.
    """
    state = sweep.state(folder, retry_failed=retry_failed)
    if state is Status.pruned or (state is Status.failed and not retry_failed):
        return math.nan
    try:
        config = config_of(cfg)
        found = run(config, folder, hopeless=study.hopeless(HydraConfig.get(), config))
    except NotThisRuns:
        raise
    except Exception as error:
        log.error("failed: %s: %s", folder.path.name, one_line(error))
        files, text = hydra_files(resolved(cfg)), traceback.format_exc()
        more = {"objective": OmegaConf.select(cfg, "objective.name")}
        distributed.world().first(lambda: folder.record_failure(files, more, text))
        return math.nan
    value = _value(config, found)
    return math.nan if value is None else value


def _value(config: Config, found: dict[str, Any]) -> float | None:
    """What a sweeper minimises, from what metrics.json holds; exits where the run was stopped."""
    if found["status"] == Status.stopped:
        sys.exit(128 + found["signal"])
    return metrics.to_minimise(config, found["metrics"])


def from_python(overrides: Sequence[str], path: Path) -> dict[str, Any]:
    """What the command line does with these overrides, in the folder `path`.

    Returns what metrics.json holds. Raises UserError where they are impossible.
    """
    folder = RunFolder(path)
    command = shlex.join(["python", "run.py", f"hydra.run.dir={path}", *overrides])
    prepare()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = config_of(compose("config", overrides=list(overrides)))
            return run(config, folder, lambda whole: files(whole, overrides, command))
    except (HydraException, OmegaConfBaseException) as error:
        raise one_line(error) from None
    finally:
        folder.remove_if_empty()


Files = Callable[[dict[str, Any]], dict[str, str]]  # a run's config -> what stands in its .hydra/


def run(
    config: Config,
    folder: RunFolder,
    files: Files | None = None,
    hopeless: metrics.Hopeless | None = None,
) -> dict[str, Any]:
    """Train this config in this folder, or go on with it, or say that it is done.

    `hopeless` may stop it early. Returns what metrics.json holds: the teacher's, where that was
    stopped.
    """
    jobs = plan(config, folder)
    if folder.status() is Status.done:
        jobs = jobs[-1:]  # whatever has become of its teacher
    for job in jobs:
        judge = hopeless if job is jobs[-1] else None
        found = _carried_out(job, files or hydra_files, judge)
        if found["status"] == Status.stopped:
            break
    return found


def _carried_out(job: Job, files: Files, hopeless: metrics.Hopeless | None) -> dict[str, Any]:
    if job.folder.status() is Status.done:
        log.info("done already: %s", job.folder.path)
        return job.folder.metrics()
    make_threads_yield()
    from scm.training.assemble import assemble  # imports torch, as the next does
    from scm.training.run import run

    parts = assemble(job.config, job.folder, teacher=job.teacher)
    first = distributed.world().first
    with ExitStack() as stack:
        first(lambda: stack.enter_context(job.folder.open(files(plain(job.config)))))
        first(lambda: stack.enter_context(LogFile(job.folder.path / "run.log", delay=True)))
        return run(parts, hopeless)


class LogFile(logging.FileHandler):
    """While entered, everything logged also goes to this file, as long as the disk takes it."""

    def __enter__(self) -> None:
        self.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
        self.close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: logging would show a traceback per line, which the console still has."""
