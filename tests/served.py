"""The real `quasar-serve` in a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2 as httpx

PATIENCE = 120.0


class Served:
    """A server; use it as a context manager.

    Attributes:
        url: where it listens.
        lines: what it printed when it was ready.
    """

    def __init__(self, bundle: Path, *options: str) -> None:
        command = [sys.executable, "-m", "quasar.runtime.serving.openai", str(bundle), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.url = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if found := re.match(r"http://\S+", line):
                self.url = found[0]
                break
        if not self.url:
            _, said = self.process.communicate(timeout=PATIENCE)
            raise RuntimeError(f"exit {self.process.returncode}: {said}")
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Ask."""
        return self.http.post(path, json=body, headers=headers)

    def metric(self, name: str) -> float:
        """The sum of a metric's values."""
        return metric(self.http, name)


def metric(http: httpx.Client, name: str) -> float:
    """The sum of a metric's values on a server's page."""
    lines = http.get("/metrics").text.splitlines()
    values = [line.rsplit(" ", 1)[1] for line in lines if re.match(name + r"[{ ]", line)]
    assert values, f"no metric {name}"
    return sum(map(float, values))


def until(holds: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether something comes to hold."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def events(response: httpx.Response) -> Iterator[str]:
    """The data of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
