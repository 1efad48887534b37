"""Answers of a request as one JSON object, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from quasar.runtime.model import Model
from quasar.runtime.serving.openai.answers import Answers
from quasar.runtime.serving.openai.errors import RequestError
from quasar.runtime.serving.request import Part

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
GONE = 499
"""Status that servers note where the client did not wait; nobody receives it."""


class Writer(Protocol):
    """Writes the answer of one request."""

    def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """Events that a part of an answer makes."""
        ...

    def end(self) -> Iterator[dict[str, Any]]:
        """Events that follow the last part."""
        ...

    def whole(self) -> dict[str, Any]:
        """Everything at once."""
        ...


@dataclass(frozen=True)
class Api:
    """One way to ask.

    Attributes:
        read: understands a request's JSON.
        writer: for a request that was understood.
        named: whether events have names, and the stream ends without `[DONE]`.
    """

    read: Callable[[dict[str, Any], Model], Any]
    writer: Callable[..., Writer]
    named: bool = False


async def collect(answers: Answers, writer: Writer) -> Response:
    """Everything at once."""
    async for number, part in answers:
        for _ in writer.take(number, part):
            pass
    return JSONResponse(writer.whole())


async def unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer, which is given up when the client goes away."""
    work = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        return Response(status_code=GONE)
    finally:
        work.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Answers as server-sent events, which are given up when the client goes away, even before the first of them.

    Args:
        patience: seconds without an event after which a comment says that the server is there.
    """

    def __init__(self, answers: Answers, writer: Writer, api: Api, patience: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(answers, writer, api, patience), media_type="text/event-stream", headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._answers:
            await super().__call__(scope, receive, send)


async def _events(answers: Answers, writer: Writer, api: Api, patience: float) -> AsyncIterator[bytes]:
    parts = aiter(answers)
    following = asyncio.ensure_future(anext(parts))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=patience)
            if not done:
                yield KEEP_ALIVE
                continue
            number, part = following.result()
            following = asyncio.ensure_future(anext(parts))
            if said := b"".join(_event(event, api) for event in writer.take(number, part)):
                yield said
    except StopAsyncIteration:
        yield b"".join(_event(event, api) for event in writer.end()) + (b"" if api.named else DONE)
    except RequestError as error:
        body = error.anthropic() if api.named else error.body()
        yield _event({"type": "error", **body} if api.named else body, api) + (b"" if api.named else DONE)
    finally:
        following.cancel()


def _event(event: dict[str, Any], api: Api) -> bytes:
    name = f"event: {event['type']}\n" if api.named else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode("utf-8", "replace")
