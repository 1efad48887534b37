"""A headless Chromium, driven through the DevTools protocol over a pipe: no package and no port."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no chromium, chromium-browser or google-chrome on PATH"
PATIENCE = 120.0
"""Seconds until something counts as not happening."""
DOMAINS = ("Page", "Runtime", "Log", "Network")
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27)}


class Browser:
    """One page of a browser of its own.

    Args:
        home: an empty directory for its profile.

    Attributes:
        events: what it told so far, as the protocol writes it.
    """

    def __init__(self, home: Path) -> None:
        assert CHROMIUM is not None, NO_CHROMIUM
        theirs, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # away from 3 and 4, which it reads from and writes to
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs, theirs_out)]
        command = [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--remote-debugging-pipe", f"--user-data-dir={home}", "--window-size=1200,900", "about:blank"),
        ]
        self._process = os.posix_spawn(
            CHROMIUM, command, os.environ,
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, end, 3 + i) for i, end in enumerate(high)),
                *((os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)),
            ],
        )  # fmt: skip
        for end in (theirs, theirs_out, *high):
            os.close(end)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        page = next(one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in DOMAINS:
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        self._session = None
        with contextlib.suppress(OSError, AssertionError):
            self.send("Browser.close")
        os.close(self._out)
        os.close(self._in)
        os.waitpid(self._process, 0)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": self._session} if self._session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        for said in self._messages():
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said['error']}"
                return dict(said["result"])
            self.events.append(said)
        raise AssertionError(f"{method}: the browser is gone")

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + PATIENCE
        while True:
            message, found, rest = self._rest.partition(b"\0")
            if found:
                self._rest = rest
                yield json.loads(message)
                continue
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 16)
            if not data:
                return
            self._rest += data

    def open(self, url: str) -> None:
        """Load a page."""
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of JavaScript in the page; a promise is waited for."""
        done = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait for JavaScript to be true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"!!({expression})"):
            assert time.monotonic() < end, f"never came: {expression}; the page says {self.run('document.body.innerText')!r}"
            time.sleep(0.05)

    def write(self, text: str) -> None:
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """A key, down and up."""
        text, code = KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """The middle of an element, as a mouse does."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        box = self.run(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **where)

    def named(self, method: str) -> list[dict[str, Any]]:
        """Parameters of all events of a name."""
        return [event["params"] for event in self.events if event.get("method") == method]
