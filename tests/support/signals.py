"""A signal that comes to this process while it trains."""

import os
import signal

from scm.training.loop import Task


def signal_at(step, monkeypatch):
    """Send this process SIGTERM while the data of `step` are drawn."""
    original = Task.draw

    def draw(self, k):
        if k == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, k)

    monkeypatch.setattr(Task, "draw", draw)
