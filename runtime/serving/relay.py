"""Messages to clients in a thread of their own: they wait for another process, and engines run meanwhile."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from quasar.engines.errors import first_line
from quasar.runtime.serving.metrics import Reporter, Tally
from quasar.runtime.serving.request import Client, Failure, Part


class Relay:
    """Passes messages on in the order in which they come.

    Args:
        reporter: takes the metrics.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._messages: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="quasar-relay", daemon=True)
        self._thread.start()

    def post(self, message: Callable[[], object]) -> None:
        """Have a function called by and by; what it raises is lost."""
        self._messages.put(message)

    def report(self, tally: Tally) -> None:
        """See `Reporter.report`."""
        self.post(lambda: self._reporter.report(tally))

    def close(self) -> None:
        """Pass on what is left, and end."""
        self._messages.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            with contextlib.suppress(Exception):  # the others' messages go on
                message()


class RelayedClient:
    """A client that is talked to through a relay, and so does not keep the engines waiting.

    Whether it went away is asked by and by when somebody wants to know, who gets what is known by then: a round later.
    """

    def __init__(self, client: Client, relay: Relay) -> None:
        self._client = client
        self._relay = relay
        self._asking = False
        self._gone = False
        self._over = False

    def is_cancelled(self) -> bool:
        """See `Client.is_cancelled`."""
        if not self._asking:
            self._asking = True
            self._relay.post(self._ask)
        return self._gone

    def _ask(self) -> None:
        self._asking = False
        self._gone = self._gone or self._client.is_cancelled()

    def send(self, part: Part) -> None:
        """See `Client.send`."""
        self._relay.post(lambda: self._send(part))

    def _send(self, part: Part) -> None:
        if self._over:
            return
        try:
            self._client.send(part)
        except Exception as error:
            # it would wait for the rest, or take what came for all
            self._gone = self._over = True
            self._client.fail(f"a response could not be sent: {first_line(error)}", "internal")

    def fail(self, message: str, failure: Failure) -> None:
        """See `Client.fail`."""
        self._relay.post(lambda: None if self._over else self._client.fail(message, failure))

    def leave(self) -> None:
        """See `Client.leave`."""
        self._relay.post(lambda: None if self._over else self._client.leave())
