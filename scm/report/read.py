"""Runs as they stand on disk, finished, running, failed or damaged, for tables and pages."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml

from scm.config.read import flatten
from scm.core.errors import UserError
from scm.storage.folder import Status

T = TypeVar("T")
# both loaders are safe; the first is ten times faster, where it was compiled in
_yaml = partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
UNREADABLE = "unreadable"
KINDS = {"status": str, "metrics": dict, "quality": dict, "git_commit": str, "device": str}
LARGEST = 1e100  # a number beyond is a damaged one
LARGEST_PICTURE = 400_000  # bytes
NOT_SETTINGS = ("seed", "optimized_metric", "logger")  # by which runs of one setting may differ


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that can be drawn and averaged."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -LARGEST < value < LARGEST


def _finite(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if is_finite(value)}


def contents(file: Path, parse: Callable[[bytes], Any], otherwise: T) -> T:
    """What the file holds; `otherwise` where it is absent, damaged or of another type."""
    try:
        found = parse(file.read_bytes()) if file.is_file() else otherwise
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return otherwise
    return found if isinstance(found, type(otherwise)) else otherwise


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    path: Path
    status: str  # as metrics.json says it; new where there is none yet
    seed: Any  # a number, or as text what stands there instead
    record: dict[str, Any]  # metrics.json
    metrics: dict[str, float]  # the finite numbers of the last evaluation
    failure: str  # the traceback of a failed run
    config: dict[str, Any]  # flat
    overrides: tuple[str, ...]
    command: str

    @property
    def done(self) -> bool:
        """Whether its numbers are final."""
        return self.status == Status.done

    @property
    def broke_at(self) -> int | None:
        """The step at which its tangent had outgrown its past, where it has."""
        step = self.record.get("broke_at")
        return int(step) if is_finite(step) else None

    @property
    def reason(self) -> str:
        """The last line of its traceback."""
        return self.failure.strip().rpartition("\n")[2]

    @property
    def samplers(self) -> dict[str, str]:
        """Names of the samplers in its config, each with its class: `Heun`, or nothing."""
        names = [key.split(".")[1] for key in self.config if key.startswith("sampler.")]
        classes = {name: str(self.config.get(f"sampler.{name}._target_", "")) for name in names}
        return {name: path.rpartition(".")[2] for name, path in classes.items()}

    @cached_property
    def history(self) -> dict[int, dict[str, float]]:
        """metrics.jsonl: finite values by tag, by step; lines that were cut short are left out."""
        found: dict[int, dict[str, float]] = {}
        for line in contents(self.path / "metrics.jsonl", _text, "").splitlines():
            try:
                record = json.loads(line)
                step = record.pop("step")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            if is_finite(step):
                found.setdefault(int(step), {}).update(_finite(record))
        return dict(sorted(found.items()))

    def pictures(self) -> dict[str, bytes]:
        """The newest grid of samples of each sampler, by name.

        A page is shown to others, so it takes no file by its name alone or through a link.
        """
        newest: dict[str, bytes] = {}
        for file in sorted((self.path / "samples").glob("*_????????.png"), reverse=True):
            name = file.stem.rpartition("_")[0]
            wanted = name in self.samplers and name not in newest and not file.is_symlink()
            if wanted and file.stat().st_size <= LARGEST_PICTURE:
                data = contents(file, bytes, b"")
                newest |= {name: data} if data.startswith(b"\x89PNG") else {}
        return dict(sorted(newest.items()))


@dataclass(frozen=True)
class Setting:
    """Runs that differ by their seed alone."""

    label: str
    runs: tuple[Run, ...]

    def values(self, tag: str) -> dict[Any, float]:
        """A metric of its finished runs by seed."""
        return {run.seed: run.metrics[tag] for run in self.runs if run.done and tag in run.metrics}

    def missing(self, tag: str) -> int:
        """How many of its ended runs have no finite number: failed, or diverged."""
        done = [run for run in self.runs if run.done and tag not in run.metrics]
        return len(done) + sum(run.status == Status.failed for run in self.runs)

    def statuses(self) -> str:
        """`2 done, 1 failed, 1 broke`: one of these runs has begun to break."""
        count = Counter(run.status for run in self.runs)
        broke = sum(run.broke_at is not None for run in self.runs)
        words = [f"{n} {status}" for status, n in count.items()]
        return ", ".join([*words, f"{broke} broke"] if broke else words)

    def pictures(self) -> dict[str, bytes]:
        """Those of the first run that has any."""
        return next(filter(None, (run.pictures() for run in self.runs)), {})


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


def _natural(path: Path) -> list[str | float]:
    """Names in the order of the numbers in them, which are every second part."""
    parts = re.split(r"(\d+\.?\d*)", path.name)
    return [float(part) if k % 2 else part for k, part in enumerate(parts)]


def read(folder: Path) -> Run:
    """One run, whatever of it is there."""
    hydra, file = folder / ".hydra", folder / "metrics.json"
    unreadable = {"status": UNREADABLE} if file.exists() else {}
    record: dict[str, Any] = contents(file, json.loads, unreadable)
    record = {k: v for k, v in record.items() if isinstance(v, KINDS.get(k, object))}
    config: dict[str, Any] = contents(hydra / "config.yaml", lambda data: flatten(_yaml(data)), {})
    status, seed = record.get("status", Status.new), config.get("seed", record.get("seed"))
    return Run(
        path=folder,
        status=str(status),
        seed=seed if seed is None or isinstance(seed, int) else str(seed),
        record=record,
        metrics=_finite(record.get("metrics", {})),
        failure=str(record.get("traceback", "")) if status == Status.failed else "",
        config=config,
        overrides=tuple(map(str, contents(hydra / "overrides.yaml", _yaml, []))),
        command=contents(hydra / "command.txt", _text, ""),
    )


def question(folders: Sequence[Path]) -> dict[str, str]:
    """Name, question and command of a sweep, empty where these folders are no single sweep's."""
    file = folders[0] / "sweep.json"
    record: dict[str, Any] = contents(file, json.loads, {}) if len(folders) == 1 else {}
    return {key: str(record.get(key, "")) for key in ("name", "question", "command")}


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Runs by their config without the seed, labelled by the overrides that not all have."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        key = [
            (k, repr(v)) for k, v in run.config.items() if k.partition(".")[0] not in NOT_SETTINGS
        ]
        groups.setdefault(tuple(key) or run.path, []).append(run)
    given = [set(run.overrides) for run in runs if run.overrides]
    shared = set.intersection(*given) if given else set()
    keys = {override.partition("=")[0] for overrides in given for override in overrides - shared}
    taken: Counter[str] = Counter()
    made = []
    for members in groups.values():
        own = [o for o in members[0].overrides if o not in shared and not o.startswith("seed=")]
        alone = members[0].path.name if len(groups) > 1 else "all runs"
        label = ", ".join(_readable(override, keys) for override in own) or alone
        taken[label] += 1
        label += f" ({taken[label]})" if taken[label] > 1 else ""
        made.append(Setting(label, tuple(members)))
    return made


def _readable(override: str, keys: set[str]) -> str:
    """Its key's last part where no other of `keys` ends so; a search's numbers in four digits."""
    key, equals, value = override.partition("=")
    last = re.split("[./]", key)[-1]
    alone = sum(re.split("[./]", other)[-1] == last for other in keys) == 1
    value = re.sub(r"-?\d*\.\d{5,}(?:e[+-]?\d+)?", lambda number: f"{float(number[0]):.4g}", value)
    return f"{last if alone else key}{equals}{value}"
