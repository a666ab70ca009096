"""A headless Chromium over the DevTools protocol on a pipe: no driver, no port, no package beside the browser."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"),
)
PATIENCE = 240.0  # seconds without any news: WebGL runs on the processor, which other work may share
#: Changes while a page is being read and drawn.
PROGRESS = "document.readyState, document.all.length, {...document.getElementById('stage')?.dataset}"


def find() -> str | None:
    """XDISTILL_CHROMIUM, or the first known name on PATH."""
    named = os.environ.get("XDISTILL_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One open page. requests: addresses that it asked for; problems: its errors and warnings of the console."""

    def __init__(self, browser: str) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._start(browser)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.emulate(1200, 900)

    def emulate(self, width: int, height: int, *, dark: bool = False) -> None:
        """A window of this size on a screen that prefers light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _start(self, browser: str) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        self._buffer, self._next, self._session = b"", 0, ""
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}"]
        # Chromium reads commands from descriptor 3 and answers on 4.
        redirect = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "chromium", browser, *flags, "--remote-debugging-pipe"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, trace: TracebackType | None) -> None:
        os.close(self._commands)  # the browser ends when its pipe closes
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command to the page."""
        return self._call(method, self._session, **params)

    def _call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        self._next += 1
        command = {"id": self._next, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._next:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = select.select([self._answers], [], [], PATIENCE)[0]
            assert ready, f"Chromium said nothing for {PATIENCE:g} s"
            data = os.read(self._answers, 2**20)
            assert data, f"Chromium ended with exit code {self._process.wait()}"
            self._buffer += data
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"])[:500])
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(params["entry"]["text"])

    def open(self, path: Path) -> None:
        """Load a file; returns at once, see `wait`."""
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(f"location.pathname === {json.dumps(str(path.resolve()))} && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true; gives up when the page has stood still for PATIENCE, however long it takes."""
        seen, deadline = None, 0.0
        while not (state := self.value(f"[!!({expression}), {PROGRESS}]"))[0]:
            if state != seen:
                seen, deadline = state, time.monotonic() + PATIENCE
            stuck = f"not true, and nothing new for {PATIENCE:g} s: {expression}; {state[1:]}; {self.problems}"
            assert time.monotonic() < deadline, stuck
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """A mouse click in the middle of an element."""
        self.value(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y, width, height = self.box(selector)
        scroll = self.value("[scrollX, scrollY]")
        at = {"x": x - scroll[0] + width / 2, "y": y - scroll[1] + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def press(self, key: str) -> None:
        """A key on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def box(self, selector: str) -> list[float]:
        """x, y, width, height of an element on the page."""
        return self.value(
            f"(r => [r.x + scrollX, r.y + scrollY, r.width, r.height])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )

    def png(self, selector: str | None = None) -> bytes:
        """A picture of an element, or of the whole page."""
        size = ["scrollWidth", "scrollHeight"]
        x, y, width, height = (
            self.box(selector) if selector else [0, 0, *(self.value(f"document.documentElement.{s}") for s in size)]
        )
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


def pixels(png: bytes, channels: int = 3) -> NDArray[np.float32]:
    """[height, width, channels] in [0, 1]."""
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png")[..., :channels]
