"""How long work shows itself: a bar on a terminal, a log line per interval elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)
T = TypeVar("T")


class Progress:
    """Shows the used part of a budget, its rate, the time left and the last metrics."""

    def __init__(self, used: float, *, shown: bool) -> None:
        self._bar = tqdm(
            total=1.0,
            initial=used,
            disable=not (shown and sys.stderr.isatty()),
            bar_format="{percentage:3.0f}% |{bar:24}| {desc}",
        )
        self._redirect = logging_redirect_tqdm()
        self._redirect.__enter__()
        self._metrics = ""
        self._started, self._used_at_start, self._used = time.monotonic(), used, used

    def update(self, used: float, step: int, images_per_second: float) -> None:
        """Called per step: moves the bar."""
        self._used = used
        if not self._bar.disable:
            self._bar.set_description_str(self._line(step, images_per_second), refresh=False)
            self._bar.update(used - self._bar.n)

    def report(self, step: int, images_per_second: float, loss: float, grad_norm: float) -> None:
        """Called per log interval: remembers the metrics, or logs a line without a terminal."""
        self._metrics = f"loss {loss:.4f}  grad norm {grad_norm:.3f}"
        if self._bar.disable:
            log.info("%3.0f%%  %s", 100 * self._used, self._line(step, images_per_second))

    def _line(self, step: int, images_per_second: float) -> str:
        left, done = "?", self._used - self._used_at_start
        if done > 0:
            seconds = (time.monotonic() - self._started) * max(0.0, 1 - self._used) / done
            left = f"{int(seconds // 60)}:{int(seconds % 60):02d}"
        return f"step {step:,}  {images_per_second:,.0f} images/s  ETA {left}  {self._metrics}"

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._redirect.__exit__(None, None, None)
        self._bar.close()


def shown(items: Iterable[T], total: int, title: str, every: float = 10) -> Iterator[T]:
    """The items, with their number, rate and time left: a bar on a terminal, lines elsewhere."""
    with tqdm(total=total, desc=title, unit="image", disable=not sys.stderr.isatty()) as bar:
        started = told = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            bar.update()
            now = time.monotonic()
            if bar.disable and now - told >= every:
                told, rate = now, done / (now - started)
                left = (total - done) / rate
                log.info(
                    "%s: %d of %d images, %.0f images/s, ETA %d:%02d",
                    *(title, done, total, rate, left // 60, left % 60),
                )
