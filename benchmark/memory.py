"""Peak memory of a training step, each case in a process of its own.

`python -m benchmark.memory '{...}'` is that process: it prints one line of JSON.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmark.cases import Workshop
from benchmark.timing import Label, memory_limit, synchronize
from scm.core import machine
from scm.core.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
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
    child = subprocess.run(
        [sys.executable, "-m", "benchmark.memory", json.dumps(request)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if child.returncode == 0:
        return Memory(label, **json.loads(child.stdout.splitlines()[-1]))
    reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
    if child.returncode == 2:
        raise UserError(reason)
    return Memory(label, error=reason)


def main(request: str) -> None:
    """The fresh process: build, step, print base and peak."""
    given = json.loads(request)
    label = Label(**given["label"])
    device = machine.find_device(given["device"])
    with tempfile.TemporaryDirectory() as folder, memory_limit(device):
        workshop = Workshop(given["device"], given["overrides"], Path(folder))
        work = workshop.step(label)
        base = machine.reset_peak_memory(device)
        for _ in range(STEPS):
            work.call()
        synchronize(device)
        print(json.dumps({"base": base, "peak": machine.peak_memory_bytes(device)}))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
