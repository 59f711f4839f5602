"""Small real runs for tests: a composed config, built and trained in a folder."""

import functools
import gzip
import struct
from pathlib import Path

import torch
import yaml
from hydra import compose, initialize_config_dir

from scm.commands.plan import plan
from scm.config import compose as composing
from scm.config import metrics as tags
from scm.config.read import plain
from scm.config.schema import Config
from scm.data.dataset import Dataset
from scm.evaluation import features
from scm.evaluation.quality import Quality
from scm.storage import model as build
from scm.storage.folder import RunFolder
from scm.storage.model import Model
from scm.training.assemble import Assembly, assemble
from scm.training.run import run

QUICK = (
    "trainer=smoke",
    "trainer.precision=fp32",
    "trainer.batch_size=8",
    "trainer.threads=1",
    "data.teacher=null",  # its network is larger than a test's
)
TINY = {  # overrides that make each model small
    "unet": ("model=unet", "model.widths=[8,16]", "model.blocks=[1,1]"),
    "unet_small": ("model=unet_small", "model.widths=[8,16]", "model.blocks=[1,1]"),
    "unet_attention": (
        "model=unet_attention",
        "model.widths=[8,16]",
        "model.blocks=[1,1]",
        "model.attention_heads=2",
    ),
    "unet_mobile": ("model=unet_mobile", "model.width=8", "model.groups=2"),
    "dit": ("model=dit", "model.width=16", "model.blocks=2", "model.attention_heads=2"),
    "mlp": ("model=mlp", "model.width=16", "model.blocks=1"),
}

TRAIN, TEST = 600, 512  # images of the small data set
ELSEWHERE = ("data=", "data.root=", "experiment=toy")  # a run on other data names them so
DIGITS: list[str] = []  # overrides that read it; the fixture `digits` fills it


def write_digits(folder: Path) -> None:
    """The first of MNIST's images and labels as idx files of their own."""
    folder.mkdir()
    shipped = composing.CONF.parent / "data" / "mnist"
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        for kind, size, rank in (("images", 784, 3), ("labels", 1, 1)):
            name = f"{prefix}-{kind}-idx{rank}-ubyte"
            with gzip.open(shipped / f"{name}.gz") as file:
                raw = file.read(4 + 4 * rank + count * size)
            (folder / name).write_bytes(raw[:4] + struct.pack(">I", count) + raw[8:])


def small_digits(folder: Path) -> list[str]:
    """Overrides that read what `write_digits` wrote."""
    overrides = [f"data.root={folder}", f"data.train_size={TRAIN}", f"data.test_size={TEST}"]
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        overrides.append(f"data.{part}.sha256=null")
    return overrides


def quick(*overrides: str) -> list[str]:
    """A short run's overrides: of digits, the small data set's."""
    digits = not any(override.startswith(ELSEWHERE) for override in overrides)
    return [*QUICK, *(DIGITS if digits else []), *overrides]


def train_models(folder: Path) -> None:
    """Runs of two steps: a teacher, its student, sCT's, a conditional one, and one of the toy."""
    short = ("trainer.budget.steps=2", "trainer.log_every=1")
    small = (*TINY["unet_small"], *short)
    teacher = folder / "teacher"
    trained(teacher, *small, "objective=diffusion", "sampler.heun.steps=2")
    distilled = (f"objective.teacher={teacher}", "objective=scd")
    trained(folder / "student", *small, *distilled, teacher=teacher)
    trained(folder / "sct", *small)
    trained(folder / "conditional", *small, "model.num_classes=10")
    trained(folder / "toy", *short, "data=bimodal", *TINY["mlp"])


composed_once = functools.cache(composing.composed)  # takes half a second


def swept(name: str, *overrides: str) -> Config:
    """The config of a job of sweeps/NAME.yaml, as the command composes it."""
    composing.prepare()
    sweeps = str(composing.CONF.parent / "sweeps")
    with initialize_config_dir(version_base="1.3", config_dir=sweeps):
        found = [*overrides, f"hydra.searchpath=[file://{composing.CONF}]"]
        return composing.config_of(compose(name, overrides=found))


def built(path: Path, *overrides: str, teacher: Path | None = None) -> Assembly:
    """The parts of a run, checked as the command would check it, not yet run."""
    return built_of(composed_once(tuple(quick(*overrides))), path, teacher)


def built_of(composed: Config, path: Path, teacher: Path | None = None) -> Assembly:
    """Those of a composed config."""
    folder = RunFolder(path)
    plan(composed, folder)
    return assemble(composed, folder, teacher=str(teacher) if teacher else None)


def trained(path: Path, *overrides: str, teacher: Path | None = None) -> dict:
    """Run it to its end; returns what metrics.json holds."""
    return trained_of(built(path, *overrides, teacher=teacher))


def trained_of(parts: Assembly) -> dict:
    """Run what is built."""
    with parts.folder.open({"config.yaml": yaml.safe_dump(plain(parts.config))}):
        return run(parts)


def untrained(*overrides: str) -> Model:
    """A model whose every weight counts: layers that start at zero would hide what they are fed."""
    config = composed_once(tuple(quick(*overrides)))
    torch.manual_seed(0)
    net = build.network(config, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    settings = plain(config)
    return Model(net.eval().requires_grad_(False), config, torch.device("cpu"), config=settings)


@functools.cache
def mnist() -> Dataset:
    """The data set of the default configuration; to be copied before it is changed."""
    return build.dataset(composing.composed(["data=mnist"]).data)


def small_quality(kept: Path, train: int = 2000, test: int = 1000) -> Quality:
    """The shipped feature networks', with the first images of MNIST as all that there are."""
    dataset = mnist()
    network, second = (
        features.load(tags.feature_weights("mnist", second=second), torch.device("cpu"))
        for second in (False, True)
    )
    return Quality(dataset.train[:train], dataset.test[:test], network, second, kept)
