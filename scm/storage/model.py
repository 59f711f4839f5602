"""A trained network with what is known of it: loaded from a run or a file, and sampled.

Every command draws its images here: image i follows from (seed, i) alone, so a larger number
continues a smaller one and the batch size changes nothing.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from scm.config import parts, rules
from scm.config.allow import construct
from scm.config.parts import Kind
from scm.config.read import read
from scm.config.schema import Config, Facts
from scm.core.errors import UserError
from scm.core.files import REPOSITORY, found
from scm.data.dataset import Dataset
from scm.method import trigflow
from scm.method.guidance import Guided
from scm.method.network import call
from scm.method.samplers import Noise, Sampler, noise_blocks
from scm.storage import store
from scm.storage.folder import RunFolder, Status

log = logging.getLogger(__name__)
CALLS = {  # names in conf/sampler by their number of network calls
    Kind.consistency: {1: "one_step", 2: "two_step", 3: "three_step", 4: "multi_step"},
    Kind.flow_map: {1: "one_step", 2: "flow_two_step", 4: "flow_four_step"},
}


@dataclass(frozen=True)
class Model:
    """A network, what is known of it, and where it runs."""

    net: nn.Module  # in eval mode
    facts: Config | Facts
    device: torch.device
    path: Path = Path()  # where it was loaded from
    config: dict[str, Any] = field(default_factory=dict)  # of its run, plain and whole
    guide: dict[str, Any] | None = None  # path, digest and strength of what guides it, for records

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.facts.data.image_shape
        return channels, height, width

    @property
    def sigma_data(self) -> float:
        """The data's standard deviation in the run."""
        return self.facts.data.sigma_data

    @cached_property
    def sha256(self) -> str:
        """What the weights are known by, without a guide's."""
        net = self.net.net if isinstance(self.net, Guided) else self.net
        return store.weights_digest(dict(net.state_dict()))

    def guided_by(self, guide: "Model", guidance: float, below: float | None) -> "Model":
        """This diffusion model, moved away from a weaker one where sigma is at most `below`.

        Raises UserError where they do not fit.
        """
        rules.check_velocity(self.facts, f"--guide {guide.path}: {self.path}")
        rules.check_velocity(guide.facts, f"--guide {guide.path}")
        rules.check_fits(guide.facts, self.facts, f"--guide {guide.path}", or_classless=True)
        hears = guide.facts.model.num_classes > 0
        net = Guided(
            self.net,
            guide.net,
            guidance=guidance,
            below=below,
            guide_hears_label=hears,
            sigma_data=self.sigma_data,
        )
        facts = {"path": str(guide.path), store.WEIGHTS_SHA256: guide.sha256}
        return replace(self, net=net, guide={**facts, "guidance": guidance, "below": below})

    def sampler(self, name: str, settings: parts.Sampler) -> Sampler:
        """The sampler of these settings. Raises UserError where it does not suit the network."""
        rules.check_sampler(name, settings, self.facts.objective.learns)
        return sampler(name, settings, self.sigma_data)

    def labels(self, n: int, label: int | None = None) -> Tensor | None:
        """(n,) classes: `label`, or all in turn; None for an unconditional network."""
        classes = self.facts.model.num_classes
        if classes == 0:
            if label is not None:
                raise UserError(f"--label {label}: the model is unconditional; leave --label out")
            return None
        if label is None:
            return torch.arange(n) % classes
        if not 0 <= label < classes:
            raise UserError(f"--label {label}: must be 0 ... {classes - 1}")
        return torch.full((n,), label)

    def sampler_with(self, steps: int) -> Sampler:
        """The sampler of so many steps: Heun's for a diffusion model, else one call for each.

        Raises UserError where there is none of so many.
        """
        learns = self.facts.objective.learns
        name = "heun" if learns is Kind.velocity else CALLS[learns].get(steps)
        if name is None or steps < 1:
            there = ", ".join(map(str, CALLS.get(learns, {}))) or "1 or more"
            raise UserError(f"steps={steps}: a network that learns {learns.name} takes {there}")
        given = yaml.safe_load((REPOSITORY / "conf" / "sampler" / f"{name}.yaml").read_text())
        settings = given[name] | ({"steps": steps} if name == "heun" else {})
        return self.sampler(name, read(settings, parts.Sampler, f"sampler.{name}"))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        seed: int = 0,
        label: int | None = None,
        batch_size: int = 256,
        title: str = "",  # of a progress bar; without one there is none
    ) -> Tensor:
        """Images (n, C, H, W) on the CPU, float32, about in [-0.5, 0.5].

        By this sampler, or one of so many steps (`sampler_with`), or the first of the run's own.
        Image i depends on (seed, i) alone. Raises UserError where sampler or label do not fit.
        """
        sampler = sampler or (self._own_sampler() if steps is None else self.sampler_with(steps))
        labels, made = self.labels(n, label), []
        shape, sd = self.image_shape, self.sigma_data
        with tqdm(total=n, unit="image", desc=title, disable=not title) as bar:
            for start in range(0, n, batch_size):
                stop = min(n, start + batch_size)
                on_cpu = noise_blocks(seed, start, stop, image_shape=shape, sigma_data=sd)
                these = None if labels is None else labels[start:stop].to(self.device)

                def noise(k: int, on_cpu: Noise = on_cpu) -> Tensor:
                    return on_cpu(k).to(self.device)

                made.append(sampler(self.net, noise, these).float().cpu())
                bar.update(stop - start)
        return torch.cat(made)

    def _own_sampler(self) -> Sampler:
        if not self.facts.sampler:
            raise UserError(f"{self.path}: its config names no sampler; give steps")
        return self.sampler(*next(iter(self.facts.sampler.items())))

    @torch.no_grad()
    def denoise(self, x_t: Tensor, t: float | Tensor, label: Tensor | None = None) -> Tensor:
        """f(x_t, t) of x_t (B, C, H, W) at a time in radians, one for all or one each (B,).

        Of a diffusion model the mean of the images that may be behind x_t, of the others the end
        of the trajectory. On the model's device, as x_t's copy is.
        """
        return self._moved(x_t, t, None, label)

    @torch.no_grad()
    def flow(
        self, x_t: Tensor, t: float | Tensor, s: float | Tensor, label: Tensor | None = None
    ) -> Tensor:
        """f(x_t, t, s): the trajectory's point at time s <= t, of a network that learns flow maps.

        Raises UserError for another network.
        """
        if (learns := self.facts.objective.learns) is not Kind.flow_map:
            raise UserError(
                f"{self.path}: learns {learns.name}, so it has no second time; use denoise, or a "
                "model of an objective such as meanflow"
            )
        return self._moved(x_t, t, s, label)

    def _moved(
        self, x_t: Tensor, t: float | Tensor, s: float | Tensor | None, label: Tensor | None
    ) -> Tensor:
        """To s; None: to the data, with the network told no second time."""
        x_t, at = x_t.to(self.device), self._times(x_t, t)
        to = None if s is None else self._times(x_t, s)
        label = label if label is None else label.to(self.device)
        F, _ = call(self.net, x_t / self.sigma_data, at, label, to)
        to = torch.zeros_like(at) if to is None else to
        return trigflow.flow_map(x_t, F, at, to, self.sigma_data)

    def _times(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        return torch.as_tensor(t, dtype=x_t.dtype, device=self.device).expand(len(x_t))


def dataset(data: parts.Data) -> Dataset:
    """The data set that the `data` group says."""
    return construct(Dataset, "data", data)  # type: ignore[type-abstract]


def stored_dataset(data: parts.Data) -> Dataset:
    """The data set of a stored model's config; nothing is downloaded for it."""
    there_is = {"download": False} if hasattr(data, "download") else {}
    return dataset(replace(data, **there_is))  # type: ignore[arg-type]


def network(facts: Config | Facts, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A new network as the `model` group says, its inner layers computing in `dtype`."""
    given = {
        "image_shape": lambda: facts.data.image_shape,
        "sigma_data": lambda: facts.data.sigma_data,
    }
    net = construct(nn.Module, "model", facts.model, given)
    net.compute_dtype = dtype  # type: ignore[assignment]
    return net.to(device).to(memory_format=torch.channels_last)


def sampler(name: str, settings: parts.Sampler, sigma_data: float) -> Sampler:
    """The sampler that stands under sampler.NAME."""
    given = {"sigma_data": lambda: sigma_data}
    return construct(Sampler, f"sampler.{name}", settings, given)  # type: ignore[type-abstract]


def load(path: str | Path, device: torch.device, dtype: torch.dtype) -> Model:
    """The EMA network of a run's folder or a safetensors file, without gradients.

    Raises UserError where there is none, or where it is damaged or does not fit its own config.
    """
    weights, config = store.read_weights(Path(path))
    try:
        facts = read(config, Facts)
        with torch.device("meta"):  # takes no memory, whatever size the config claims
            check_weights(network(facts, torch.device("meta"), dtype), weights)
        net = network(facts, device, dtype)
        net.load_state_dict(weights)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Model(net.eval().requires_grad_(False), facts, device, Path(path), config)


def check_weights(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raise UserError, naming the first misfit, where weights are not of this network's shapes."""
    mine = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(mine | theirs):
        if mine.get(name) != theirs.get(name):
            raise UserError(
                f"its weights are of another network: {name} is {theirs.get(name)} there and "
                f"{mine.get(name)} here; use the model group it was trained with"
            )


def load_fitting(
    path: str,
    key: str,  # names it in errors
    config: Config | Facts,
    device: torch.device,
    dtype: torch.dtype,
    *,
    to_distil: bool = False,
    or_classless: bool = False,
) -> Model:
    """A trained network for this run's data and classes; warns where its own run is not done.

    Raises UserError where it does not fit, or is to be distilled and learns no velocity.
    `or_classless`: it may be one without classes where this run has them.
    """
    model = load(path, device, dtype)
    rules.check_fits(model.facts, config, f"{key}={path}", or_classless=or_classless)
    if to_distil:
        rules.check_velocity(model.facts, f"{key}={path}")
    file = found(path)
    run = RunFolder(file if file.is_dir() else file.parent.parent)
    with suppress(UserError):  # its metrics.json is unreadable
        if (status := run.status()) not in (Status.done, Status.new):  # new: no run's folder
            log.warning("%s=%s: that run is %s, not done", key, path, status)
    return model


def teacher_path(path: Path, facts: Config | Facts) -> Path | None:
    """Where a distilled model's teacher should be: as its config says, or in the run's own folder.

    None for a model that was not distilled.
    """
    objective = facts.objective
    if not objective.velocity.needs_teacher:
        return None
    if not objective.teacher_recipe:
        return found(objective.teacher or "")
    places = [folder / "teacher" for folder in (path, *path.parents[:2])]
    return next((place for place in places if place.exists()), places[0])
