"""What is timed: real training steps, forward passes, sampling and batches, built as `run.py` does.

Nothing of a step is written anew here, but for `naive_jvp`, which exists to be compared with.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from scm import build, checkpoint, config, samplers, trigflow, validate
from scm.benchmark.timing import Label, Work
from scm.data import Dataset
from scm.errors import UserError
from scm.experiment import Experiment
from scm.objectives import SCD, Consistency, Draw
from scm.runfolder import RunFolder
from scm.tangent import JVPS, Jvp
from scm.train import draw_for_step, train_steps

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


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
COMPILE_MODES = {"default": "default", "cuda_graphs": "reduce-overhead"}  # torch's names
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
            *choices,
        ]
        config.register()
        try:
            with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
                composed = config.plain(compose("config", overrides=overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None
        if "teacher" in composed["objective"]:
            composed["objective"]["teacher"] = str(self._teacher(label))
        validate.check(composed)
        return composed

    def experiment(self, label: Label, *choices: str) -> Experiment:
        """The whole experiment as `run.py` would build it; nothing of it is written."""
        composed = self.composed(label, *choices)
        experiment = build.experiment(
            composed,
            RunFolder(self.folder / "run"),
            config_text="",
            teacher=composed["objective"].get("teacher"),
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
            assert isinstance(experiment.objective, Consistency)
            experiment.objective.jvp = FORMS[form]
        steps = train_steps(
            experiment.state,
            experiment.objective,
            experiment.dataset,
            trainer=experiment.trainer,
            learning_rate=experiment.config["optimizer"]["lr"],
            seed=experiment.config["seed"],
            labels=experiment.evaluator.labels,
            progress=lambda: 0.0,
        )
        return _network_work(lambda: next(steps), label, experiment)

    def forward(self, label: Label) -> Work:
        """The averaged network's value for one batch of noisy images, without gradients."""
        experiment = self.experiment(label, "objective=diffusion")
        net, objective, draw = experiment.state.ema.net, experiment.objective, _draw(experiment, 0)
        x = trigflow.interpolate(draw.x0, draw.z, draw.t) / objective.sigma_data

        @torch.no_grad()
        def call() -> None:
            net(x, draw.t, draw.label)

        return _network_work(call, label, experiment)

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


def _draw(experiment: Experiment, step: int) -> Draw:
    return draw_for_step(
        experiment.objective,
        experiment.dataset,
        seed=experiment.config["seed"],
        step=step,
        batch_size=experiment.trainer.batch_size,
        labels=experiment.evaluator.labels,
    )


def _network_work(call: Callable[[], Any], label: Label, experiment: Experiment) -> Work:
    mode = label.compiled
    compiling = partial(compile_in_place, experiment, COMPILE_MODES[mode]) if mode else None
    return Work(call, images=label.batch_size, counted=True, compile=compiling)


def compile_in_place(experiment: Experiment, mode: str) -> None:
    """Compile the networks where they stand, and the pass that carries the tangent as a whole."""
    torch._dynamo.config.recompile_limit = 1000  # beyond it, further networks would stay eager
    objective = experiment.objective
    experiment.state.net.compile(mode=mode)
    experiment.state.ema.net.compile(mode=mode)
    if isinstance(objective, Consistency):
        objective.jvp = torch.compile(objective.jvp, mode=mode)
    if isinstance(objective, SCD):
        objective.teacher.compile(mode=mode)
