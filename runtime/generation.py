"""An answer as its asker sees it: an iterator of pieces, and their result."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from quasar.engines.errors import UsageError
from quasar.runtime.answer import Answer, Piece, Result
from quasar.runtime.statistics import Statistics
from quasar.runtime.turnstile import Turnstile


class Generation:
    """One answer in the making. Iterating runs rounds, in which other answers go on, too.

    An answer that nobody holds any more is cancelled.
    """

    def __init__(self, answer: Answer, turnstile: Turnstile) -> None:
        self._answer = answer
        self._turnstile = turnstile
        weakref.finalize(self, answer.cancel).atexit = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        answer = self._answer
        self._turnstile.until(lambda: bool(answer.pieces) or answer.done)
        if answer.pieces:
            return answer.pieces.popleft()
        if answer.error is not None:
            raise answer.error
        raise StopIteration

    def poll(self) -> Piece | None:
        """The next piece if there is one; runs nothing."""
        return self._answer.pieces.popleft() if self._answer.pieces else None

    def cancel(self) -> None:
        """End after the round that runs now."""
        self._answer.cancel()

    def finish(self) -> Result:
        """Run to the end."""
        for _ in self:
            pass
        return self.result

    @property
    def done(self) -> bool:
        """Whether the answer has come to its end."""
        return self._answer.done

    @property
    def error(self) -> Exception | None:
        """Why it ended, where something went wrong."""
        return self._answer.error

    @property
    def statistics(self) -> Statistics:
        """Counters so far."""
        return self._answer.statistics

    @property
    def result(self) -> Result:
        """The answer so far; `cancelled` where it did not come to its end."""
        return self._answer.result


def result_of(begun: Generation | UsageError) -> Result:
    """The result of one answer among several: what went wrong with it is said by the result.

    Raises:
        QuasarError: the model was closed.
    """
    if isinstance(begun, UsageError):
        return Result("", [], "error", Statistics(), error=str(begun))
    try:
        return begun.finish()
    except Exception:
        if begun.error is None:
            raise
        return begun.result
