"""What is timed: real training steps, forward passes, sampling and batches, built as `run.py` does.

Nothing of a step is written anew here, but for `naive_jvp`, which exists to be compared with.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark import growth, runs
from benchmark.timing import Label, Work
from scm.commands import report
from scm.config import rules
from scm.config.compose import CONF, composed
from scm.config.read import plain
from scm.config.schema import Config
from scm.data.dataset import Dataset
from scm.method import trigflow
from scm.method.objective import Eulerian
from scm.method.tangent import JVPS, Jvp, differentiable_attention
from scm.storage import store
from scm.storage.folder import RunFolder
from scm.storage.model import Model
from scm.training.assemble import Assembly, assemble
from scm.training.loop import train_steps


def naive_jvp(
    fn: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Any, Any]:
    """The starting scripts' way: one `torch.func.jvp` that records the tangent as well."""
    with differentiable_attention():
        result = torch.func.jvp(fn, primals, tangents)
    return result[0], result[1]


FORMS: dict[str, Jvp] = {**{name.value: jvp for name, jvp in JVPS.items()}, "naive": naive_jvp}
STEPS: dict[str, tuple[str, str | None]] = {  # case -> option of conf/objective, form of tangent
    "diffusion": ("diffusion", None),
    "sct dual": ("sct", "dual"),
    "sct split": ("sct", "split"),
    "sct naive": ("sct", "naive"),
    "scd dual": ("scd", "dual"),
}
MATCHED = "scd, matching=dmd"
CHOICES = {MATCHED: ("objective=scd", "matching=dmd")}  # of cases that are more than an objective
METHODS = [
    *sorted(option.stem for option in (CONF / "objective").glob("*.yaml")),  # each as it is
    MATCHED,
]
UNCOMPILED_FORMS = ("split", "naive")  # torch.func.jvp and torch.compile do not go together


def step_cases(forms: Sequence[str]) -> list[str]:
    """The training steps whose form of the tangent, if they have one, is among `forms`."""
    return [case for case, (_, form) in STEPS.items() if form is None or form in forms]


class Workshop:
    """Builds work from composed configs. One data set serves all; `folder` holds the teachers."""

    def __init__(self, device: str, overrides: Sequence[str], folder: Path) -> None:
        self.device = device
        self.overrides = list(overrides)
        self.folder = folder
        self._dataset: Dataset | None = None

    def composed(self, label: Label, *choices: str) -> Config:
        """The checked config of a run with these choices. UserError where there is none such."""
        overrides = [
            *self.overrides,
            f"model={label.model}",
            f"trainer.precision={label.precision}",
            f"trainer.device={self.device}",
            f"trainer.batch_size={label.batch_size}",
            *([f"trainer.compile={label.compiled}"] if label.compiled else []),
            *growth.overrides(label, self.folder),
            *choices,
        ]
        config = composed(overrides)
        needs_teacher = config.objective.velocity.needs_teacher
        teacher = str(self._teacher(label)) if needs_teacher else None
        # shipped weights are of one model alone
        objective = replace(config.objective, init=None, teacher=teacher)
        return rules.check(replace(config, objective=objective))

    def parts(self, label: Label, *choices: str) -> Assembly:
        """The parts of a run as `run.py` would build them; nothing is written."""
        config = self.composed(label, *choices)
        folder = RunFolder(self.folder / "run")
        parts = assemble(config, folder, teacher=config.objective.teacher)
        if label.grows == growth.SIDE:  # of its own images
            return parts
        self._dataset = self._dataset or parts.task.dataset
        return replace(parts, task=replace(parts.task, dataset=self._dataset))

    def _teacher(self, label: Label) -> Path:
        """A file with a network of the same make: how good it is does not matter here."""
        path = self.folder / f"{label.model}.safetensors"
        if not path.exists():
            parts = self.parts(label, "objective=diffusion")
            store.save_weights(path, parts.learner.net.state_dict(), plain(parts.config))
        return path

    def step(self, label: Label) -> Work:
        """A step of training, from the batch to the optimiser and the averaged weights."""
        objective, form = STEPS.get(label.case, (label.case, None))
        parts = self.parts(label, *CHOICES.get(label.case, (f"objective={objective}",)))
        if form is not None:
            assert isinstance(parts.task.objective, Eulerian)
            parts.task.objective.derivative.jvp = FORMS[form]  # type: ignore[attr-defined]
        steps = train_steps(parts.learner, parts.task, lambda: 0.0, parts.score)
        # a compiled step's FLOPs are not to be seen: they are the eager step's
        return Work(lambda: next(steps), images=label.batch_size, counted=not label.compiled)

    def forward(self, label: Label) -> Work:
        """The averaged network's value for one batch of noisy images, without gradients."""
        parts = self.parts(label, "objective=diffusion")
        net, objective, draw = parts.learner.ema.net, parts.task.objective, parts.task.draw(0)
        x = trigflow.interpolate(draw.x0, draw.z, draw.t) / objective.sigma_data

        @torch.no_grad()
        def call() -> None:
            net(x, draw.t, draw.label)

        return Work(call, images=label.batch_size, counted=True)

    def sampling(self, label: Label, name: str, n: int) -> Work:
        """n images of the sampler `name`, from noise drawn on the CPU back to the CPU."""
        parts = self.parts(label, "objective=diffusion", f"sampler=[{name}]")
        model = Model(parts.learner.ema.net, parts.config, parts.device)
        sampler = parts.evaluator.samplers[name]

        def call() -> None:
            model.sample(n, sampler=sampler, seed=0, batch_size=label.batch_size)

        return Work(call, images=n)

    def batch(self, label: Label) -> Work:
        """A step's images and labels alone."""
        task, steps = self.parts(label, "objective=diffusion").task, count()
        size = label.batch_size
        return Work(lambda: task.dataset.batch(task.seed, next(steps), size), size)

    def draw(self, label: Label) -> Work:
        """A step's images, labels, noise and times."""
        task, steps = self.parts(label, "objective=diffusion").task, count()
        return Work(lambda: task.draw(next(steps)), label.batch_size)

    def random_batch(self, label: Label) -> Work:
        """A batch out of so many random images: of a known epoch, or the first one of another."""
        images, size = growth.dataset(label.at), label.batch_size
        each = max(1, label.at // size) + 1 if label.case == growth.ORDER else 1
        steps = count(0, each)
        return Work(lambda: images.batch(0, next(steps), size), size)

    def report(self, n: int) -> Work:
        """The tables and the page of a sweep of n runs, from their folders to the four files."""
        folder = self.folder / "sweep"
        runs.write_sweep(folder, n, composed(self.overrides))
        return Work(lambda: report.write([folder], folder))
