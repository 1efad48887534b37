"""The one loop: a step is a round of the chain's last engine for all open sequences. Synchronous, without a thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Many
from functools import partial

from quasar.engines.engine import Engine
from quasar.engines.errors import QuasarError
from quasar.runtime.answer import Answer
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.scoring import INTERRUPTED, Scorer, Scoring
from quasar.runtime.sequence import Turn
from quasar.runtime.statistics import difference

# tokens of prompts in a pass that others wait for: each costs them about as much as a token of their own drafts
READ_BESIDE = 64


class Scheduler:
    """Answers and texts to score, those that have a slot and those that wait for one, in order of arrival.

    Args:
        verifier: of the chain's last engine.
        engines: of the chain, by name; their seconds are counted.
        slots: answers and texts that are worked on at the same time.
        prefix_caching: leave what a slot's caches hold for a prompt that begins alike.
    """

    def __init__(self, verifier: Verifier, engines: Mapping[str, Engine], slots: int, prefix_caching: bool = True) -> None:
        self._verifier = verifier
        self._engines = engines
        self._prefix_caching = prefix_caching
        # the one that was used last comes last
        self._free = list(range(slots))
        # threads add to the first while a step may go over the second
        self._arrived: deque[Answer | Scoring] = deque()
        self._waiting: list[Answer | Scoring] = []
        self._open: list[Answer] = []
        self._scorer = Scorer(verifier)

    @property
    def open(self) -> int:
        """Answers and texts that have a slot."""
        return len(self._open) + self._scorer.open

    @property
    def waiting(self) -> int:
        """Those that wait for one."""
        return len(self._arrived) + len(self._waiting)

    @property
    def cache_use(self) -> float:
        """Share of the positions of the last engine's caches that open answers fill, 0 to 1."""
        spec = self._verifier.cached.engine.spec
        filled = sum(len(answer.sequence.tokens) for answer in self._open)
        return min(filled / (spec.slots * spec.max_length), 1.0)

    def add(self, job: Answer | Scoring) -> None:
        """Let an answer or a text wait for a slot; any thread may."""
        self._arrived.append(job)

    def step(self) -> None:
        """One round. What goes wrong in it is said by the answers that it concerns.

        Raises:
            KeyboardInterrupt: the round was interrupted; all open answers are cancelled.
        """
        self._end()
        self._admit()
        turns = self._turns()
        try:
            self._scorer.step(self._budget(bool(turns)))
            begin, before = time.perf_counter(), self._seconds()
            rounds = self._verifier.round([turn for _, turn in turns]) if turns else []
        except Exception as error:  # nobody knows what the caches hold now
            for level in self._verifier.levels():
                level.cached.clear()
            self.fail(error)
        except BaseException:
            for answer, _ in turns:
                answer.cancel()
            self._scorer.fail(QuasarError(INTERRUPTED))
            raise
        else:
            seconds, spent = time.perf_counter() - begin, difference(self._seconds(), before)
            for (answer, _), done in zip(turns, rounds, strict=True):
                answer.count(seconds, spent)
                if done.tokens:
                    answer.take(done)
        self._end()

    def fail(self, error: Exception) -> None:
        """End the open answers and texts with an error."""
        for answer in self._open:
            answer.fail(error)
        self._scorer.fail(error)
        self._end()

    def close(self, error: Exception) -> None:
        """End every answer and text with an error."""
        self._arrive()
        for job in self._waiting:
            job.fail(error)
        self.fail(error)

    def _end(self) -> None:
        """Let go of answers and texts that are done, and forget those that did not want to wait."""
        for answer in [one for one in self._open if one.done]:
            self._open.remove(answer)
            self._verifier.leave(answer.sequence)
            self._release(answer.sequence.slot)
        for slot in self._scorer.end():
            self._release(slot)
        self._arrive()
        self._waiting = [job for job in self._waiting if not job.done]

    def _release(self, slot: int) -> None:
        self._free.append(slot)
        if not self._prefix_caching:
            for level in self._verifier.levels():
                level.cached.truncate(slot, 0)

    def _arrive(self) -> None:
        while self._arrived:
            self._waiting.append(self._arrived.popleft())

    def _admit(self) -> None:
        while self._waiting and self._free:
            job, cached = self._waiting.pop(0), self._verifier.cached
            tokens = job.tokens if isinstance(job, Scoring) else job.sequence.tokens
            # of equals the first, which was not used for the longest time
            slot = max(self._free, key=partial(cached.shared, tokens=tokens[:-1]))
            self._free.remove(slot)
            if isinstance(job, Scoring):
                self._scorer.join(job, slot)
                continue
            job.sequence.slot = slot
            self._verifier.join(job.sequence)
            self._open.append(job)
            job.start(cached.filled(slot), [level.name for level in self._verifier.levels(job.sequence)])

    def _turns(self) -> list[tuple[Answer, Turn]]:
        going = [answer for answer in self._open if not answer.reading]
        turns = [(answer, Turn(answer.sequence, answer.left)) for answer in going]
        for answer, chunk in self._chunks([answer for answer in self._open if answer.reading], self._budget(bool(going))):
            upto = self._verifier.cached.filled(answer.sequence.slot) + chunk
            turns.append((answer, Turn(answer.sequence, answer.left, upto)))
        return turns

    def _budget(self, beside: bool) -> int:
        """Tokens that a pass reads, of prompts or of texts to score, where others wait for it and where none do."""
        most = self._verifier.cached.engine.spec.max_rows
        return min(READ_BESIDE, most) if beside else most

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
