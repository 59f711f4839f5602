"""`hydra/sweeper=study`, where Hydra looks for it: runs a study's trials by whatever launcher.

What a study is stands in `scm/commands/study.py`.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from scm.commands import callbacks, study
from scm.storage.folder import RunFolder

ConfigStore.instance().store(group="hydra/sweeper", name="study", node=study.StudyConf)


class StudySweeper(Sweeper):
    """Asks the study for trials, launches them, tells it what came, until there are n_trials."""

    config: DictConfig
    launcher: Launcher

    def __init__(self, **settings: Any) -> None:
        self.n_trials, self.n_jobs = settings["n_trials"], settings["n_jobs"]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """What Hydra gives each sweeper."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are left. `arguments` stand in the config already."""
        hydra_cfg = self.config.hydra
        retry_failed, launched = bool(hydra_cfg.callbacks.sweep.retry_failed), 0
        plan = callbacks.planned_study(hydra_cfg)
        with study.opened(Path(hydra_cfg.sweep.dir), plan) as current:
            while trials := current.next(self.n_trials, self.n_jobs, retry_failed=retry_failed):
                retry_failed = False  # each once
                jobs = [
                    [*plan.fixed, *trial.overrides, f"hydra.sweeper.trial={trial.number}"]
                    for trial in trials
                ]
                results = self.launcher.launch(jobs, initial_job_idx=launched)
                launched += len(jobs)
                for trial, result in zip(trials, results, strict=True):
                    _ = result.return_value  # raises what ended the job
                    assert result.hydra_cfg is not None
                    folder = Path(result.hydra_cfg.hydra.runtime.output_dir)
                    current.tell(trial.number, RunFolder(folder))
