"""Answers that a request waits for: what the worker's thread says of them, heard in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from quasar.runtime.serving.openai.errors import RequestError, failed
from quasar.runtime.serving.request import Failure, Order, Part
from quasar.runtime.serving.worker import Worker


class Answers:
    """All answers of one request, as they grow: iterate over (number of the answer, part of it).

    Leaving it cancels those that are not complete.

    Raises:
        RequestError: one of them is refused; the others are cancelled.
    """

    def __init__(self, worker: Worker, orders: Sequence[Order]) -> None:
        self._said: asyncio.Queue[tuple[int, Part | RequestError]] = asyncio.Queue()
        self._clients = [_Client(number, self._said) for number in range(len(orders))]
        for order, client in zip(orders, self._clients, strict=True):
            worker.submit(order, client)
            if client.refusal is not None:
                self.cancel()
                raise client.refusal

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits any more."""
        for client in self._clients:
            client.gone = True

    async def __aiter__(self) -> AsyncIterator[tuple[int, Part]]:
        open_ones = len(self._clients)
        while open_ones:
            number, said = await self._said.get()
            if isinstance(said, RequestError):
                raise said
            open_ones -= said.finish_reason is not None
            yield number, said


class _Client:
    """See `quasar.runtime.serving.request.Client`."""

    def __init__(self, number: int, said: asyncio.Queue[tuple[int, Part | RequestError]]) -> None:
        self.gone = False
        self.refusal: RequestError | None = None
        self._number = number
        self._said = said
        self._loop = asyncio.get_running_loop()

    def is_cancelled(self) -> bool:
        return self.gone

    def send(self, part: Part) -> None:
        self._say(part)

    def fail(self, message: str, failure: Failure) -> None:
        self.refusal = failed(message, failure)
        self._say(self.refusal)

    def leave(self) -> None:
        """Nobody listens."""

    def _say(self, what: Part | RequestError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._said.put_nowait, (self._number, what))
