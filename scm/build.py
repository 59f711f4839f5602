"""From a config to the objects that every command needs: data, networks out of runs, samplers.

Configs are plain resolved dicts here, whether they come from Hydra or out of a checkpoint.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from torch import nn

from scm import checkpoint, features, tags, validate
from scm.construct import construct
from scm.data import Dataset, IdxImages
from scm.errors import UserError
from scm.files import found
from scm.quality import Quality, quality_of
from scm.runfolder import RunFolder, Status
from scm.samplers import Sampler

NOT_WHOLE = (KeyError, TypeError, AttributeError, InstantiationException)  # of a file's config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A network out of a run, with the config that made it."""

    net: nn.Module  # EMA weights, eval mode, without gradients
    config: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.config["data"]["image_shape"]
        return channels, height, width

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation in the run."""
        return self.config["data"]["sigma_data"]

    @property
    def sha256(self) -> str:
        """What the weights are known by."""
        return checkpoint.weights_digest(dict(self.net.state_dict()))


def dataset(config: dict[str, Any]) -> Dataset:
    """The data set that the `data` group says."""
    return construct(Dataset, "data", {key: v for key, v in config.items() if key != "teacher"})


def stored_dataset(config: dict[str, Any], path: str | Path) -> Dataset:
    """The data set of a config that came with the file `path`; nothing is downloaded for it.

    Raises UserError where the config has no such group, or the data are not here.
    """
    data = config["data"]
    try:
        return dataset({**data, "download": False} if "download" in data else data)
    except NOT_WHOLE as error:
        raise _no_config(path, error) from error


def network(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A new network as the `model` group says, its inner layers computing in `dtype`."""
    net = construct(nn.Module, "model", config["model"])
    net.compute_dtype = dtype  # type: ignore[assignment]
    return net.to(device).to(memory_format=torch.channels_last)


def trained_network(path: str | Path, device: torch.device, dtype: torch.dtype) -> Trained:
    """The EMA network of a run folder, a checkpoint or a safetensors file.

    Raises UserError where there is none, or where it is damaged or does not fit its own config.
    """
    weights, config = checkpoint.read_weights(Path(path))
    try:
        check_stored(config)
        with torch.device("meta"):  # takes no memory, whatever size the config claims
            _refuse_misfit(construct(nn.Module, "model", config["model"]), weights, str(path))
        net = network(config, device, dtype)
    except UserError as error:
        named = str(error).startswith(str(path))
        raise UserError(str(error) if named else f"{path}: {error}") from error
    except NOT_WHOLE as error:
        raise _no_config(path, error) from error
    load_weights(net, weights, str(path))
    return Trained(net.eval().requires_grad_(False), config)


def check_stored(config: dict[str, Any]) -> None:
    """Raise UserError, or one of `NOT_WHOLE`, where a file's config is not whole.

    Its values are in their ranges afterwards, and those used by themselves are of their types.
    """
    groups = ("data", "model", "objective", "sampler")
    validate.check_values({group: config[group] for group in groups})
    data, objective = config["data"], config["objective"]
    numbers = [data["sigma_data"], *data["image_shape"], config["model"]["num_classes"]]
    texts = [data["name"], data["_target_"], objective["_target_"]]
    texts += [sampler["_target_"] for sampler in config["sampler"].values()]
    texts += [path for key in ("teacher", "init") if (path := objective.get(key)) is not None]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"no numbers: {numbers}")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"no names: {texts}")


def _no_config(path: str | Path, error: Exception) -> UserError:
    return UserError(f"{path}: holds no config of this project ({_first_line(error)})")


def load_weights(net: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Copy weights into a network; UserError, naming the first misfit, where they do not fit."""
    _refuse_misfit(net, weights, source)
    net.load_state_dict(weights)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _refuse_misfit(net: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    mine = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    misfits = [k for k in sorted(mine | theirs) if mine.get(k) != theirs.get(k)]
    if misfits:
        name = misfits[0]
        raise UserError(
            f"{source}: its weights are of another network: {name} is {theirs.get(name)} there and "
            f"{mine.get(name)} here; use the model group it was trained with"
        )


def sampler(config: dict[str, Any], name: str, sigma_data: float) -> Sampler:
    """The sampler that stands under sampler.NAME."""
    return construct(Sampler, f"sampler.{name}", config, sigma_data=sigma_data)


def quality(dataset: Dataset, device: torch.device) -> Quality:
    """What judges images of this data set.

    Raises UserError where its samples are no images, or its feature network is missing or damaged.
    """
    if not isinstance(dataset, IdxImages):
        raise UserError(f"data={dataset.name}: its samples are no images, so no quality metrics")
    return quality_of(dataset, features.load(tags.feature_weights(dataset.name), device))


def velocity_model(
    path: str, key: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Trained:
    """A trained diffusion network for this run's data and classes; `key` names it in errors."""
    trained = fitting_network(path, key, config, device, dtype)
    validate.check_velocity(trained.config, f"{key}={path}")
    return trained


def fitting_network(
    path: str, key: str, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Trained:
    """A trained network for this run's data and classes."""
    trained = trained_network(path, device, dtype)
    validate.check_fits(trained.config, config, f"{key}={path}")
    _warn_unfinished(Path(path), key)
    return trained


def _warn_unfinished(path: Path, key: str) -> None:
    """Say so where the weights are of a run that has not come to its end."""
    file = found(path)
    run = file if file.is_dir() else file.parent.parent
    with suppress(UserError):  # its metrics.json is unreadable
        status = RunFolder(run).status()
        if status not in (Status.done, Status.new):  # new: no run's folder
            log.warning("%s=%s: that run is %s, not done", key, path, status)
