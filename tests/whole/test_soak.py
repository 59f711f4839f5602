"""Random possible configurations train; many runs in one process hold nothing back."""

import gc
import logging
import math
import os
import random
import runpy
import sys
import threading
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from runs import QUICK, TINY, trained

from scm.commands import train as launch
from scm.config.compose import CONF
from scm.config.ranges import RANGE
from scm.config.schema import Config
from scm.data.images import IdxImages  # noqa: F401   imported before anything is counted
from scm.evaluation.toy import Toy

REPOSITORY = Path(__file__).resolve().parents[2]
DISTILLED = ["scd", "discrete_cd"]


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def log_uniform(low, high):
    return lambda rng: math.exp(rng.uniform(math.log(low), math.log(high)))


def one_of(*values):
    return lambda rng: rng.choice(values)


def uniform(low, high):
    return lambda rng: rng.uniform(low, high)


def falling_times(rng):
    return sorted((rng.uniform(0.01, 1.5) for _ in range(rng.randint(1, 3))), reverse=True)


FLOW = ("meanflow", "improved_meanflow", "alpha_flow", "lsd", "psd")  # flow maps without a teacher
VALUES = {  # what every run draws of
    "seed": lambda rng: rng.randrange(2**63),
    "objective.times.P_mean": uniform(-4, 2),
    "objective.times.P_std": log_uniform(0.1, 3),
    "objective.adaptive_weight": one_of("true", "false"),
    "model.dropout": one_of(0, 0.2, 0.9),
    "optimizer.lr": log_uniform(1e-5, 1e-2),
    "optimizer.betas": one_of([0, 0], [0.9, 0.99], [0.5, 0.999]),
    "optimizer.eps": log_uniform(1e-12, 1e-3),
    "optimizer.weight_decay": one_of(0, 0.1),
    "model.norm": one_of("double", "adagn", "seed"),
    "model.embedding_width": one_of(0, 8, 24),
    "model.time_embedding.dim": one_of(2, 8, 64),
    "model.time_embedding.c_noise": one_of("t", "log"),
    "trainer.batch_size": one_of(1, 2, 7, 16),
    "trainer.micro_batch_size": one_of("null", 1, 3, 64),
    "trainer.lr_warmup_steps": one_of(0, 1, 100),
    "trainer.lr_decay_fraction": one_of(0, 0.5, 1),
    "trainer.grad_clip": one_of("null", 1e-3, 1.0),
    "trainer.max_skipped_steps": one_of(1, 10),
    "trainer.ema_sigma_rel": log_uniform(0.001, 0.28),
    "trainer.precision": one_of("auto", "fp32", "bf16"),
    "trainer.deterministic": one_of("true", "false"),
    "trainer.log_every": one_of(1, 2, 100),
    "trainer.evaluate_every": one_of(2, 100),
    "trainer.save_every": one_of(1, 2, 100),
    "trainer.keep_checkpoints": one_of(1, 3),
}
OF_OPTIONS = {  # keys that only some options have
    (
        "objective",
        "sct scd discrete_ct discrete_cd ect meanflow improved_meanflow alpha_flow lsd",
    ): {
        "objective.tangent_warmup_steps": one_of(0, 2, 5000),
    },
    ("objective", "sct scd meanflow improved_meanflow"): {
        "objective.derivative.form": one_of("dual", "split")
    },
    ("objective", "lsd"): {"objective.form": one_of("dual", "split")},
    ("objective", "lsd psd"): {
        "objective.times.diagonal": uniform(0, 0.5),
        "objective.times.to_data": uniform(0, 0.5),
    },
    ("objective", "meanflow improved_meanflow alpha_flow"): {
        "objective.times.diagonal": uniform(0, 1),
        "objective.times.second_P_mean": uniform(-6, 2),
        "objective.times.second_P_std": log_uniform(0.1, 3),
    },
    ("objective", "alpha_flow"): {
        "objective.derivative.steps": one_of(1, 3, 1000),
        "objective.derivative.sharpness": log_uniform(1, 50),
        "objective.derivative.clamp": log_uniform(1e-3, 0.5),
        "objective.derivative.form": one_of("dual", "split"),
    },
    ("objective", "ect"): {
        "objective.derivative.first": uniform(0, 1),
        "objective.derivative.last": uniform(0.001, 1),
        "objective.derivative.halving_steps": one_of(1, 2, 100),
        "objective.derivative.k": uniform(0, 20),
        "objective.derivative.b": uniform(0, 4),
    },
    ("objective", "cmt"): {"objective.steps": one_of(2, 3, 16)},
    ("objective", "discrete_ct discrete_cd"): {
        "objective.derivative.N": one_of(1, 2, 18, 1024),
        "objective.derivative.rule": one_of("lu_song", "song"),
        "objective.derivative.sigma_min": log_uniform(1e-4, 1),
        "objective.derivative.sigma_max": log_uniform(20, 200),
        "objective.derivative.rho": log_uniform(1, 10),
    },
    ("objective/tangent", "normalize"): {
        "objective.tangent.c": one_of(0, 0.1, 3),
        "objective.tangent.norm": one_of("rms", "l2"),
    },
    ("objective/tangent", "clip"): {"objective.tangent.bound": log_uniform(0.01, 10)},
    ("objective/tangent", "power power_half power_one"): {
        "objective.tangent.p": uniform(0, 1),
        "objective.tangent.c": log_uniform(1e-6, 1),
        "objective.tangent.norm": one_of("rms", "l2"),
    },
    ("objective/velocity", "data_mean"): {
        "objective.velocity.sigma_min": log_uniform(0.1, 10),
        "objective.velocity.points": one_of("null", 1, 100),
    },
    ("objective/velocity", "guided"): {
        "objective.velocity.guidance": uniform(0, 4),
        "objective.velocity.below": one_of("null", "0.5", "2"),
    },
    ("matching", "dmd"): {
        "matching.weight": log_uniform(0.1, 100),
        "matching.score_steps": one_of(1, 2),
        "matching.calls_at": one_of("[]", "[1.1]", "[1.3,0.8]"),
        "matching.sigma_max": log_uniform(20, 200),
        "matching.times.P_mean": uniform(-2, 2),
        "matching.times.P_std": log_uniform(0.2, 3),
        "matching.optimizer.lr": log_uniform(1e-5, 1e-3),
    },
    ("model/time_embedding", "positional"): {
        "model.time_embedding.max_positions": log_uniform(10, 1e5)
    },
    ("model/time_embedding", "fourier"): {"model.time_embedding.scale": log_uniform(0.01, 16)},
    ("sampler", "one_step two_step multi_step flow_two_step ddim heun"): {
        "sampler.{sampler}.sigma_max": log_uniform(20, 200)
    },
    ("optimizer", "muon"): {"optimizer.momentum": one_of(0, 0.95)},
    ("sampler", "flow_two_step"): {"sampler.{sampler}.gamma": uniform(0, 1)},
    ("sampler", "multi_step"): {"sampler.multi_step.times": falling_times},
    ("sampler", "ddim heun"): {
        "sampler.{sampler}.steps": one_of(1, 2, 3),
        "sampler.{sampler}.sigma_min": log_uniform(1e-4, 1),
        "sampler.{sampler}.rho": log_uniform(1, 10),
    },
    ("data", "bimodal"): {"data.mean": uniform(0, 3), "data.std": log_uniform(0.1, 2)},
    ("data", "color_mnist"): {
        "data.colour_seed": lambda rng: rng.randrange(2**63),
        "data.contrast": uniform(0, 150),
    },
}
ELSEWHERE = (  # sizes come with the small models; data as they are; budgets end runs soon
    *("model.width*", "model.blocks", "model.multipliers", "model.patch", "model.groups"),
    *(
        "model.attention_heads",
        "model.expansion",
        "model.num_classes",
        "trainer.budget.*",
        "trainer.threads",
    ),
    *("data.image_shape", "data.num_classes", "data.train_size", "data.test_size"),
    *("data.sigma_data*", "data.pad", "data.held_out", "model.width"),
    *("trainer.*quality_images", "model.image_shape"),
)


def drawn(rng, digits, teacher):
    """Overrides of one possible configuration."""
    data = rng.choice(("bimodal", "mnist", "color_mnist"))
    model = "mlp" if data == "bimodal" else rng.choice(sorted(TINY))
    kinds = ["diffusion", "sct", "ect", "discrete_ct", *FLOW] + DISTILLED * (data == "bimodal")
    choice = {
        "data": data,
        "objective": rng.choice(kinds),
        "optimizer": rng.choice(options("optimizer")),
        "weighting": rng.choice(options("weighting")),
        "logger": rng.choice(("tensorboard", "csv", "[tensorboard,csv]", "[]")),
        "model/time_embedding": rng.choice(options("model/time_embedding")),
    }
    if choice["objective"] == "diffusion":
        choice["weighting"] = rng.choice(("unit", "inv_sigma"))
        choice["sampler"] = rng.choice(("ddim", "heun"))
    else:
        if choice["objective"] not in ("psd", "cmt"):
            choice["objective/tangent"] = rng.choice(options("objective/tangent"))
        else:
            choice["weighting"] = rng.choice(("unit", "inv_sigma"))
        flow = ("flow_two_step",) * (choice["objective"] in FLOW)
        choice["sampler"] = rng.choice(("one_step", "two_step", "multi_step", *flow))
    if data != "bimodal" and choice["objective"] in ("diffusion", "sct", "ect", "discrete_ct"):
        choice["objective/velocity"] = rng.choice(("pair", "data_mean"))
    if choice["objective"] in DISTILLED:
        choice["objective/velocity"] = rng.choice(("teacher", "guided"))
        choice["matching"] = rng.choice(("none", "dmd"))
    values = dict(VALUES)
    if choice["objective"] in FLOW:
        values["model.time_embedding.c_noise"] = one_of("t")  # log(sigma) is infinite at s = 0
    for (group, names), more in OF_OPTIONS.items():
        if choice.get(group) in names.split():
            values |= {key.format(**choice): draw for key, draw in more.items()}
    # groups first that others' keys belong to
    overrides = [f"{group}={option}" for group, option in choice.items()]
    overrides += [*TINY[model], *[f"{key}={draw(rng)}" for key, draw in values.items()]]
    overrides += ["trainer.budget.steps=3"]
    if data != "bimodal":
        overrides += [*digits, f"model.num_classes={rng.choice((0, 10))}"]
    if choice["objective"] in DISTILLED:
        overrides += [f"objective.teacher={teacher}", "objective.init=null"]
        if choice["objective/velocity"] == "guided":
            overrides.append(f"objective.velocity.guide={teacher}")
    return [text.replace(" ", "") for text in overrides]


@pytest.fixture
def teacher(shared):
    """A diffusion model of the toy."""
    toy = ("objective=diffusion", "data=bimodal", *TINY["mlp"], "trainer.budget.steps=1")
    return shared("toy-teacher", lambda folder: trained(folder, *toy))


def one_run(path, overrides, monkeypatch, *, drawing):
    """Train; without drawing, which is most of so short a run's time and looks at few settings."""
    with monkeypatch.context() as patched:
        if not drawing:
            patched.setattr(Toy, "pictures", lambda *_: {})
            patched.setattr(FigureCanvasAgg, "draw", FigureCanvasAgg.get_renderer)
        return trained(path, *overrides, teacher=teacher_of(overrides))


def random_runs(count, seed, digits, teacher, tmp_path, monkeypatch):
    """Train so many; a failure names its overrides, with which it can be repeated."""
    rng, failed, diverged = random.Random(seed), [], 0
    for number in range(count):
        overrides, path = drawn(rng, digits, teacher), tmp_path / str(number)
        try:
            metrics = one_run(path, overrides, monkeypatch, drawing=number % 10 == 0)
            assert metrics["status"] == "done" and metrics["steps"] == 3
        except Exception as error:
            if type(error).__name__ == "Diverged":  # an extreme draw may, and says so
                diverged += 1
                continue
            failed.append(f"{type(error).__name__}: {error}\n  {' '.join(overrides)}")
    print(f"{count} random configurations, {diverged} diverged")
    assert not failed, "\n".join(failed)
    assert diverged <= count / 10


def teacher_of(overrides):
    found = [text for text in overrides if text.startswith("objective.teacher=")]
    return Path(found[0].partition("=")[2]) if found else None


def ranged(schema, prefix=""):
    """Keys of all fields with a range, in every schema that may stand below this one."""
    hints = get_type_hints(schema)
    for one in fields(schema):
        inner = get_args(hints[one.name])[-1:] if one.name == "sampler" else (hints[one.name],)
        key = f"{prefix}{one.name}{'.*' if one.name == 'sampler' else ''}"
        if RANGE in one.metadata:
            yield key
        elif is_dataclass(inner[0]):
            for found in [inner[0], *_below(inner[0])]:
                yield from ranged(found, f"{key}.")


def _below(schema):
    for derived in schema.__subclasses__():
        yield derived
        yield from _below(derived)


def test_the_draws_cover_the_schema():
    """Every key with a range is drawn, or said to be elsewhere."""
    keys = set(VALUES) | {key for more in OF_OPTIONS.values() for key in more}
    keys = {key.replace("{sampler}", "*") for key in keys}
    missing = [
        key
        for key in sorted(set(ranged(Config)))
        if key not in keys and not any(fnmatchcase(key, other) for other in ELSEWHERE)
    ]
    assert missing == []


@pytest.mark.slow
@pytest.mark.pictures
def test_random_configurations_train(digits, teacher, tmp_path, monkeypatch):
    random_runs(4, 0, digits, teacher, tmp_path, monkeypatch)


@pytest.mark.soak
@pytest.mark.pictures
def test_300_random_configurations_train(digits, teacher, tmp_path, monkeypatch):
    random_runs(300, 1, digits, teacher, tmp_path, monkeypatch)


# ---------------------------------------------------------------- many runs in one process


def held():
    """Open files, threads, and resident memory in MB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return len(os.listdir("/proc/self/fd")), threading.active_count(), memory


def multirun(count, tmp_path, monkeypatch):
    """What the process holds after each job of one sweep."""
    found = []

    def counted(*arguments):
        try:
            return original(*arguments)
        finally:
            found.append(held())

    original = launch.run
    monkeypatch.setattr(launch, "run", counted)
    arguments = ["-m", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}"]
    seeds = ",".join(map(str, range(count)))
    small = [*QUICK, "data=bimodal", *TINY["mlp"], "trainer.budget.steps=2"]
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments, *small, f"seed={seeds}"])
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        runpy.run_path("run.py", run_name="__main__")
    finally:
        root.handlers[:], root.level = handlers, level
    assert len(found) == count
    return found


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")


@LINUX
@pytest.mark.soak
def test_a_multirun_leaves_no_file_and_no_thread_open(tmp_path, monkeypatch):
    files, threads, _ = zip(*multirun(4, tmp_path, monkeypatch), strict=True)
    assert files[1] == files[-1] and threads[1] == threads[-1]


@LINUX
@pytest.mark.soak
def test_a_multirun_of_50_holds_nothing_back(tmp_path, monkeypatch):
    found = multirun(50, tmp_path, monkeypatch)
    files, threads, memory = zip(*found, strict=True)
    growth = memory[-1] - memory[9]
    print(f"50 runs: {files[-1] - files[1]} more files, {growth:.1f} MB in the last 40")
    assert files[1] == files[-1] and threads[1] == threads[-1]
    assert growth < 20
