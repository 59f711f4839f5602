"""Other processes on the same cores: torch's threads then wait for each other without spinning.

libgomp's threads spin for milliseconds at every barrier. Alone that is fastest. Beside a busy
process it is the opposite: a spinning thread holds the core on which the one it waits for should
run, and a step takes three and a half times as long (docs/performance.md). The choice must be made
before torch is imported, so nothing here imports it.
"""

import logging
import os
import sys
import time
from pathlib import Path

log = logging.getLogger(__name__)

STAT = Path("/proc/stat")  # Linux: ticks of each kind since the start, of all cores together first
SECONDS = 0.1  # to look
SPIN = {"GOMP_SPINCOUNT": "1000"}  # then a waiting thread sleeps; libgomp's own: 300 times as long
ASKED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # a user's own choice


def make_threads_yield() -> bool:
    """Let the threads of torch, which is not imported yet, yield if others hold cores now.

    Returns whether it was done. What is computed does not change.
    """
    if "torch" in sys.modules or any(name in os.environ for name in ASKED) or not STAT.exists():
        return False
    wanted = len(os.sched_getaffinity(0))
    if (idle := idle_cores()) > wanted - 0.5:
        return False
    os.environ.update(SPIN)
    log.info("%.1f of %d cores are idle: threads will yield to other processes", idle, wanted)
    return True


def idle_cores() -> float:
    """How many cores had nothing to do, over a tenth of a second."""
    before = _ticks()
    time.sleep(SECONDS)
    passed = [now - then for now, then in zip(_ticks(), before, strict=True)]
    return (os.cpu_count() or 1) * sum(passed[3:5]) / max(1, sum(passed[:8]))  # idle, iowait


def _ticks() -> list[int]:
    return [int(ticks) for ticks in STAT.read_text().partition("\n")[0].split()[1:]]
