"""sCM: few-step generative models, to train and to take apart, from Python.

    import scm

    model = scm.load("mnist_scd")              # a shipped model, a run's folder or a file
    images = model.sample(64, steps=2)         # (64, 1, 28, 28) about in [-0.5, 0.5]
    run = scm.train(["objective=scd", "trainer.budget.steps=300"], folder="outputs/try")
    table = scm.runs("outputs")                # a dict per run, as pandas takes them

Mistakes are `scm.UserError`, in one line. What is heavy is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm.core.errors import UserError

if TYPE_CHECKING:
    from scm.report.read import Run
    from scm.storage.model import Model

__all__ = ["UserError", "load", "runs", "train"]
__version__ = "0.1.0"


def load(name: str | Path, *, device: str = "auto", precision: str = "auto") -> Model:
    """A trained network: a shipped model by its name, a run's folder, or a file of weights.

    Args:
        device: auto, cpu, cuda or mps; auto takes the first of cuda, mps and cpu that is there.
        precision: auto, fp32 or bf16, what its inner layers compute in.

    Raises UserError where there is none, or it is damaged, or a device is not there.
    """
    from scm.core import machine
    from scm.storage import model, store

    on = machine.find_device(device)
    return model.load(store.named(name), on, machine.find_dtype(precision, on))


def train(overrides: Sequence[str] = (), *, folder: str | Path) -> Run:
    """Train as `python run.py OVERRIDES hydra.run.dir=FOLDER` does, or go on in that folder.

    Returns the run as `runs` would read it: its status, metrics, configuration and history.
    Raises UserError where the overrides or the folder are impossible; nothing is written then.
    """
    from scm.commands.train import from_python
    from scm.report import read

    from_python(overrides, Path(folder))
    return read.read(Path(folder))


def runs(*folders: str | Path) -> list[dict[str, Any]]:
    """The runs in these folders (`outputs`, unless others are named), a flat dict for each.

    A folder is a run's, or holds runs or sweeps. Keys are `run`, `status`, what metrics.json
    records, the last evaluation's metrics by their tags, and the configuration's keys.
    """
    from scm.report import read

    found = read.found([Path(folder) for folder in folders or ("outputs",)])
    return [
        {
            "run": str(run.path),
            "status": run.status,
            **{key: value for key, value in run.record.items() if not isinstance(value, dict)},
            **run.metrics,
            **run.config,
        }
        for run in found
    ]
