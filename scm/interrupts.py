"""Ctrl-C and SIGTERM as a wish to stop at the next step; a second one ends the process at once."""

import logging
import signal
from types import FrameType
from typing import Any, Self

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, the first signal is only noted in `signal`."""

    def __init__(self) -> None:
        self.signal = 0  # number of the signal that came, 0 for none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        log.warning(
            "%s: saving at the next step; again to end at once", signal.Signals(number).name
        )
