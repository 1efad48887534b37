"""Many answers in one thread: the open ones take turns, the others wait in order of arrival.

A turn is one round. Where a round is shorter than `SHORT_ROUND`, as those of a very small model, it is as many as begin within
`TURN_SECONDS`: what lies between two turns, messages to clients and another sequence's cache, would cost as much as such a round.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.runtime.generation import Generation, Piece
from quasar.runtime.model import Model
from quasar.runtime.serving.metrics import Tally
from quasar.runtime.serving.triton.request import Order

UNLOADED = "the model is being unloaded; ask again later"
UNWELL_SECONDS = 30.0
REPORT_SECONDS = 0.5
"""How often metrics are reported: a report takes time away from answers."""
SHORT_ROUND = 0.005
TURN_SECONDS = 0.025


@dataclass(frozen=True)
class Part:
    """What a response carries.

    Attributes:
        text, ids: since the last response.
        finish_reason: None where more follows.
        statistics: of the whole answer, where this is its end.
    """

    text: str
    ids: list[int]
    finish_reason: str | None = None
    statistics: dict[str, Any] | None = None


class Client(Protocol):
    """Who waits for an answer. After `fail`, `leave` or a part with a finish reason, it hears no more."""

    def is_cancelled(self) -> bool:
        """Whether the answer is not wanted any more."""
        ...

    def send(self, part: Part) -> None:
        """Pass on a part of the answer."""
        ...

    def fail(self, message: str, usage: bool) -> None:
        """There is no answer, or no more of it; `usage` where the request is to blame."""
        ...

    def leave(self) -> None:
        """The answer ends here, because it is not wanted."""
        ...


class Reporter(Protocol):
    """Where metrics go."""

    def report(self, tally: Tally) -> None:
        """Pass on what happened since the last report."""
        ...


class _Job:
    """A request, and what became of it so far.

    Attributes:
        generation: None before the first turn.
    """

    def __init__(self, order: Order, client: Client) -> None:
        self.order = order
        self.client = client
        self.arrival = time.perf_counter()
        self.model: Model | None = None
        self.generation: Generation | None = None
        self._text = [order.echo]
        self._ids: list[int] = []
        self._counted = (0, 0, 0)  # rounds, proposed, accepted

    @property
    def done(self) -> bool:
        """Whether the answer has come to its end."""
        return self.generation is not None and self.generation.done

    def take(self, piece: Piece, tally: Tally) -> None:
        """Take in a round's tokens."""
        assert self.generation is not None
        self._text.append(piece.text)
        self._ids.extend(piece.ids)
        now = self.generation.statistics
        if now.new_tokens == len(piece.ids):
            tally.first_token(time.perf_counter() - self.arrival)
        tally.tokens(len(piece.ids))
        counts = (now.rounds, now.proposed, now.accepted)
        tally.rounds(*(after - before for after, before in zip(counts, self._counted, strict=True)))
        self._counted = counts

    def tell(self) -> None:
        """Send what there is and may be sent: all at the end, before that only what a stream carries."""
        if self.generation is None or not self._ids or not (self.order.stream or self.done):
            return
        reason = self.generation.result.finish_reason if self.done else None
        statistics = self.generation.statistics.to_dict() if self.done else None
        self.client.send(Part("".join(self._text), self._ids, reason, statistics))
        self._text, self._ids = [], []


class Scheduler:
    """Answers requests on the models of one instance, in a thread of its own.

    Args:
        models: siblings, one for each answer that is worked on at the same time.
        reporter: takes the metrics.
    """

    def __init__(self, models: Sequence[Model], reporter: Reporter) -> None:
        self._free = deque(models)
        self._reporter = reporter
        self._tally = Tally()
        self._reported = time.perf_counter()
        self._waiting: deque[_Job] = deque()
        self._open: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failed: float | None = None
        self._thread = threading.Thread(target=self._work, name="quasar", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether answers can be expected: the thread runs, and the engines did not fail just now.

        A failure counts for a while only: a server that sends nothing to what is not ready would never learn better.
        """
        failed = self._failed is not None and time.perf_counter() - self._failed < UNWELL_SECONDS
        return self._thread.is_alive() and not self._closing and not failed

    def submit(self, order: Order, client: Client) -> None:
        """Take in a request; any thread may."""
        job = _Job(order, client)
        with self._changed:
            if not self._closing:
                self._waiting.append(job)
                self._changed.notify()
                return
        client.fail(UNLOADED, False)

    def close(self) -> None:
        """End: the answers that are open or wait fail. The models stay, for their owner to close."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._admit():
            job = self._open.popleft()
            if self._turn(job):
                self._open.append(job)
            elif job.model is not None:
                self._free.append(job.model)
            if time.perf_counter() - self._reported > REPORT_SECONDS:
                self._report()
        self._report()
        for job in (*self._open, *self._waiting):
            _fail(job.client, UNLOADED, False)

    def _admit(self) -> bool:
        """Let waiting requests in where there is room, and wait until there is work; False at the end."""
        with self._changed:
            while not self._closing:
                while self._waiting and self._free:
                    job = self._waiting.popleft()
                    job.model = self._free.popleft()
                    self._open.append(job)
                if self._open:
                    return True
                if not self._changed.wait(None if self._tally.empty else REPORT_SECONDS):
                    self._report()
        return False

    def _turn(self, job: _Job) -> bool:
        """A turn of an answer; False when that was its end. Whatever goes wrong is said to its own client."""
        try:
            now = time.perf_counter()
            first, end = job.generation is None, now + TURN_SECONDS
            if first and now - job.arrival > SHORT_ROUND and job.client.is_cancelled():  # while it waited
                job.client.leave()
                return False
            while True:
                self._round(job)
                if first:
                    job.tell()
                    first = False
                before, now = now, time.perf_counter()
                if job.done or now - before >= SHORT_ROUND or now >= end:
                    break
            return self._finish_turn(job)
        except UsageError as error:
            _fail(job.client, str(error), True)
        except QuasarError as error:
            self._failed = time.perf_counter()
            _fail(job.client, str(error), False)
        except Exception as error:  # the others go on
            _fail(job.client, f"internal error: {type(error).__name__}: {first_line(error)}", False)
        return False

    def _round(self, job: _Job) -> None:
        if job.generation is None:
            assert job.model is not None
            job.generation = job.model.answer(job.order.prompt, job.order.params)
        job.take(next(job.generation), self._tally)
        self._failed = None

    def _finish_turn(self, job: _Job) -> bool:
        """Send what there is, and ask whether more is wanted."""
        assert job.generation is not None
        job.tell()
        gone = not job.done and job.client.is_cancelled()
        if not gone and not job.done:
            return True
        job.generation.cancel()  # one that is done stays so
        self._tally.answer(job.generation.finish().statistics.tokens_per_round)
        if gone:
            job.client.leave()
        return False

    def _report(self) -> None:
        with contextlib.suppress(Exception):  # answers matter more than their count
            self._reporter.report(self._tally)
        self._tally = Tally()
        self._reported = time.perf_counter()


def _fail(client: Client, message: str, usage: bool) -> None:
    with contextlib.suppress(Exception):  # the client may be gone, and the others go on
        client.fail(message, usage)
