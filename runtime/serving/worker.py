"""Answers requests in a thread of its own; all that are worked on share the rounds of one model."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

from quasar.engines.errors import QuasarError
from quasar.runtime.answer import Logprob
from quasar.runtime.generation import Generation
from quasar.runtime.model import Model
from quasar.runtime.serving.metrics import IDLE, Reporter, Tally
from quasar.runtime.serving.request import Client, Failure, Order, Part, failure_of
from quasar.runtime.statistics import LevelStatistics

UNLOADED = "the model is being unloaded; ask again later"
UNWELL_SECONDS = 30.0
REPORT_SECONDS = 0.5
"""How often metrics are reported: a report takes time away from answers."""
TALK_SECONDS = 0.025
"""How often clients hear of an answer between its first tokens and its end, where rounds are shorter than this: those of a very
small model cost less than messages about them."""
MESSAGE_SECONDS = 0.008
"""From one message to the next of all clients: to write and read one takes 0.3 ms of a processor, for which passes wait."""


class _Job:
    """A request, and what became of it so far.

    Attributes:
        generation: None until the model has it.
    """

    def __init__(self, order: Order, client: Client) -> None:
        self.order = order
        self.client = client
        self.generation: Generation | None = None
        self._arrival = time.perf_counter()
        self._begun = False
        self._text = [order.echo]
        self._ids: list[int] = []
        self._origins: list[str] = []
        self._logprobs: list[Logprob] = []
        self._counted = LevelStatistics("")  # what metrics have of it

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self._arrival

    def take(self, generation: Generation, tally: Tally) -> bool:
        """Take in what a round gave; whether these were the first tokens."""
        now, before = generation.statistics, len(self._ids)
        while (piece := generation.poll()) is not None:
            self._text.append(piece.text)
            self._ids.extend(piece.ids)
            self._origins.extend(piece.origins)
            self._logprobs.extend(piece.logprobs)
        tally.tokens(len(self._ids) - before)
        tally.rounds(now.levels[-1])
        tally.rounds(self._counted, -1)
        self._counted = now.levels[-1].counters()
        first = bool(self._ids) and not self._begun
        if first:
            self._begun = True
            tally.prompt(now, self.seconds)
        return first

    def tell(self, generation: Generation) -> None:
        """Send what there is and may be sent: all at the end, before that only what a stream carries."""
        if generation.done:
            self.client.send(self._part(generation.result.finish_reason, generation.statistics.to_dict()))
        elif self._ids and self.order.stream:
            self.client.send(self._part())

    def _part(self, reason: str | None = None, statistics: dict[str, Any] | None = None) -> Part:
        """What there is, which is then gone."""
        part = Part("".join(self._text), self._ids, reason, statistics, self._logprobs, self._origins)
        self._text, self._ids, self._origins, self._logprobs = [], [], [], []
        return part

    def fail(self, message: str, failure: Failure) -> None:
        """Tell the client that there is no answer."""
        with contextlib.suppress(Exception):  # it may be gone, and the others go on
            self.client.fail(message, failure)


class Worker:
    """Answers requests with one model.

    Args:
        model: as many requests as it has `sequences` share its rounds, the others wait in order of arrival.
        reporter: takes the metrics.
        queue_limit: requests that may wait; those beyond are refused. None for any number.
    """

    def __init__(self, model: Model, reporter: Reporter, queue_limit: int | None = None) -> None:
        self._model = model
        self._reporter = reporter
        self._queue_limit = queue_limit
        self._tally = Tally()
        self._reported = self._talked = self._told = time.perf_counter()
        self._arrived: list[_Job] = []
        self._jobs: list[_Job] = []
        self._busy = False
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

    @property
    def busy(self) -> bool:
        """Whether a request is worked on or waits."""
        return bool(self._jobs or self._arrived)

    def submit(self, order: Order, client: Client) -> None:
        """Take in a request; any thread may."""
        with self._changed:
            refusal = UNLOADED if self._closing else self._full()
            if refusal is None:
                self._arrived.append(_Job(order, client))
                self._changed.notify()
                return
        client.fail(refusal, "unavailable")

    def close(self) -> None:
        """End: the answers that are open or wait fail. The model stays, for its owner to close."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _full(self) -> str | None:
        """Why one more request is refused."""
        if self._queue_limit is None:
            return None
        slots = self._model.options.sequences
        if len(self._jobs) + len(self._arrived) < slots + self._queue_limit:
            return None
        return f"{slots} requests are worked on and {self._queue_limit} wait, which is the limit; ask again later"

    def _work(self) -> None:
        while self._collect():
            self._step()
            self._attend()
            if time.perf_counter() - self._reported > REPORT_SECONDS:
                self._report()
        for job in (*self._jobs, *self._arrived):
            if job.generation is not None:
                job.generation.cancel()
            job.fail(UNLOADED, "unavailable")
        self._tally.gauges = IDLE
        self._report()

    def _collect(self) -> bool:
        """Give the model what arrived, and wait until there is work; False at the end."""
        with self._changed:
            while not (self._arrived or self._busy or self._closing):
                if not self._changed.wait(None if self._tally.empty else REPORT_SECONDS):
                    self._report()
            if self._closing:
                return False
            arrived, self._arrived = self._arrived, []
            self._jobs += arrived
        for job in arrived:
            try:
                job.generation = self._model.answer(job.order.prompt, job.order.params, job.order.speculation)
            except Exception as error:  # it is this request's alone
                self._fail(job, error)
        return True

    def _step(self) -> None:
        """One round for all."""
        if self._jobs:
            self._tally.step()
        try:
            self._busy = self._model.step()
        except Exception as error:  # what an answer could say by itself is not raised
            self._busy = False
            for job in list(self._jobs):
                self._fail(job, error)

    def _attend(self) -> None:
        """Look after every request. Whatever goes wrong is said to its own client."""
        now = time.perf_counter()
        listeners = sum(job.order.stream for job in self._jobs)
        talk = now - self._talked >= TALK_SECONDS
        tell = now - self._told >= max(TALK_SECONDS, MESSAGE_SECONDS * listeners)
        self._talked = now if talk else self._talked
        self._told = now if tell else self._told
        for job in list(self._jobs):
            try:
                self._look_after(job, talk, tell)
            except Exception as error:  # the others go on
                self._fail(job, error)
        scheduler = self._model.scheduler
        self._tally.requests(scheduler.open, scheduler.waiting, scheduler.cache_use)

    def _look_after(self, job: _Job, talk: bool, tell: bool) -> None:
        """Pass on what a request got, and ask whether more is wanted, both from time to time."""
        generation = job.generation
        assert generation is not None
        first = job.take(generation, self._tally)
        if generation.error is not None:
            raise generation.error
        if first:
            self._failed = None
        if generation.done:
            self._end(job, generation)
            job.tell(generation)
            return
        if first or tell:
            job.tell(generation)
        if talk and job.client.is_cancelled():
            self._end(job, generation)
            job.client.leave()

    def _end(self, job: _Job, generation: Generation) -> None:
        """Let go of a request: there is room for another one before its client hears of the end."""
        generation.cancel()  # one that is done stays so
        self._jobs.remove(job)
        self._tally.answer(generation.statistics, job.seconds)

    def _fail(self, job: _Job, error: Exception) -> None:
        message, failure = failure_of(error)
        if isinstance(error, QuasarError) and failure == "internal":
            self._failed = time.perf_counter()
        if job.generation is not None:
            job.generation.cancel()
        if job in self._jobs:
            self._jobs.remove(job)
        job.fail(message, failure)

    def _report(self) -> None:
        with contextlib.suppress(Exception):  # answers matter more than their count
            self._reporter.report(self._tally)
        self._tally = Tally(self._tally.gauges)
        self._reported = time.perf_counter()
