"""What a run counts and averages: seconds, speed, means of scalars between two records."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

UNTIMED_STEPS = 5  # of every process: they warm up caches and are left out of images_per_second


@dataclass
class Counters:
    """What a run has used, kept in its checkpoints."""

    seconds: float = 0.0  # of training, without evaluation and saving
    timed_seconds: float = 0.0  # the same without the first steps of every process
    timed_images: int = 0

    def add(self, seconds: float, images: int, steps_here: int) -> None:
        """Count one step, the `steps_here`-th of this process."""
        self.seconds += seconds
        if steps_here > UNTIMED_STEPS:
            self.timed_seconds += seconds
            self.timed_images += images

    @property
    def images_per_second(self) -> float:
        """Training alone; 0 before there is something to say."""
        return self.timed_images / self.timed_seconds if self.timed_seconds else 0.0


@dataclass
class Meter:
    """Means over the steps taken since the last log record; all stays on the device."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: Tensor | int = 0

    def add(self, scalars: dict[str, Tensor], finite: Tensor) -> None:
        """Add one step's scalars, unless it was skipped, without waiting for the device."""
        self.sums = {
            tag: self.sums.get(tag, 0) + torch.where(finite, value, 0)
            for tag, value in scalars.items()
        }
        self.count = self.count + finite

    def take(self) -> dict[str, float]:
        """The means, {} where no step was taken; waits for the device and starts anew."""
        count = int(self.count)
        means = {tag: float(total) / count for tag, total in self.sums.items()} if count else {}
        self.sums, self.count = {}, 0
        return means
