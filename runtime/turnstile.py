"""Threads that share a scheduler: one of them runs the next step for all, the others wait for what it gives them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from quasar.engines.errors import QuasarError

CLOSED = "the model is closed; load it again"


class Turnstile:
    """Lets one thread at a time run a step.

    Args:
        step: runs one.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._changed = threading.Condition()
        self._stepping = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing runs any more."""
        return self._closed

    def until(self, ready: Callable[[], bool]) -> None:
        """Run steps, or wait while other threads do, until `ready`; it is asked between steps.

        Raises:
            QuasarError: the model was closed, now or before, and nothing is ready.
        """
        while self._enter(ready):
            try:
                self._step()
            finally:
                self._leave()

    def once(self) -> None:
        """Run one step.

        Raises:
            QuasarError: the model was closed.
        """
        self._enter(lambda: False)
        try:
            self._step()
        finally:
            self._leave()

    def close(self, close: Callable[[], None]) -> None:
        """End: wait for the step that runs now, then call `close`, once."""
        with self._changed:
            self._changed.wait_for(lambda: not self._stepping)
            if not self._closed:
                self._closed = True
                close()
            self._changed.notify_all()

    def _enter(self, ready: Callable[[], bool]) -> bool:
        """Whether this thread has to run the next step."""
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._closed or not self._stepping)
            if ready():
                return False
            if self._closed:
                raise QuasarError(CLOSED)
            self._stepping = True
            return True

    def _leave(self) -> None:
        with self._changed:
            self._stepping = False
            self._changed.notify_all()
