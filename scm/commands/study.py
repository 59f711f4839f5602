"""A study: a sweep whose runs Optuna proposes, each from the results of those before it.

What is known of it is one file in the sweep's folder, Optuna's journal, to which lines are only
added. The proposal of trial n follows from the sampler's seed, n and the results so far, so a study
that was killed proposes what it would have proposed. A trial that was running then is taken up
again: its run goes on from its checkpoint, under the same number.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scm.commands.space import Range, fixed_and_ranges
from scm.config import metrics
from scm.config.read import differences, flatten
from scm.config.schema import Config
from scm.core import files
from scm.core.errors import UserError
from scm.report.study import TABLE
from scm.storage.folder import RunFolder, Status

JOURNAL = "study.log"  # what Optuna reads
TARGET = "hydra_plugins.scm_study.StudySweeper"
NAME = "study"

Sampler = Enum("Sampler", "tpe random")
Pruner = Enum("Pruner", "median none")


@dataclass
class StudyConf:
    """The keys of hydra.sweeper under `hydra/sweeper=study`."""

    _target_: str = TARGET
    params: dict[str, Any] = field(default_factory=dict)  # key -> range, choices or one value
    n_trials: int = 25  # in all: a larger number adds to them
    n_jobs: int = 1  # proposed at a time, for a launcher that runs several
    seed: int = 0  # of the proposals, not of the runs
    sampler: Sampler = Sampler.tpe
    n_startup: int = 10  # proposals at random before the sampler's, Optuna's default
    pruner: Pruner = Pruner.median
    pruner_startup: int = 5  # whole runs before the first one is stopped early, Optuna's default
    pruner_warmup: int = 0  # training steps of each run before it may be stopped
    trial: int | None = None  # of one run: its number, set by the sweeper


LEAST = {"n_trials": 1, "n_jobs": 1, "seed": 0, "n_startup": 1}
LEAST |= {"pruner_startup": 0, "pruner_warmup": 0}
KEPT = ("seed", "sampler", "n_startup", "pruner", "pruner_startup", "pruner_warmup")


@dataclass(frozen=True)
class Plan:
    """What is searched, how, and by which number; the same as long as the study lasts."""

    ranges: dict[str, Range]
    fixed: list[str]  # overrides of all runs
    settings: dict[str, Any]  # those of KEPT
    metric: str

    def record(self) -> dict[str, Any]:
        """As JSON, to be compared with another command's."""
        space = {key: str(one) for key, one in self.ranges.items()}
        return {"space": space, "optimized_metric": self.metric, **self.settings}


def is_study(hydra_cfg: Any) -> bool:
    """Whether a sweep is a study."""
    return bool(hydra_cfg.sweeper.get("_target_") == TARGET)


def planned(hydra_cfg: Any, composed: Callable[[list[str]], Config]) -> Plan:
    """The checked plan of a study. `composed` makes and checks the config of a run.

    Raises UserError where Optuna is missing, a setting or a range is impossible, or a run at the
    end of a range is. Nothing is written.
    """
    sweeper = hydra_cfg.sweeper
    if find_spec("optuna") is None:
        raise UserError("hydra/sweeper=study: needs Optuna; pip install -e '.[optuna]'")
    for key, least in LEAST.items():
        if sweeper[key] < least:
            raise UserError(f"hydra.sweeper.{key}={sweeper[key]}: must be at least {least}")
    fixed, ranges = fixed_and_ranges(sweeper.params, list(hydra_cfg.overrides.task))
    settings = {key: getattr(sweeper[key], "name", sweeper[key]) for key in KEPT}
    return Plan(ranges, fixed, settings, _metric(fixed, ranges, settings["pruner"], composed))


def _metric(
    fixed: list[str],
    ranges: dict[str, Range],
    pruner: str,
    composed: Callable[[list[str]], Config],
) -> str:
    """What all runs are judged by, found by composing those at the ends of each range."""
    middle = {key: one.ends[0] for key, one in ranges.items()}
    runs = [{**middle, key: end} for key, one in ranges.items() for end in one.ends]
    configs = [composed([*fixed, *_overrides(run)]) for run in runs]
    found = sorted({metrics.optimized_metric(config) for config in configs})
    if len(found) > 1:
        raise UserError(
            f"optimized_metric: not the same in all runs of this study ({', '.join(found)}); "
            "name one that all have"
        )
    if pruner != Pruner["none"].name and any(metrics.early(config) is None for config in configs):
        raise UserError(
            f"hydra.sweeper.pruner={pruner}: {found[0]} is measured at a run's end alone, too late "
            "to stop it early; add hydra.sweeper.pruner=none, or trainer.quality_images=500"
        )
    return found[0]


def _overrides(values: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def check_same(folder: Path, plan: Plan) -> None:
    """Raise UserError where the folder holds a study of another space or by other rules."""
    if not (folder / JOURNAL).exists():
        return
    theirs = _optuna(folder, plan.settings).user_attrs.get("plan")
    if theirs and (changed := differences(flatten(plan.record()), flatten(theirs), "not given")):
        raise UserError(
            f"{folder}: holds a study by other rules: {changed}; repeat those to go on with it, "
            "or name another folder with hydra.sweep.dir=FOLDER"
        )


def _optuna(folder: Path, settings: Any) -> Any:
    """Optuna's study in this folder."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with files.reading(folder / JOURNAL, "a study's journal", "restore it or use a new folder"):
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        there = NAME in optuna.get_all_study_names(storage)
        study = (optuna.load_study if there else optuna.create_study)(
            storage=storage, study_name=NAME, pruner=_pruner(settings)
        )
        return study


def _sampler(settings: Any, number: int) -> Any:
    """Optuna's sampler, as if it had drawn nothing yet; its draws follow from (seed, number)."""
    import numpy as np
    import optuna

    seed = int(np.random.SeedSequence([settings["seed"], number]).generate_state(1)[0])
    if settings["sampler"] == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=settings["n_startup"])


def _pruner(settings: Any) -> Any:
    import optuna

    if settings["pruner"] == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=settings["pruner_startup"], n_warmup_steps=settings["pruner_warmup"]
    )


def hopeless(hydra_cfg: Any, config: Config) -> metrics.Hopeless | None:
    """What stops a study's run early; None where this run is none of a study, or nothing does.

    It tells Optuna each evaluation, once, and asks whether the best so far is worse than the median
    of the other trials at the same step.
    """
    if not is_study(hydra_cfg) or hydra_cfg.sweeper.trial is None:
        return None
    settings = {
        key: getattr(hydra_cfg.sweeper[key], "name", hydra_cfg.sweeper[key]) for key in KEPT
    }
    number, tag = hydra_cfg.sweeper.trial, metrics.early(config)
    if settings["pruner"] == "none" or tag is None:
        return None
    study = _optuna(Path(hydra_cfg.sweep.dir), settings)

    def ask(step: int, evaluated: dict[str, float]) -> bool:
        import optuna

        frozen = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, frozen._trial_id)
        if tag in evaluated and step not in frozen.intermediate_values:
            trial.report(-metrics.direction(tag) * evaluated[tag], step)
        return bool(trial.should_prune())

    return ask


@dataclass(frozen=True)
class Proposal:
    """A trial to run: its number and the overrides of its run."""

    number: int
    overrides: list[str]


class Study:
    """The study in a folder, which this process alone moves on."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._optuna = _optuna(folder, plan.settings)
        self._optuna.set_user_attr("plan", plan.record())

    def next(self, n_trials: int, n_jobs: int, *, retry_failed: bool) -> list[Proposal]:
        """The trials to run now: those that were running, or failed and are tried again, or new.

        Empty where the study has n_trials and none is left to run.
        """
        from optuna.trial import TrialState

        trials = self._optuna.get_trials(deepcopy=False)
        again = {trial.user_attrs.get("again") for trial in trials}
        failed = [t for t in trials if t.state == TrialState.FAIL and t.number not in again]
        for trial in failed if retry_failed else ():
            self._add(trial.params, again=trial.number)
        missing = n_trials - len([number for number in range(len(trials)) if number not in again])
        trials = self._optuna.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        for _ in range(min(missing, n_jobs - len(running))):
            running.append(self._add(self._proposed()))
        self.write_table()
        each = {tuple(_overrides(trial.params)): trial.number for trial in reversed(running)}
        batch = [Proposal(number, list(overrides)) for overrides, number in each.items()]
        return sorted(batch, key=lambda proposal: proposal.number)[:n_jobs]  # one to a folder

    def _proposed(self) -> dict[str, Any]:
        """The sampler's next values: asked for in memory, since a journal takes them one by one."""
        import optuna

        known = self._optuna.get_trials(deepcopy=False)
        memory = optuna.create_study(sampler=_sampler(self.plan.settings, len(known)))
        memory.add_trials(known)
        return dict(memory.ask(self._distributions()).params)

    def _add(self, params: dict[str, Any], **marks: Any) -> Any:
        """Write down a trial that is to run now, whole or not at all."""
        import optuna

        running = optuna.trial.TrialState.RUNNING
        trial = optuna.trial.create_trial(
            state=running, params=params, distributions=self._distributions(), user_attrs=marks
        )
        self._optuna.add_trial(trial)
        return self._optuna.get_trials(deepcopy=False)[-1]

    def _distributions(self) -> dict[str, Any]:
        return {key: one.distribution() for key, one in self.plan.ranges.items()}

    def tell(self, number: int, run: RunFolder) -> None:
        """Write down what has become of a trial's run. One without a finite number has failed."""
        from optuna.trial import TrialState

        found = run.metrics()
        value = found.get("metrics", {}).get(self.plan.metric)
        if found.get("status") == Status.pruned:
            self._optuna.tell(number, state=TrialState.PRUNED)
        elif found.get("status") == Status.done and value is not None and math.isfinite(value):
            self._optuna.tell(number, -metrics.direction(self.plan.metric) * value)
        else:
            self._optuna.tell(number, state=TrialState.FAIL)
        self.write_table()

    def write_table(self) -> None:
        """Write what a report shows, its values with the metric's own sign."""
        sign = -metrics.direction(self.plan.metric)
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": None if trial.value is None else sign * trial.value,
                "stopped_at": trial.last_step if trial.state.name == "PRUNED" else None,
                "params": trial.params,
            }
            for trial in self._optuna.get_trials(deepcopy=False)
        ]
        files.write_json(self.folder / TABLE, {**self.plan.record(), "trials": trials})


@contextmanager
def opened(folder: Path, plan: Plan) -> Iterator[Study]:
    """The study in this folder, new or as it was left; no other process may go on with it.

    Raises UserError where one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / ".lock") as taken:
        if not taken:
            raise UserError(f"{folder}: another process goes on with this study; wait for its end")
        _mend(folder / JOURNAL)
        study = Study(folder, plan)
        study.write_table()
        yield study


def _mend(journal: Path) -> None:
    """Take away what a process that was killed may leave: Optuna's lock, a line without its end."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists() and not (whole := journal.read_bytes()).endswith(b"\n"):
        files.write_atomic(journal, whole[: whole.rfind(b"\n") + 1])
