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

from scm import distributed, report, sweep
from scm.cli import fail
from scm.composing import one_line, plain
from scm.errors import UserError
from scm.files import refusals_named
from scm.launch import check
from scm.runfolder import RunFolder, flatten


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
