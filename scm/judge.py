"""The quality of a network's samples while it trains: few of them at intervals, many at the end.

The same noise every time, so two judgements differ by the weights alone. A Frechet distance depends
on the number of images, so few and many have tags of their own. Knows nothing of training.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scm.data import to_uint8
from scm.quality import Quality
from scm.samplers import Sampler, draw


@dataclass(frozen=True)
class Judge:
    """Draws from every sampler and measures, beside the floor of as many real images."""

    quality: Quality
    samplers: dict[str, Sampler]
    images: int  # per sampler at intervals, tags quality/*; 0: none
    final_images: int  # at the end, tags final/*; 0: none
    seed: int
    num_classes: int  # 0: unconditional
    image_shape: tuple[int, int, int]
    sigma_data: float
    device: torch.device

    def __call__(self, net: nn.Module, *, final: bool) -> dict[str, float]:
        """`scm.tags.QUALITY` of every sampler under its tag; `net` is in eval mode."""
        groups = {"quality": self.images, **({"final": self.final_images} if final else {})}
        groups = {group: n for group, n in groups.items() if n}
        if not groups:
            return {}
        judged = {f"{group}/floor": self.quality.floor(n) for group, n in groups.items()}
        for name, sampler in self.samplers.items():
            images = self._images(net, sampler, max(groups.values()))
            for group, n in groups.items():  # the few are the first of the many
                judged[f"{group}/{name}"] = self.quality.measure(images[:n])
        return {
            f"{tag}/{name}": value
            for tag, measured in judged.items()
            for name, value in measured.items()
        }

    def _images(self, net: nn.Module, sampler: Sampler, n: int) -> Tensor:
        batches = draw(
            sampler,
            net,
            n,
            seed=self.seed,
            image_shape=self.image_shape,
            sigma_data=self.sigma_data,
            device=self.device,
            labels=torch.arange(n) % self.num_classes if self.num_classes else None,
        )
        return torch.cat([to_uint8(batch) for batch in batches])
