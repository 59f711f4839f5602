"""Small real runs for tests: a composed config, built and trained in a folder."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir

from scm import assembly, build, composing, features, launch, tags
from scm.data import Dataset
from scm.experiment import Experiment
from scm.quality import Quality
from scm.runfolder import RunFolder

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
    "mlp": ("model=mlp", "model.width=16", "model.blocks=1"),
}


composed_once = functools.cache(composing.composed)  # takes half a second


def swept(name: str, *overrides: str) -> dict[str, Any]:
    """The config of a job of sweeps/NAME.yaml, as the command composes it."""
    composing.register()
    sweeps = str(composing.CONF.parent / "sweeps")
    with initialize_config_dir(version_base="1.3", config_dir=sweeps):
        found = [*overrides, f"hydra.searchpath=[file://{composing.CONF}]"]
        return composing.plain(compose(name, overrides=found))


def built(path: Path, *overrides: str, teacher: Path | None = None) -> Experiment:
    """The experiment, checked as the command would check it, not yet run."""
    return built_of(copy.deepcopy(composed_once((*QUICK, *overrides))), path, teacher)


def built_of(composed: dict[str, Any], path: Path, teacher: Path | None = None) -> Experiment:
    """That of a composed config."""
    folder = RunFolder(path)
    launch.check(composed, folder)
    return assembly.experiment(
        composed,
        folder,
        config_text=yaml.safe_dump(composed),
        teacher=str(teacher) if teacher else None,
    )


def trained(path: Path, *overrides: str, teacher: Path | None = None) -> dict:
    """Run it to its end; returns what metrics.json holds."""
    return trained_of(built(path, *overrides, teacher=teacher))


def trained_of(experiment: Experiment) -> dict:
    """Run what is built."""
    with experiment.folder.open({"config.yaml": experiment.config_text}):
        return experiment.run()


@functools.cache
def mnist() -> Dataset:
    """The data set of the default configuration; to be copied before it is changed."""
    return build.dataset(composing.composed(["data=mnist"])["data"])


def small_quality(kept: Path, train: int = 2000, test: int = 1000) -> Quality:
    """The shipped feature network's, with the first images of MNIST as all that there are."""
    dataset = mnist()
    network = features.load(tags.feature_weights("mnist"), torch.device("cpu"))
    return Quality(dataset.train[:train], dataset.test[:test], network, kept)
