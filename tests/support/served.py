"""The page of docs/page on a web server of a test's own, and what it shows there."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import torch

from scm.core.files import REPOSITORY
from scm.method import trigflow

PAGE = REPOSITORY / "docs" / "page"
SD = 0.5
LEVELS = 3  # of 255, by which a pixel may differ: weights in half precision, and rounding
SEED = 7  # of the page's first noise


class Quiet(SimpleHTTPRequestHandler):
    """Of the standard library, as the page's one line starts it, without its log."""

    missing = ""  # a file that is not there

    def do_GET(self):
        if self.missing and self.path.endswith(self.missing):
            self.send_error(404)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """On a port of its own; a reader who goes away is no error."""

    def __init__(self, handler=Quiet):
        super().__init__(("127.0.0.1", 0), functools.partial(handler, directory=str(PAGE)))
        self.address = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass


def finished(page, section):
    page.until(f"document.getElementById('{section}')?.ariaBusy === 'false'")


def look_at(page, section):
    page.js(f"document.getElementById('{section}').scrollIntoView()")
    finished(page, section)


def text(page, id_):
    return page.js(f"document.getElementById('{id_}').textContent")


def pixels(page, id_):
    """A canvas's (28, 28) grey levels."""
    values = page.js(
        "((copy) => {"  # a canvas that is read often complains
        f"copy.drawImage(document.getElementById('{id_}'), 0, 0);"
        "return Array.from(copy.getImageData(0, 0, 28, 28).data) })"
        "(new OffscreenCanvas(28, 28).getContext('2d', { willReadFrequently: true }))"
    )
    return torch.tensor(values, dtype=torch.float32).view(28, 28, 4)[..., 0]


def noise(page, seed):
    """The page's own noises of a seed, as a sampler wants them."""

    def draw(k):
        made = page.js(f"import('./scm.mjs').then((m) => [...m.gaussian({seed}, {k}, 784)])")
        return torch.tensor(made).view(1, 1, 28, 28)

    return draw


def assert_shows(page, id_, image):
    expected = (255 * (image.reshape(28, 28) + 0.5)).clamp(0, 255)
    torch.testing.assert_close(pixels(page, id_), expected, rtol=0, atol=LEVELS)


def level(page, section):
    """The time of a section's slider."""
    slider = page.js(f"Number(document.getElementById('{section}-t').value)")
    return slider / 100 * trigflow.time_from_sigma(torch.tensor(80.0), SD)
