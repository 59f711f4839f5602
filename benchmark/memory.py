"""Peak memory of a training step, or of a data set, each case in a process of its own.

`python -m benchmark.memory '{...}'` is that process.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark import growth, process
from benchmark.cases import Workshop
from benchmark.timing import Label, memory_limit, synchronize
from scm.core import machine

STEPS = 3  # the optimiser's state is there from the second on


@dataclass(frozen=True)
class Memory:
    """Bytes held by a process, resident on a CPU, allocated on a GPU; or why there are none."""

    label: Label
    base: int = 0  # after building, before the first step
    peak: int = 0  # the most ever after
    error: str = ""

    @property
    def above(self) -> int:
        """What the steps took."""
        return self.peak - self.base


def measure(label: Label, *, device: str, overrides: Sequence[str]) -> Memory:
    """Run a few steps in a fresh process. UserError is raised here as it was there."""
    request = {"label": asdict(label), "device": device, "overrides": list(overrides)}
    try:
        return Memory(label, **process.asked("benchmark.memory", request))
    except process.Failed as failure:
        return Memory(label, error=str(failure))


def steps(given: dict[str, Any]) -> dict[str, int]:
    """The fresh process: build, step, answer with base and peak."""
    label = Label(**given["label"])
    device = machine.find_device(given["device"])
    with tempfile.TemporaryDirectory() as folder, memory_limit(device):
        workshop = Workshop(given["device"], given["overrides"], Path(folder))
        base = machine.reset_peak_memory(device)
        if label.grows == growth.IMAGES:  # what the set itself takes
            work = workshop.random_batch(label)
        else:
            work = workshop.step(label)
            base = machine.reset_peak_memory(device)
        for _ in range(STEPS):
            work.call()
        synchronize(device)
        return {"base": base, "peak": machine.peak_memory_bytes(device)}


if __name__ == "__main__":
    process.answer(steps)
