"""Finished, running and failed runs as they stand on disk, for tables and pages. No torch.

Reads metrics.json, metrics.jsonl and .hydra; a file that is missing or cut short is no error.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from scm.errors import UserError
from scm.runfolder import Status, flatten

# safe ones both; the first is ten times faster, where it was compiled in
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
UNREADABLE = "unreadable"
KINDS: dict[str, type | tuple[type, ...]] = {  # of a record's values that are computed with
    "status": str,
    "metrics": dict,
    "quality": dict,
    "seconds": (int, float),
    "git_commit": str,
    "device": str,
}
LARGEST = 1e100  # a number beyond is a damaged one
PNG = b"\x89PNG"
NOT_SETTINGS = ("seed", "optimized_metric")  # by which runs of one setting may differ


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path
    record: dict[str, Any]  # metrics.json
    config: dict[str, Any]  # flat
    overrides: tuple[str, ...]
    command: str

    @property
    def status(self) -> str:
        """As metrics.json says it; new where there is none yet."""
        return str(self.record.get("status", Status.new))

    @property
    def done(self) -> bool:
        """Whether its numbers are final."""
        return self.status == Status.done

    @property
    def ended(self) -> bool:
        """Whether it will give no more numbers: done or failed."""
        return self.status in (Status.done, Status.failed)

    @property
    def seed(self) -> Any:
        """The run's seed."""
        seed = self.config.get("seed", self.record.get("seed"))
        return seed if seed is None or isinstance(seed, int) else str(seed)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The finite numbers of its last evaluation."""
        found = self.record.get("metrics") or {}
        return {tag: value for tag, value in found.items() if _is_finite(value)}

    @property
    def failure(self) -> str:
        """The traceback of a failed run."""
        return str(self.record.get("traceback", "")) if self.status == Status.failed else ""

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """What makes runs one setting: the config but for the seed."""
        return tuple((k, repr(v)) for k, v in self.config.items() if k not in NOT_SETTINGS)

    @cached_property
    def history(self) -> dict[int, dict[str, float]]:
        """metrics.jsonl: finite values by tag, by step."""
        found: dict[int, dict[str, float]] = {}
        try:
            lines = (self.path / "metrics.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                record = json.loads(line)
                step = int(record.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):  # cut short
                continue
            found.setdefault(step, {}).update({k: v for k, v in record.items() if _is_finite(v)})
        return found

    def pictures(self) -> dict[str, Path]:
        """The newest sample grid of each sampler, by name."""
        found: dict[str, Path] = {}
        for file in sorted((self.path / "samples").glob("*_????????.png")):
            if _is_picture(file):
                found[file.stem.rpartition("_")[0]] = file
        return {name: file for name, file in found.items() if name in self.samplers}

    @property
    def samplers(self) -> list[str]:
        """Names of the samplers in its config, in their order."""
        keys = [key.split(".")[1] for key in self.config if key.startswith("sampler.")]
        return list(dict.fromkeys(keys))

    def kind(self, sampler: str) -> str:
        """The class of one of them: `Heun`; empty where its config does not say."""
        return str(self.config.get(f"sampler.{sampler}._target_", "")).rpartition(".")[2]


@dataclass(frozen=True)
class Setting:
    """Runs that differ by their seed alone."""

    label: str
    runs: tuple[Run, ...]

    def values(self, tag: str) -> dict[Any, float]:
        """A metric of its finished runs by seed."""
        return {run.seed: run.metrics[tag] for run in self.runs if run.done and tag in run.metrics}

    def statuses(self) -> str:
        """`2 done, 1 failed`."""
        count: dict[str, int] = {}
        for run in self.runs:
            count[run.status] = count.get(run.status, 0) + 1
        return ", ".join(f"{n} {status}" for status, n in count.items())


def _is_finite(value: Any) -> bool:
    """Whether it is a number that can be drawn and averaged."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -LARGEST < value < LARGEST


def _is_picture(file: Path) -> bool:
    """A page is shown to others: it takes no file by its name alone, or from where a link leads."""
    try:
        with file.open("rb") as opened:
            return not file.is_symlink() and opened.read(len(PNG)) == PNG
    except OSError:
        return False


def is_run(path: Path) -> bool:
    """Whether a run has begun in this folder."""
    return (path / "metrics.json").exists() or (path / ".hydra" / "config.yaml").exists()


def found(paths: Iterable[Path]) -> list[Run]:
    """The runs in these folders, each a run's or one that holds runs' (a sweep's).

    Raises UserError for a path without any.
    """
    folders: list[Path] = []
    for path in paths:
        inside = [path] if is_run(path) else sorted(filter(is_run, path.glob("*/")), key=_natural)
        if not inside:
            raise UserError(f"{path}: no run, and no folder of runs")
        folders += inside
    return [read(folder) for folder in dict.fromkeys(folders)]


def _natural(path: Path) -> list[tuple[int, float, str]]:
    """Names in the order of the numbers in them."""
    return [_ordered(part) for part in path.name.replace(",", "=").split("=")]


def _ordered(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


def read(folder: Path) -> Run:
    """One run, whatever of it is there."""
    try:
        record = json.loads((folder / "metrics.json").read_text())
    except FileNotFoundError:
        record = {}
    except (OSError, ValueError):
        record = {"status": UNREADABLE}
    hydra = folder / ".hydra"
    overrides = _yaml(hydra / "overrides.yaml")
    try:
        command = (hydra / "command.txt").read_text().strip()
    except OSError:
        command = ""
    return Run(
        path=folder,
        record=_usable(record) if isinstance(record, dict) else {"status": UNREADABLE},
        config=flatten(_yaml(hydra / "config.yaml") or {}),
        overrides=tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        command=command,
    )


def _usable(record: dict[str, Any]) -> dict[str, Any]:
    """Without values of another kind than a run writes."""
    return {k: v for k, v in record.items() if isinstance(v, KINDS.get(k, object))}


def _yaml(file: Path) -> Any:
    try:
        return yaml.load(file.read_text(), Loader=YAML)  # nosec B506
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None


def _readable(override: str, keys: set[str]) -> str:
    """Its key's last part where no other of `keys` ends so; a search's numbers in four digits."""
    key, equals, value = override.partition("=")
    last = re.split("[./]", key)[-1]
    alone = sum(re.split("[./]", other)[-1] == last for other in keys) == 1
    digits = r"-?\d*\.\d{5,}(?:e[+-]?\d+)?"
    value = re.sub(digits, lambda found: f"{float(found[0]):.4g}", value)
    return f"{last if alone else key}{equals}{value}"


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Runs by their config without the seed, labelled by the overrides that not all have."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key or str(run.path), []).append(run)
    given = [set(run.overrides) for run in runs if run.overrides]
    shared = set.intersection(*given) if given else set()
    keys = {override.partition("=")[0] for overrides in given for override in overrides - shared}
    labelled: dict[str, int] = {}
    made = []
    for members in groups.values():
        own = [o for o in members[0].overrides if o not in shared and not o.startswith("seed=")]
        label = ", ".join(_readable(override, keys) for override in own) or (
            members[0].path.name if len(groups) > 1 else "all runs"
        )
        labelled[label] = labelled.get(label, 0) + 1
        if labelled[label] > 1:
            label = f"{label} ({labelled[label]})"
        made.append(Setting(label, tuple(members)))
    return made
