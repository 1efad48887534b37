"""A request to a server, and who waits for its answer: what every server hands to a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.runtime.answer import Logprob
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.speculation import Speculation

Failure = Literal["usage", "unavailable", "internal"]
"""Why there is no answer: the request is to blame, it may be asked again later, or something broke."""


@dataclass(frozen=True)
class Order:
    """What a request asks for.

    Attributes:
        prompt: its tokens.
        params: how to choose tokens and when to stop.
        echo: text to put before the answer.
        stream: a response whenever there is something new, or one for the whole answer.
        speculation: of this answer; None for the server's own.
    """

    prompt: ReadPrompt
    params: SamplingParams
    echo: str = ""
    stream: bool = False
    speculation: Speculation | None = None


@dataclass(frozen=True)
class Part:
    """What a response carries.

    Attributes:
        text, ids: since the last response.
        logprobs: of these ids, where they were asked for.
        origins: of these ids, see `Piece`.
        finish_reason: None where more follows.
        statistics: of the whole answer, where this is its end.
    """

    text: str
    ids: list[int]
    finish_reason: str | None = None
    statistics: dict[str, Any] | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)


class Client(Protocol):
    """Who waits for an answer. After `fail`, `leave` or a part with a finish reason, it hears no more."""

    def is_cancelled(self) -> bool:
        """Whether the answer is not wanted any more."""
        ...

    def send(self, part: Part) -> None:
        """Pass on a part of the answer."""
        ...

    def fail(self, message: str, failure: Failure) -> None:
        """There is no answer, or no more of it."""
        ...

    def leave(self) -> None:
        """The answer ends here, because it is not wanted."""
        ...


def failure_of(error: Exception) -> tuple[str, Failure]:
    """What `Client.fail` is told of an error."""
    if isinstance(error, QuasarError):
        return str(error), "usage" if isinstance(error, UsageError) else "internal"
    return f"internal error: {type(error).__name__}: {first_line(error)}", "internal"
