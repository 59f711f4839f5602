"""What a run shows of its EMA network: held-out loss, samples and their quality, the strip.

Every input is fixed by the run's seed, so two evaluations differ by the weights alone.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from scm.config.schema import Config
from scm.core import rng
from scm.data.dataset import Dataset, to_uint8
from scm.evaluation import pictures
from scm.evaluation.quality import Quality
from scm.evaluation.toy import Toy
from scm.method import schedules, trigflow
from scm.method.network import Draw
from scm.method.objective import Objective
from scm.method.samplers import Sampler
from scm.storage.model import Model

GRID_IMAGES = 64
GRID_COLUMNS = 8
STRIP_IMAGES = 4
STRIP_TIMES = 16
LEVELS = 17  # noise levels of the loss curve
LEVEL_IMAGES = 64  # held-out images per level
LOSS_IMAGES = 512


@dataclass
class Evaluation:
    """Numbers under their tags, pictures under their file names without suffix."""

    metrics: dict[str, float] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)  # the same at every evaluation
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a network for one run: its objective, data set and samplers."""

    config: Config
    objective: Objective
    dataset: Dataset
    samplers: dict[str, Sampler]
    device: torch.device
    quality: Quality | None  # what judges the samples; None where nothing can, or is to

    @torch.no_grad()
    def __call__(self, net: nn.Module, step: int, *, final: bool) -> Evaluation:
        """Evaluate `net` (in eval mode) as it stands after `step` training steps.

        `final`: training is over, and quality is measured with many samples too.
        """
        config, seed = self.config, self.config.seed
        result, model = Evaluation(), Model(net, config, self.device)
        self._loss(net, step, result)
        self._loss_over_noise(net, step, result)
        self._denoising_strip(net, result)
        for name, sampler in self.samplers.items():
            self._samples(model, name, sampler, result)
        if self.dataset.exact is not None and not config.model.num_classes:
            objective = config.objective
            toy = Toy(self.dataset.exact, objective.name, objective.learns, seed, self.device)
            times = self.objective.draw_times
            result.metrics.update(toy.metrics(net, self.samplers, self.dataset, times))
            result.pictures.update(toy.pictures(net))
        self._quality(model, result, final=final)
        return result

    def _noised(self, n: int, t: Tensor) -> Draw:
        x0, label = self.dataset.test_batch(n)
        gen = rng.generator(self.config.seed, "eval-noise", device="cpu")
        z = torch.randn(x0.shape, generator=gen).to(self.device) * self.objective.sigma_data
        return Draw(x0, z, t.to(self.device), label if self.config.model.num_classes else None)

    def _loss(self, net: nn.Module, step: int, result: Evaluation) -> None:
        """The objective's loss on held-out images at the proposal's noise levels."""
        gen = rng.generator(self.config.seed, "eval-times", device="cpu")
        t = self.objective.draw_times(LOSS_IMAGES, generator=gen, device="cpu")
        loss = self.objective.loss(net, self._noised(LOSS_IMAGES, t), step)
        result.metrics["eval/loss"] = float(loss.loss.mean())
        result.metrics["eval/error"] = float(loss.error.mean())

    def _loss_over_noise(self, net: nn.Module, step: int, result: Evaluation) -> None:
        """Error per noise level, and e^-w where w is learned, which then comes to equal it."""
        sigmas = torch.logspace(-2, 1.9, LEVELS, dtype=torch.float64)
        errors, inverse_weights = [], []
        for t in trigflow.time_from_sigma(sigmas, self.objective.sigma_data).float():
            noised = self._noised(LEVEL_IMAGES, t.repeat(LEVEL_IMAGES))
            loss = self.objective.loss(net, noised, step)
            errors.append(loss.error.mean().cpu())
            inverse_weights.append(torch.exp(-loss.w).mean().cpu())
        curves = {"mean squared error": torch.stack(errors)}
        if self.objective.adaptive_weight:
            curves["1 / learned weight"] = torch.stack(inverse_weights)
        result.pictures["loss_over_noise"] = pictures.curves(
            sigmas,
            curves,
            xlabel="noise level sigma (the data's units)",
            ylabel="error per pixel",
            title=f"{self.config.objective.name}: loss over noise level",
        )

    def _denoising_strip(self, net: nn.Module, result: Evaluation) -> None:
        """f(x_t, t) of held-out images at 16 times: the denoiser, or the end of the trajectory."""
        sd = self.objective.sigma_data
        times = schedules.karras_times(STRIP_TIMES, sigma_min=0.02, sigma_data=sd)[:-1].float()
        noisy, denoised = [], []
        for t in times:
            noised = self._noised(STRIP_IMAGES, t.repeat(STRIP_IMAGES))
            x_t = trigflow.interpolate(noised.x0, noised.z, noised.t)
            F, _ = net(x_t / sd, noised.t, noised.label)
            noisy.append(x_t.cpu())
            denoised.append(trigflow.consistency(x_t, F, noised.t, sd).cpu())
        result.pictures["denoising_strip"] = pictures.strip(
            torch.stack(noisy, 1), torch.stack(denoised, 1)
        )

    def _samples(self, model: Model, name: str, sampler: Sampler, result: Evaluation) -> None:
        """A grid of images from fixed noise; of the toy a histogram."""
        started = time.perf_counter()
        images = model.sample(GRID_IMAGES, sampler=sampler, seed=self.config.seed)
        seconds = time.perf_counter() - started
        result.constants[f"eval/{name}/calls"] = sampler.calls
        result.metrics[f"samples/{name}/images_per_second"] = GRID_IMAGES / seconds
        result.metrics[f"samples/{name}/mean"] = float(images.mean())
        result.metrics[f"samples/{name}/std"] = float(images.std())
        if self.dataset.image_shape[1:] == (1, 1):
            reference = self.dataset.test_batch(4096).x0.cpu()
            result.pictures[name] = pictures.histogram(images, reference, f"{name}: {len(images)}")
        else:
            result.pictures[name] = pictures.grid(images, GRID_COLUMNS)

    def _quality(self, model: Model, result: Evaluation, *, final: bool) -> None:
        """Every metric of every sampler under its tag, beside the floor of as many real images.

        A Frechet distance depends on the number of images, so few and many have their own tags.
        """
        trainer = self.config.trainer
        groups = {"quality": trainer.quality_images}
        groups |= {"final": trainer.final_quality_images} if final else {}
        groups = {group: n for group, n in groups.items() if n}
        if self.quality is None or not groups:
            return
        for group, n in groups.items():
            floor = self.quality.floor(n)
            result.constants |= {f"{group}/floor/{name}": value for name, value in floor.items()}
        for sampler_name, sampler in self.samplers.items():
            most = model.sample(max(groups.values()), sampler=sampler, seed=self.config.seed)
            for group, n in groups.items():  # the few are the first of the many
                for name, value in self.quality.measure(to_uint8(most[:n])).items():
                    result.metrics[f"{group}/{sampler_name}/{name}"] = value
