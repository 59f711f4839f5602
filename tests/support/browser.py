"""A real browser for tests: Chromium without a window, by its DevTools protocol over two pipes."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)
COMPLAINTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
SECONDS = 60  # until what a test waits for must have come


class Browser:
    """One tab; `profile` is an empty folder. Its workers' requests are seen too."""

    def __init__(self, profile: Path, *flags: str) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        # it reads descriptor 3 and writes 4, which may be others' before the fork
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 64) for end in (to_browser[0], from_browser[1])]

        def hand_over() -> None:
            for number, descriptor in enumerate(theirs, 3):
                os.dup2(descriptor, number)

        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, "about:blank"]
        self.process = subprocess.Popen(
            command,
            pass_fds=(3, 4),
            preexec_fn=hand_over,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (*theirs, to_browser[0], from_browser[1]):
            os.close(descriptor)
        self.writes, self.reads = to_browser[1], from_browser[0]
        self.rest, self.number, self.session = b"", 0, ""
        self.requests: list[str] = []  # addresses, in their order
        self.complaints: list[str] = []  # errors and whatever else the console shows
        tabs = [t for t in self.command("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.command("Target.attachToTarget", targetId=tabs[0]["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.command(
            "Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True
        )

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        os.close(self.writes)
        os.close(self.reads)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; what happens meanwhile is noted."""
        number = self._send(method, self.session, parameters)
        while (message := self._receive()).get("id") != number:
            self._note(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def js(self, expression: str) -> Any:
        """The value, or the value that is promised, of an expression in the page."""
        given = {"awaitPromise": True, "returnByValue": True}
        answer = self.command("Runtime.evaluate", expression=expression, **given)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = SECONDS) -> Any:
        """Its value as soon as that is a true one."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}"
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        """Go there; the page may still be loading afterwards."""
        self.command("Page.navigate", url=url)

    def press(self, key: str) -> None:
        """A key by its name, such as Enter, where the focus is."""
        code = {"Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self.command("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.command("Input.dispatchKeyEvent", type="keyUp", **about)

    def drag(self, *points: tuple[float, float]) -> None:
        """The mouse, its button held from the first point of the window to the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]], strict=True):
            held = {"button": "left", "buttons": 1, "clickCount": 1}
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def _send(self, method: str, session: str, parameters: dict[str, Any]) -> int:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        return self.number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reads], [], [], SECONDS)
            assert ready, f"the browser has said nothing for {SECONDS} s"
            read = os.read(self.reads, 1 << 20)
            assert read, "the browser has ended"
            self.rest += read
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in COMPLAINTS:
            self.complaints.append(json.dumps(parameters))
        elif method == "Target.attachedToTarget":  # a worker, which waits to be watched
            for what in ("Network.enable", "Runtime.enable", "Runtime.runIfWaitingForDebugger"):
                self._send(what, parameters["sessionId"], {})
