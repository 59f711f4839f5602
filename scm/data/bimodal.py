"""The one-dimensional toy: two Gaussians, drawn without end, whose exact solution is known."""

import torch

from scm.core.errors import UserError
from scm.core.rng import generator
from scm.data.dataset import Batch, Dataset
from scm.data.mixture import Mixture


class Bimodal(Dataset):
    """One-dimensional toy: Gaussians at -mean and +mean with equal weights, as (1, 1, 1) "images".

    Both are scaled by sigma_data / sqrt(mean^2 + std^2), which makes the mixture's standard
    deviation sigma_data. The label is the component, 0 (left) or 1. Values are not confined to
    [-0.5, 0.5].

    `exact` has their scaled mean and std, denoiser, ODE and consistency function.
    """

    exact: Mixture

    def __init__(
        self,
        *,
        name: str,
        image_shape: tuple[int, int, int] | list[int],
        mean: float,
        std: float,
        sigma_data: float,
        sigma_data_tolerance: float,
    ) -> None:
        if not (mean >= 0 and std > 0 and sigma_data > 0):
            raise UserError(
                f"data.mean={mean:g} data.std={std:g} data.sigma_data={sigma_data:g}: "
                "need mean >= 0, std > 0 and sigma_data > 0"
            )
        if tuple(image_shape) != (1, 1, 1):
            raise UserError(
                f"data.image_shape={list(image_shape)}: the toy's numbers are [1, 1, 1]"
            )
        self.name = name
        self.image_shape = (1, 1, 1)
        self.num_classes = 2
        self.sigma_data = sigma_data
        scale = sigma_data / (mean**2 + std**2) ** 0.5
        self.exact = Mixture(mean=mean * scale, std=std * scale, sigma_data=sigma_data)
        self._check_sigma_data(sigma_data_tolerance)

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        return self._draw(generator(seed, "bimodal", step, device="cpu"), batch_size)

    def test_batch(self, n: int) -> Batch:
        return self._draw(generator(0, "bimodal-test", device="cpu"), n)

    def measured_sigma_data(self) -> float:
        x0, _ = self._draw(generator(0, "bimodal-sigma", device="cpu"), 2**16)
        return float(x0.double().square().mean().sqrt())

    def _draw(self, gen: torch.Generator, n: int) -> Batch:
        """x0 = +-m + s e: drawn on the CPU, so that every device sees the same numbers."""
        labels = torch.randint(2, (n,), generator=gen)
        noise = torch.randn(n, generator=gen)
        means = torch.tensor([-self.exact.mean, self.exact.mean])
        x0 = means[labels] + self.exact.std * noise
        return Batch(x0.reshape(n, 1, 1, 1).to(self.device), labels.to(self.device))
