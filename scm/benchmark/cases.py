"""What is timed: real training steps, forward passes, sampling and batches, built as `run.py` does.

Nothing of a step is written anew here, but for `naive_jvp`, which exists to be compared with.
"""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm import assembly, build, checkpoint, report, samplers, trigflow, validate
from scm.benchmark import runs
from scm.benchmark.timing import Label, Work
from scm.composing import composed
from scm.data import Dataset
from scm.experiment import Experiment
from scm.objectives import Continuous, Draw
from scm.runfolder import RunFolder
from scm.tangent import JVPS, Jvp
from scm.train import draw_for_step, train_steps


def naive_jvp(
    fn: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Any, Any]:
    """The seed's way: one `torch.func.jvp` with gradients on, which records the tangent as well."""
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

    def composed(self, label: Label, *choices: str) -> dict[str, Any]:
        """The checked config of a run with these choices. UserError where there is none such."""
        overrides = [
            *self.overrides,
            f"model={label.model}",
            f"trainer.precision={label.precision}",
            f"trainer.device={self.device}",
            f"trainer.batch_size={label.batch_size}",
            *([f"trainer.compile={label.compiled}"] if label.compiled else []),
            *choices,
        ]
        config = composed(overrides)
        if "init" in config["objective"]:
            config["objective"]["init"] = None  # shipped weights are of one model alone
        if "teacher" in config["objective"]:
            config["objective"]["teacher"] = str(self._teacher(label))
        validate.check(config)
        return config

    def experiment(self, label: Label, *choices: str) -> Experiment:
        """The whole experiment as `run.py` would build it; nothing of it is written."""
        config = self.composed(label, *choices)
        experiment = assembly.experiment(
            config,
            RunFolder(self.folder / "run"),
            config_text="",
            teacher=config["objective"].get("teacher"),
        )
        self._dataset = experiment.dataset = self._dataset or experiment.dataset
        return experiment

    def _teacher(self, label: Label) -> Path:
        """A file with a network of the same make: how good it is does not matter here."""
        path = self.folder / f"{label.model}.safetensors"
        if not path.exists():
            experiment = self.experiment(label, "objective=diffusion")
            checkpoint.save_weights(path, experiment.net.state_dict(), experiment.config)
        return path

    def step(self, label: Label) -> Work:
        """A step of training, from the batch to the optimiser and the averaged weights."""
        objective, form = STEPS[label.case]
        experiment = self.experiment(label, f"objective={objective}")
        if form is not None:
            assert isinstance(experiment.objective, Continuous)
            experiment.objective.jvp = FORMS[form]
        steps = train_steps(
            experiment.state,
            experiment.objective,
            experiment.dataset,
            trainer=experiment.trainer,
            learning_rate=experiment.config["optimizer"]["lr"],
            seed=experiment.config["seed"],
            labels=experiment.evaluator.labels,
            world=experiment.world,
            progress=lambda: 0.0,
        )
        # a compiled step's FLOPs are not to be seen: they are the eager step's
        return Work(lambda: next(steps), images=label.batch_size, counted=not label.compiled)

    def forward(self, label: Label) -> Work:
        """The averaged network's value for one batch of noisy images, without gradients."""
        experiment = self.experiment(label, "objective=diffusion")
        net, objective, draw = experiment.state.ema.net, experiment.objective, _draw(experiment, 0)
        x = trigflow.interpolate(draw.x0, draw.z, draw.t) / objective.sigma_data

        @torch.no_grad()
        def call() -> None:
            net(x, draw.t, draw.label)

        return Work(call, images=label.batch_size, counted=True)

    def sampling(self, label: Label, name: str, n: int) -> Work:
        """n images of the sampler `name`, from noise drawn on the CPU back to the CPU."""
        experiment = self.experiment(label, "objective=diffusion", f"sampler=[{name}]")
        dataset = experiment.dataset
        settings = experiment.config["sampler"][name]
        sampler = build.sampler(settings, name, dataset.sigma_data)
        labels = torch.arange(n) % dataset.num_classes if experiment.evaluator.labels else None

        def call() -> None:
            batches = samplers.draw(
                sampler,
                experiment.state.ema.net,
                n,
                seed=0,
                image_shape=dataset.image_shape,
                sigma_data=dataset.sigma_data,
                device=experiment.device,
                batch_size=label.batch_size,
                labels=labels,
            )
            for _ in batches:
                pass

        return Work(call, images=n)

    def batch(self, label: Label) -> Work:
        """A step's images and labels alone."""
        experiment, steps = self.experiment(label, "objective=diffusion"), count()
        dataset, seed = experiment.dataset, experiment.config["seed"]
        return Work(lambda: dataset.batch(seed, next(steps), label.batch_size), label.batch_size)

    def draw(self, label: Label) -> Work:
        """A step's images, labels, noise and times."""
        experiment, steps = self.experiment(label, "objective=diffusion"), count()
        return Work(lambda: _draw(experiment, next(steps)), label.batch_size)

    def report(self, n: int) -> Work:
        """The tables and the page of a sweep of n runs, from their folders to the four files."""
        folder = self.folder / "sweep"
        runs.write_sweep(folder, n, composed(self.overrides))
        return Work(lambda: report.write([folder], folder))


def _draw(experiment: Experiment, step: int) -> Draw:
    return draw_for_step(
        experiment.objective,
        experiment.dataset,
        seed=experiment.config["seed"],
        step=step,
        batch_size=experiment.trainer.batch_size,
        labels=experiment.evaluator.labels,
    )
