"""A study's trials as its table has them, beside the runs that they were."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scm.config import metrics
from scm.report.read import Run, contents, is_finite

TABLE = "study.json"  # as `scm.commands.study` writes it
SHOWN = {"complete": "done", "fail": "failed"}  # the words that runs have for it


@dataclass(frozen=True)
class Trial:
    """One proposal and what came of it."""

    number: int
    state: str  # done, pruned, failed or running
    value: float | None  # of the study's metric; a pruned one's last
    stopped_at: int | None  # step of a pruned one
    params: dict[str, Any]
    run: str  # its folder's name, empty where there is none


@dataclass(frozen=True)
class Study:
    """What was searched, and all trials by their number."""

    metric: str
    space: dict[str, str]
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The best of those that went to their end."""
        sign = metrics.direction(self.metric) or -1
        done = [trial for trial in self.trials if trial.state == "done" and is_finite(trial.value)]
        return max(done, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def counts(self) -> str:
        """`9 done, 3 pruned`."""
        states = [trial.state for trial in self.trials]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def read(folders: Sequence[Path], runs: Sequence[Run]) -> Study | None:
    """The study of these runs; None where they are none's, or its table is damaged."""
    record: dict[str, Any] = (
        contents(folders[0] / TABLE, json.loads, {}) if len(folders) == 1 else {}
    )
    try:
        trials = tuple(_trial(row, runs) for row in record["trials"])
        space = {str(key): str(text) for key, text in record["space"].items()}
        return Study(str(record["optimized_metric"]), space, trials)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _trial(row: dict[str, Any], runs: Sequence[Run]) -> Trial:
    params = dict(row["params"])
    own = {f"{key}={value}" for key, value in params.items()}
    names = [run.path.name for run in runs if own <= set(run.overrides)]
    state, value, stopped = str(row["state"]), row["value"], row["stopped_at"]
    return Trial(
        number=int(row["number"]),
        state=SHOWN.get(state, state),
        value=float(value) if is_finite(value) else None,
        stopped_at=int(stopped) if is_finite(stopped) else None,
        params=params,
        run=next(iter(names), ""),
    )


def shown(value: Any) -> str:
    """A number in four digits, a dash for none, other values as they are."""
    if value is None:
        return "-"
    return f"{value:.4g}" if is_finite(value) else str(value)
