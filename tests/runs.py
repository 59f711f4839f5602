"""Small real runs for tests: a composed config, built and trained in a folder."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scm import build, launch
from scm.config import plain, register
from scm.experiment import Experiment
from scm.runfolder import RunFolder

CONF = Path(__file__).resolve().parent.parent / "conf"

QUICK = ("trainer=smoke", "trainer.precision=fp32", "trainer.batch_size=8", "trainer.threads=1")
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


def composed(*overrides: str):
    """The DictConfig of a quick run with these overrides on top."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=[*QUICK, *overrides])


def built(path: Path, *overrides: str, teacher: Path | None = None) -> Experiment:
    """The experiment, checked as the command would check it, not yet run."""
    cfg = composed(*overrides)
    folder = RunFolder(path)
    launch.check(plain(cfg), folder)
    return build.experiment(
        plain(cfg),
        folder,
        config_text=OmegaConf.to_yaml(cfg),
        teacher=str(teacher) if teacher else None,
    )


def trained(path: Path, *overrides: str, teacher: Path | None = None) -> dict:
    """Run it to its end; returns what metrics.json holds."""
    experiment = built(path, *overrides, teacher=teacher)
    config = OmegaConf.to_yaml(OmegaConf.create(experiment.config))
    with experiment.folder.open({"config.yaml": config}):
        return experiment.run()
