"""Ctrl-C and SIGTERM as a wish to stop at the next step; a second one ends the process at once.

In work that has no steps and loses nothing, the first one is raised instead.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal, by its number, that came while signals were `raised`."""


class Interrupts:
    """While it is entered, the first signal is only noted in `signal`."""

    def __init__(self) -> None:
        self._raises = False
        self.signal = 0  # number of the signal that came, 0 for none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """While entered, the first signal is raised as Interrupted; so is one noted before."""
        self._raises = True
        try:
            if self.signal:
                raise Interrupted(self.signal)
            yield
        finally:
            self._raises = False

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        does = "stopping" if self._raises else "saving at the next step"
        log.warning("%s: %s; again to end at once", signal.Signals(number).name, does)
        if self._raises:
            raise Interrupted(number)
