"""The one loop: a step is a round of the chain's last engine for all open sequences. Synchronous, without a thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from functools import partial

from quasar.engines.engine import Engine
from quasar.runtime.answer import Answer
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.sequence import Turn
from quasar.runtime.statistics import difference

# tokens of prompts in a pass that others wait for: each costs them about as much as a token of their own drafts
READ_BESIDE = 64


class Scheduler:
    """Answers, those that have a slot and those that wait for one, in order of arrival.

    Args:
        verifier: of the chain's last engine.
        engines: of the chain, by name; their seconds are counted.
        slots: answers that are worked on at the same time.
        prefix_caching: leave what a slot's caches hold for a prompt that begins alike.
    """

    def __init__(self, verifier: Verifier, engines: Mapping[str, Engine], slots: int, prefix_caching: bool = True) -> None:
        self._verifier = verifier
        self._engines = engines
        self._prefix_caching = prefix_caching
        # the one that was used last comes last
        self._free = list(range(slots))
        # threads add to the first while a step may go over the second
        self._arrived: deque[Answer] = deque()
        self._waiting: list[Answer] = []
        self._open: list[Answer] = []

    @property
    def open(self) -> int:
        """Answers that have a slot."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Answers that wait for one."""
        return len(self._arrived) + len(self._waiting)

    @property
    def cache_use(self) -> float:
        """Share of the positions of the last engine's caches that open answers fill, 0 to 1."""
        spec = self._verifier.cached.engine.spec
        filled = sum(len(answer.sequence.tokens) for answer in self._open)
        return min(filled / (spec.slots * spec.max_length), 1.0)

    def add(self, answer: Answer) -> None:
        """Let an answer wait for a slot; any thread may."""
        self._arrived.append(answer)

    def step(self) -> None:
        """One round. What goes wrong in it is said by the answers that it concerns.

        Raises:
            KeyboardInterrupt: the round was interrupted; all open answers are cancelled.
        """
        self._end()
        self._admit()
        turns = self._turns()
        if not turns:
            return
        begin, before = time.perf_counter(), self._seconds()
        try:
            rounds = self._verifier.round([turn for _, turn in turns])
        except Exception as error:  # nobody knows what the caches hold now
            for level in self._verifier.levels():
                level.cached.clear()
            self.fail(error)
        except BaseException:
            for answer, _ in turns:
                answer.cancel()
            raise
        else:
            seconds, spent = time.perf_counter() - begin, difference(self._seconds(), before)
            for (answer, _), done in zip(turns, rounds, strict=True):
                answer.count(seconds, spent)
                if done.tokens:
                    answer.take(done)
        self._end()

    def fail(self, error: Exception) -> None:
        """End the open answers with an error."""
        for answer in self._open:
            answer.fail(error)
        self._end()

    def close(self, error: Exception) -> None:
        """End every answer with an error."""
        self._arrive()
        self._open += self._waiting
        self._waiting.clear()
        self.fail(error)

    def _end(self) -> None:
        """Let go of answers that are done, and forget those that did not want to wait."""
        for answer in [one for one in self._open if one.done]:
            self._open.remove(answer)
            if answer.started:
                self._verifier.leave(answer.sequence)
                slot = answer.sequence.slot
                self._free.append(slot)
                if not self._prefix_caching:
                    for level in self._verifier.levels():
                        level.cached.truncate(slot, 0)
        self._arrive()
        self._waiting = [answer for answer in self._waiting if not answer.done]

    def _arrive(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())

    def _admit(self) -> None:
        while self._waiting and self._free:
            answer = self._waiting.pop(0)
            sequence, cached = answer.sequence, self._verifier.cached
            # of equals the first, which was not used for the longest time
            slot = max(self._free, key=partial(cached.shared, tokens=sequence.tokens[:-1]))
            self._free.remove(slot)
            sequence.slot = slot
            self._verifier.join(sequence)
            self._open.append(answer)
            answer.start(cached.filled(slot), [level.name for level in self._verifier.levels(sequence)])

    def _turns(self) -> list[tuple[Answer, Turn]]:
        going = [answer for answer in self._open if not answer.reading]
        most = self._verifier.cached.engine.spec.max_rows
        budget = min(READ_BESIDE, most) if going else most
        turns = [(answer, Turn(answer.sequence, answer.left)) for answer in going]
        for answer, chunk in self._chunks([answer for answer in self._open if answer.reading], budget):
            upto = self._verifier.cached.filled(answer.sequence.slot) + chunk
            turns.append((answer, Turn(answer.sequence, answer.left, upto)))
        return turns

    def _chunks(self, reading: Many[Answer], budget: int) -> list[tuple[Answer, int]]:
        """Shares of the budget, equal but for prompts that need less: a short prompt does not wait for a long one."""
        missing = {answer: self._verifier.missing(answer.sequence) for answer in reading}
        chunks, left = [], budget
        for number, answer in enumerate(sorted(reading, key=missing.__getitem__)):
            chunk = min(missing[answer], left // (len(reading) - number))
            left -= chunk
            if chunk:
                chunks.append((answer, chunk))
        return chunks

    def _seconds(self) -> dict[str, float]:
        return {name: engine.seconds for name, engine in [*self._engines.items()]}  # others add to it
