"""What a run shows of its EMA network: held-out loss, samples and their quality, the strip.

Every input is fixed by the run's seed, so two evaluations differ by the weights alone. Knows
nothing of training or of files.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from scm import pictures, rng, schedules, trigflow
from scm.data import Dataset
from scm.judge import Judge
from scm.objectives import Draw, Objective
from scm.samplers import Sampler, draw
from scm.toy import Toy

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
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a network for one objective, data set and list of samplers."""

    objective: Objective
    dataset: Dataset
    samplers: dict[str, Sampler]
    seed: int
    labels: bool  # whether the network is given the classes
    device: torch.device
    judge: Judge | None  # of the samples' quality

    @torch.no_grad()
    def __call__(self, net: nn.Module, step: int, *, final: bool) -> Evaluation:
        """Evaluate `net` (in eval mode) as it stands after `step` training steps.

        `final`: training is over, and quality is measured with many samples too.
        """
        result = Evaluation()
        self._loss(net, step, result)
        self._loss_over_noise(net, step, result)
        self._denoising_strip(net, result)
        for name, sampler in self.samplers.items():
            self._samples(net, name, sampler, result)
        if self.dataset.exact is not None and not self.labels:
            name, velocity = self.objective.name, self.objective.learns_velocity
            toy = Toy(self.dataset.exact, name, velocity, self.seed, self.device)
            times = self.objective.draw_times
            result.metrics.update(toy.metrics(net, self.samplers, self.dataset, times))
            result.pictures.update(toy.pictures(net))
        if self.judge is not None:
            result.metrics.update(self.judge(net, final=final))
        return result

    def _noised(self, n: int, t: Tensor, stream: str) -> Draw:
        x0, label = self.dataset.test_batch(n)
        gen = rng.generator(self.seed, stream, device="cpu")
        z = torch.randn(x0.shape, generator=gen).to(self.device) * self.objective.sigma_data
        return Draw(x0=x0, z=z, t=t.to(self.device), label=label if self.labels else None)

    def _loss(self, net: nn.Module, step: int, result: Evaluation) -> None:
        """The objective's loss on held-out images at the proposal's noise levels."""
        gen = rng.generator(self.seed, "eval-times", device="cpu")
        t = self.objective.draw_times(LOSS_IMAGES, generator=gen, device="cpu")
        loss = self.objective.loss(net, self._noised(LOSS_IMAGES, t, "eval-noise"), step)
        result.metrics["eval/loss"] = float(loss.loss.mean())
        result.metrics["eval/error"] = float(loss.error.mean())

    def _loss_over_noise(self, net: nn.Module, step: int, result: Evaluation) -> None:
        """Error per noise level, and e^-w where w is learned, which then comes to equal it."""
        sigmas = torch.logspace(-2, 1.9, LEVELS, dtype=torch.float64)
        errors, inverse_weights = [], []
        for t in trigflow.time_from_sigma(sigmas, self.objective.sigma_data).float():
            noised = self._noised(LEVEL_IMAGES, t.repeat(LEVEL_IMAGES), "eval-noise")
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
            title=f"{self.objective.name}: loss over noise level",
        )

    def _denoising_strip(self, net: nn.Module, result: Evaluation) -> None:
        """f(x_t, t) of held-out images at 16 times: the denoiser, or the end of the trajectory."""
        sd = self.objective.sigma_data
        times = schedules.karras_times(
            STRIP_TIMES, sigma_min=0.02, sigma_max=80.0, rho=7.0, sigma_data=sd
        )[:-1].float()
        noisy, denoised = [], []
        for t in times:
            noised = self._noised(STRIP_IMAGES, t.repeat(STRIP_IMAGES), "eval-noise")
            x_t = trigflow.interpolate(noised.x0, noised.z, noised.t)
            F, _ = net(x_t / sd, noised.t, noised.label)
            noisy.append(x_t.cpu())
            denoised.append(trigflow.consistency(x_t, F, noised.t, sd).cpu())
        result.pictures["denoising_strip"] = pictures.strip(
            torch.stack(noisy, 1), torch.stack(denoised, 1)
        )

    def _samples(self, net: nn.Module, name: str, sampler: Sampler, result: Evaluation) -> None:
        labels = None
        if self.labels:
            labels = torch.arange(GRID_IMAGES) % self.dataset.num_classes
        started = time.perf_counter()
        images = torch.cat(
            list(
                draw(
                    sampler,
                    net,
                    GRID_IMAGES,
                    seed=self.seed,
                    image_shape=self.dataset.image_shape,
                    sigma_data=self.objective.sigma_data,
                    device=self.device,
                    labels=labels,
                )
            )
        )
        seconds = time.perf_counter() - started
        result.metrics[f"eval/{name}/calls"] = sampler.calls
        result.metrics[f"eval/{name}/images_per_second"] = GRID_IMAGES / seconds
        result.metrics[f"eval/{name}/mean"] = float(images.mean())
        result.metrics[f"eval/{name}/std"] = float(images.std())
        _, height, width = self.dataset.image_shape
        if height * width == 1:
            reference = self.dataset.test_batch(4096).x0.cpu()
            result.pictures[name] = pictures.histogram(images, reference, f"{name}: {len(images)}")
        else:
            result.pictures[name] = pictures.grid(images, GRID_COLUMNS)
