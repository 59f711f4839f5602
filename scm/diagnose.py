"""A model's tangents along trajectories, as numbers and pictures: `python -m scm.diagnose RUN`.

The trajectories belong to an ODE: the teacher's, a diffusion model's own, the toy's exact one. For
consistency training without a teacher they are lines between data and noise. All in float32.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scm import build, pictures, plots, runtime, trajectories
from scm.cli import Parser, check_count, mistakes_in_one_line
from scm.config import Device
from scm.data import Dataset
from scm.errors import UserError
from scm.files import write_json
from scm.logger import Logger
from scm.plots import Lines, Panel
from scm.sample import labels_for
from scm.samplers import Heun
from scm.subjects import teacher_path
from scm.toy import Toy
from scm.trajectories import ExactOde, LearnedOde, Measured, Pairs

OUT = "diagnostics"  # the folder in the run's, and the numbers' file in it
GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}  # Karras et al. 2022
LARGEST = 4096  # trajectories, which are followed all at once, and times
STEP = 0.01  # radians between the two ends of the discrete difference


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="python -m scm.diagnose",
        description="Tangent norms and consistency errors along trajectories of the ODE.",
        epilog="example: python -m scm.diagnose outputs/sct --teacher outputs/teacher",
    )
    p.add_argument("model", help="a run's folder, a checkpoint or a safetensors file")
    p.add_argument(
        "--teacher", help="a diffusion model whose ODE to follow (default: the run's own teacher)"
    )
    p.add_argument("-n", type=int, default=16, help="trajectories (default: %(default)s)")
    p.add_argument(
        "--steps", type=int, default=20, help="of the Karras grid; as many even times join them"
    )
    p.add_argument("--seed", type=int, default=0, help="of the noises (default: %(default)s)")
    p.add_argument("--label", type=int, help="class that a conditional model is to make (0)")
    p.add_argument("--out", type=Path, help=f"folder to write into (default: the run's {OUT}/)")
    p.add_argument("--device", choices=[d.name for d in Device], default="auto")
    p.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return p


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write; a user's mistake is one line and exit code 2."""
    arguments = parser().parse_args(argv)
    with mistakes_in_one_line():
        diagnose(arguments)


def diagnose(arguments: argparse.Namespace) -> None:
    """Write what `arguments` (of `parser`) ask for: diagnostics.json, PNGs, TensorBoard's file."""
    out = _out_folder(arguments)
    runtime.prepare(None)
    device = runtime.find_device(Device[arguments.device])
    looked_at = subject(arguments, device)
    path, sigma_data = looked_at.path, looked_at.trained.sigma_data
    points = trajectories.states(path, looked_at.start, looked_at.times)
    measured = trajectories.measure(
        looked_at.trained.net,
        path,
        tqdm(points, total=len(looked_at.times), unit="time", desc="diagnose"),
        step=STEP,
        label=looked_at.label,
        sigma_data=sigma_data,
    )
    out.mkdir(parents=True, exist_ok=True)
    logger = Logger(out, step=0, config_text=f"path: {looked_at.name}")
    for tag, picture in figures(looked_at, measured, arguments.seed, device).items():
        pictures.save_png(out / f"{tag}.png", picture)
        logger.picture(0, tag, picture)
    logger.close()
    facts = {"model": arguments.model, "teacher": looked_at.teacher, "path": looked_at.name}
    numbers = records(measured, sigma_data, is_ode=path.is_ode)
    write_json(
        out / f"{OUT}.json", {**facts, "n": arguments.n, "seed": arguments.seed, "times": numbers}
    )


def records(
    measured: Measured, sigma_data: float, *, is_ode: bool
) -> list[dict[str, float | None]]:
    """One record per time: root mean squares over all images and their values."""
    columns = {
        "tangent_rms_jvp": _pooled(measured.jvp),
        "tangent_rms_discrete": _pooled(measured.discrete),
        "relative_difference": _pooled(measured.difference) / _pooled(measured.jvp),
        "consistency_rms": _pooled(measured.from_end),
    }
    made: list[dict[str, float | None]] = []
    for k, t in enumerate(measured.t.tolist()):
        numbers = {name: float(column[k]) for name, column in columns.items()}
        record: dict[str, float | None] = {"t": t, "sigma": sigma_data * math.tan(t), **numbers}
        made.append(record if is_ode else {**record, "consistency_rms": None})
    return made


@dataclass(frozen=True)
class Subject:
    """What is looked at: a network, and the trajectories along which."""

    trained: build.Trained
    dataset: Dataset | None  # where it is needed
    path: trajectories.Path
    name: str  # of the path, in words
    start: Tensor  # (n, C, H, W) x_T
    times: list[float]  # falling from T to 0
    label: Tensor | None  # (n,) classes of a conditional model
    teacher: str | None  # the file or folder of the model whose ODE it is, unless its own


def subject(arguments: argparse.Namespace, device: torch.device) -> Subject:
    """Load the model, and choose what to follow: an ODE, or pairs where there is none."""
    trained = build.trained_network(arguments.model, device, torch.float32)
    config, shape, sd = trained.config, trained.image_shape, trained.sigma_data
    classes = config["model"]["num_classes"]
    chosen = 0 if classes and arguments.label is None else arguments.label
    label = labels_for(chosen, arguments.n, classes)
    label = None if label is None else label.to(device)
    heun = Heun(steps=arguments.steps, sigma_data=sd, **GRID)
    noises = trajectories.start_noises(arguments.n, shape, sigma_data=sd, seed=arguments.seed).to(
        device
    )
    teacher, is_toy = _teacher_of(arguments, config), shape == (1, 1, 1)
    needs_data = is_toy or not (teacher or is_diffusion(config))
    dataset = build.stored_dataset(config, arguments.model) if needs_data else None
    path: trajectories.Path
    if teacher:
        net = build.velocity_model(teacher, "--teacher", config, device, torch.float32).net
        path, name = LearnedOde(net, label, heun), "the teacher's ODE"
    elif is_diffusion(config):
        path, name = LearnedOde(trained.net, label, heun), "the model's own ODE"
    elif dataset and dataset.exact and label is None:
        path, name = ExactOde(dataset.exact), "the exact ODE"
    else:
        assert dataset is not None
        if arguments.label is not None:
            raise UserError(f"--label {arguments.label}: without a teacher, images have their own")
        x0, own = dataset.test_batch(arguments.n)
        path, name = Pairs(x0.to(device), noises), "lines between data and noise"
        label = None if label is None else own.to(device)
        noises = path.move(noises, 0.0, heun.times[0])
    times = trajectories.fine_times(heun)
    return Subject(trained, dataset, path, name, noises, times, label, teacher)


def is_diffusion(config: dict[str, Any]) -> bool:
    """True where the network is a velocity: where its objective has no tangent."""
    return "tangent" not in config["objective"]


def _teacher_of(arguments: argparse.Namespace, config: dict[str, Any]) -> str | None:
    """The teacher asked for; else the one that the run was distilled from."""
    objective = config["objective"]
    if arguments.teacher or "teacher" not in objective:
        return arguments.teacher
    own = teacher_path(Path(arguments.model), config)
    if own is None:
        where = objective["teacher"] or "teacher/ in its run's folder"
        raise UserError(f"{arguments.model}: its teacher is not at {where}; add --teacher RUN")
    return str(own)


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


def figures(
    looked_at: Subject, measured: Measured, seed: int, device: torch.device
) -> dict[str, np.ndarray]:
    """The gradient map, its means over time, and for the toy the comparison with what is exact."""
    n, dataset = len(looked_at.start), looked_at.dataset
    is_toy = looked_at.trained.image_shape == (1, 1, 1)
    made = {
        "gradient_map": plots.compared_maps(
            measured.t,
            looked_at.start.flatten().cpu() if is_toy else torch.linspace(0, 90, n),
            {"JVP": measured.jvp.T, "discrete": measured.discrete.T},
            xlabel=plots.TIME,
            ylabel="x_T (the data's units)" if is_toy else "from one noise to another (degrees)",
            unit="RMS per pixel and radian",
            title=f"norm of the tangent g = cos(t) df/dt along {looked_at.name}",
        ),
        "tangent_over_time": _curves(measured, looked_at.name, looked_at.path.is_ode),
    }
    if dataset and dataset.exact and looked_at.label is None:
        objective = looked_at.trained.config["objective"]
        name, velocity = (
            objective["_target_"].rpartition(".")[2],
            is_diffusion(looked_at.trained.config),
        )
        made |= Toy(dataset.exact, name, velocity, seed, device).pictures(looked_at.trained.net)
    return made


def _curves(measured: Measured, name: str, is_ode: bool) -> np.ndarray:
    """The same over time alone, and the consistency error."""
    tangent = Panel(
        "tangent g = cos(t) df/dt",
        "RMS per pixel and radian",
        [
            Lines("JVP", _pooled(measured.jvp)),
            Lines("discrete", _pooled(measured.discrete), "--"),
            Lines("their difference", _pooled(measured.difference), ":"),
        ],
        logarithmic=True,
    )
    error = Panel(
        "consistency error: f(x_t, t) less the ODE's end",
        "RMS per pixel (the data's units)",
        [Lines("f(x_t, t)", _pooled(measured.from_end))],
        logarithmic=True,
    )
    return plots.over_time(measured.t, [tangent, error] if is_ode else [tangent], f"along {name}")


if __name__ == "__main__":
    main()
