"""A model's tangents along trajectories, as numbers and pictures: `python -m scm diagnose RUN`.

The trajectories belong to an ODE: the teacher's, a diffusion model's own, the toy's exact one. For
consistency training without a teacher they are lines between data and noise. All in float32.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scm.commands import options
from scm.config.methods import GuidedTeacherVelocity
from scm.config.parts import Kind
from scm.config.schema import Config, Facts
from scm.core.cli import Parser, check_count, command
from scm.core.errors import UserError
from scm.core.files import write_json
from scm.evaluation import pictures, trajectories
from scm.evaluation.pictures import Lines, Panel
from scm.evaluation.toy import Toy
from scm.evaluation.trajectories import ExactOde, LearnedOde, Measured, Pairs
from scm.method.samplers import Heun
from scm.storage import model as models
from scm.storage.boards import TensorBoard
from scm.storage.model import Model

OUT = "diagnostics"  # the folder in the run's, and the numbers' file in it
LARGEST = 4096  # trajectories, which are followed all at once, and times


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write; a user's mistake is one line and exit code 2."""
    p = Parser(
        prog="python -m scm diagnose",
        description="Tangent norms and consistency errors along trajectories of the ODE.",
        epilog="example: python -m scm diagnose outputs/sct --teacher outputs/teacher",
    )
    p.add_argument("model", help="a run's folder or a safetensors file")
    p.add_argument(
        "--teacher", help="a diffusion model whose ODE to follow (default: the run's own teacher)"
    )
    p.add_argument("-n", type=int, default=16, help="trajectories (default: %(default)s)")
    p.add_argument(
        "--steps", type=int, default=20, help="of the Karras grid; as many even times join them"
    )
    p.add_argument("--label", type=int, help="class that a conditional model is to make (0)")
    p.add_argument("--out", type=Path, help=f"folder to write into (default: the run's {OUT}/)")
    options.add(p, "--seed", "--device", "--overwrite")
    command(p, diagnose, argv)


def diagnose(arguments: argparse.Namespace) -> None:
    """Write what `arguments` ask for: diagnostics.json, PNGs, TensorBoard's file."""
    out = _out_folder(arguments)
    followed = subject(arguments, options.chosen_device(arguments))
    path, model = followed.path, followed.model
    points = trajectories.states(path, followed.start, followed.times)
    measured = trajectories.measure(
        model.net,
        path,
        tqdm(points, total=len(followed.times), unit="time", desc="diagnose"),
        label=followed.label,
        sigma_data=model.sigma_data,
    )
    out.mkdir(parents=True, exist_ok=True)
    board = TensorBoard(folder=out, step=0, config={"path": followed.name})
    for tag, picture in figures(followed, measured).items():
        pictures.save_png(out / f"{tag}.png", picture)
        board.picture(0, tag, picture)
    board.close()
    numbers = {
        "model": arguments.model,
        "teacher": followed.teacher,
        "path": followed.name,
        "n": arguments.n,
        "seed": arguments.seed,
        "times": records(measured, model.sigma_data, is_ode=path.is_ode),
    }
    write_json(out / f"{OUT}.json", numbers)


def records(measured: Measured, sigma_data: float, *, is_ode: bool) -> list[dict[str, Any]]:
    """One record per time: root mean squares over all images and their values."""
    t = measured.t.double()
    columns = {
        "t": t,
        "sigma": sigma_data * t.tan(),
        "tangent_rms_jvp": _pooled(measured.jvp),
        "tangent_rms_discrete": _pooled(measured.discrete),
        "relative_difference": _pooled(measured.difference) / _pooled(measured.jvp),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    errors = _pooled(measured.from_end).tolist() if is_ode else [None] * len(t)
    return [
        {**dict(zip(columns, row, strict=True)), "consistency_rms": error}
        for row, error in zip(rows, errors, strict=True)
    ]


@dataclass(frozen=True)
class Subject:
    """What is looked at: a network, and the trajectories along which."""

    model: Model
    toy: Toy | None  # compares it with what is exact
    path: trajectories.Path
    name: str  # of the path, in words
    start: Tensor  # (n, C, H, W) x_T
    times: list[float]  # falling from T to 0
    label: Tensor | None  # (n,) classes of a conditional model
    teacher: str | None  # the file or folder of the model whose ODE it is, unless its own


def subject(arguments: argparse.Namespace, device: torch.device) -> Subject:
    """Load the model, and choose what to follow: an ODE, or pairs where there is none."""
    model = models.load(arguments.model, device, torch.float32)
    facts, sd, n = model.facts, model.sigma_data, arguments.n
    labels = model.labels(
        n, 0 if facts.model.num_classes and not arguments.label else arguments.label
    )
    label = None if labels is None else labels.to(device)
    heun = Heun(steps=arguments.steps, sigma_data=sd)
    start = trajectories.start_noises(n, model.image_shape, sigma_data=sd, seed=arguments.seed)
    start = start.to(device)
    dataset = models.stored_dataset
    toy, learned = None, facts.objective
    if model.image_shape == (1, 1, 1) and label is None and (exact := dataset(facts.data).exact):
        toy = Toy(exact, learned.name, learned.learns, arguments.seed, device)
    teacher = _teacher_of(arguments, facts)
    path: trajectories.Path
    if teacher:
        load = partial(models.load_fitting, config=facts, device=device, dtype=torch.float32)
        theirs, name = load(teacher, "--teacher", to_distil=True), "the teacher's ODE"
        if isinstance(velocity := learned.velocity, GuidedTeacherVelocity):
            guide = load(velocity.guide, "its guide", to_distil=True, or_classless=True)
            theirs = theirs.guided_by(guide, velocity.guidance, velocity.below)
            name = "the guided teacher's ODE"
        path = LearnedOde(theirs.net, label, heun)
    elif learned.learns is Kind.velocity:
        path, name = LearnedOde(model.net, label, heun), "the model's own ODE"
    elif toy:
        path, name = ExactOde(toy.exact), "the exact ODE"
    else:
        if arguments.label is not None:
            raise UserError(f"--label {arguments.label}: without a teacher, images have their own")
        x0, own = dataset(facts.data).test_batch(n)
        path, name = Pairs(x0.to(device), start), "lines between data and noise"
        label = None if label is None else own.to(device)
        start = path.move(start, 0.0, heun.times[0])
    times = trajectories.fine_times(heun)
    return Subject(model, toy, path, name, start, times, label, teacher)


def _teacher_of(arguments: argparse.Namespace, facts: Config | Facts) -> str | None:
    """The teacher asked for; else the one that the run was distilled from."""
    if arguments.teacher:
        return arguments.teacher
    own = models.teacher_path(Path(arguments.model), facts)
    if own is not None and not own.exists():
        raise UserError(f"{arguments.model}: its teacher is not at {own}; add --teacher RUN")
    return None if own is None else str(own)


def _out_folder(arguments: argparse.Namespace) -> Path:
    check_count("-n", arguments.n, 2, LARGEST)
    check_count("--steps", arguments.steps, 2, LARGEST)
    model = Path(arguments.model)
    if arguments.out is None and model.is_file():
        raise UserError(f"{model}: a file; name the folder to write into with --out")
    out = arguments.out or model / OUT
    if out.is_file():
        raise UserError(f"--out {out}: a file; name a folder")
    if (out / f"{OUT}.json").exists() and not arguments.overwrite:
        raise UserError(f"{out / OUT}.json: exists; name another folder, or add --overwrite")
    return out


def _pooled(values: Tensor) -> Tensor:
    """(T, N) -> (T,): the root mean square over the images."""
    return values.square().mean(1).sqrt()


def figures(followed: Subject, measured: Measured) -> dict[str, np.ndarray]:
    """The gradient map, its means over time, and for the toy the comparison with what is exact."""
    start, is_toy = followed.start, followed.model.image_shape == (1, 1, 1)
    tangent = [
        Lines("JVP", _pooled(measured.jvp)),
        Lines("discrete", _pooled(measured.discrete), "--"),
        Lines("their difference", _pooled(measured.difference), ":"),
    ]
    error = [Lines("f(x_t, t)", _pooled(measured.from_end))]
    panels = [
        Panel("tangent g = cos(t) df/dt", "RMS per pixel and radian", tangent, logarithmic=True),
        Panel(
            "consistency error: f(x_t, t) less the ODE's end",
            "RMS per pixel (the data's units)",
            error,
            logarithmic=True,
        ),
    ]
    made = {
        "gradient_map": pictures.compared_maps(
            measured.t,
            start.flatten().cpu() if is_toy else torch.linspace(0, 90, len(start)),
            {"JVP": measured.jvp.T, "discrete": measured.discrete.T},
            xlabel=pictures.TIME,
            ylabel="x_T (the data's units)" if is_toy else "from one noise to another (degrees)",
            unit="RMS per pixel and radian",
            title=f"norm of the tangent g = cos(t) df/dt along {followed.name}",
        ),
        "tangent_over_time": pictures.over_time(
            measured.t, panels if followed.path.is_ode else panels[:1], f"along {followed.name}"
        ),
    }
    return made | followed.toy.pictures(followed.model.net) if followed.toy else made
