"""What Hydra calls round a run and round a sweep: check first; begin, report at the end.

No torch is imported before a run is known to be possible.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm.commands import report, study, sweep
from scm.commands.plan import plan
from scm.config import rules
from scm.config.compose import config_of, one_line
from scm.core import distributed
from scm.core.cli import fail, mistakes_in_one_line
from scm.core.provenance import git_commit
from scm.storage.folder import RunFolder


class CheckFirst(Callback):
    """Refuses an impossible run before Hydra makes its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 and one line on standard error."""
        _share_time(config, "hydra.run.dir")
        with mistakes_in_one_line():
            try:
                plan(config_of(config), RunFolder(Path(config.hydra.run.dir)))
            except OmegaConfBaseException as error:  # an interpolation to nowhere, a missing value
                fail(one_line(error))


class Sweep(Callback):
    """Begins a sweep, or goes on with it, and reports at its end."""

    def __init__(self, *, retry_failed: bool) -> None:
        self.retry_failed = retry_failed  # `main` reads it in the job's config

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Fix the folder for all jobs, in whatever process; refuse one of another sweep."""
        hydra_cfg = config.hydra
        _refuse_processes(hydra_cfg)
        _share_time(config, "hydra.sweep.dir")
        folder = Path(hydra_cfg.sweep.dir)
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        with mistakes_in_one_line():
            if study.is_study(hydra_cfg):
                study.check_same(folder, planned_study(hydra_cfg))
        swept, shared = _overrides(hydra_cfg)
        hydra_cfg.overrides.hydra += [  # of every job
            f"hydra.sweep.dir='{quoted}'",
            f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(repr, shared))}]",
        ]
        record = sweep.Record(
            name=folder.name,
            question=_question(hydra_cfg),
            command=shlex.join(["python", "run.py", *sys.argv[1:]]),
            git_commit=git_commit(),
            config_name=hydra_cfg.job.config_name,
            shared=list(shared.values()),
            swept=swept,
        )
        with mistakes_in_one_line():
            distributed.world().first(lambda: sweep.begin(folder, record))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report; exit code 1 where a job of the sweep has failed."""
        with mistakes_in_one_line():  # Hydra makes a warning of what a callback raises
            first = distributed.world().is_first
            if first and not report.report_sweep(Path(config.hydra.sweep.dir)):
                sys.exit(1)


def planned_study(hydra_cfg: DictConfig) -> study.Plan:
    """What a study is to search, its runs checked. UserError or Hydra's own where it cannot."""
    name = hydra_cfg.job.config_name
    return study.planned(hydra_cfg, lambda given: rules.check(config_of(compose(name, given))))


def _refuse_processes(hydra_cfg: DictConfig) -> None:
    """Exit where torchrun's processes would each start other processes, or another search."""
    for part in ("launcher", "sweeper"):
        target = str(hydra_cfg[part]._target_).rpartition(".")[2]
        if target != f"Basic{part.title()}" and distributed.several():
            fail(
                f"hydra/{part}={hydra_cfg.runtime.choices[f'hydra/{part}']}: not under torchrun, "
                "whose processes share each run of a plain sweep; leave one of the two out"
            )


def _overrides(hydra_cfg: DictConfig) -> tuple[list[str], dict[str, str]]:
    """Keys and groups in which the jobs differ; and the overrides that all share, by their key.

    Jobs differ in the sweeper's params, and in what the command line gives several choices for.
    """
    given = OverridesParser.create().parse_overrides(list(hydra_cfg.overrides.task))
    choices = {o.key_or_group for o in given if o.is_sweep_override()}
    swept = choices | {str(key) for key in hydra_cfg.sweeper.get("params") or {}}
    shared = {o.key_or_group: str(o.input_line) for o in given if o.key_or_group not in swept}
    return sorted(swept), shared


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
