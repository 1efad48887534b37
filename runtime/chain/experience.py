"""What a verifier has seen of one of its proposers: how often it is right, what it costs, and whether to try it again."""

from __future__ import annotations

from dataclasses import dataclass, field

from quasar.runtime.chain.estimates import Acceptance, ReadingCosts, Savings, StepCosts
from quasar.runtime.proposers.proposer import Draft, Proposer
from quasar.runtime.sequence import Sequence

# share of the time in which an engine that does not pay is tried again
CURIOSITY = 0.01
# how many times what reading a prompt costs its drafts must promise to save: promises are broken rather than kept
PROFIT = 1.5
# rounds in which it then drafts before it is judged, and tokens that it drafts in each
TRIALS, PROBE_LENGTH = 2, 3
# passes with drafts between those without
SHORTEST_INTERVAL, LONGEST_INTERVAL = 4, 256


@dataclass
class _Watch:
    """A draft whose tokens are compared with what the text became, also those that nobody verified."""

    position: int
    drafts: list[Draft]
    checked: int = 0


@dataclass(eq=False)
class Experience:
    """Acceptance and costs belong to the proposer, watched drafts to a sequence.

    Attributes:
        savings, reading: of an engine.
        trials: rounds in which it is asked whatever it promises.
    """

    proposer: Proposer
    acceptance: Acceptance = field(default_factory=Acceptance)
    costs: StepCosts = field(default_factory=StepCosts)
    savings: Savings = field(default_factory=Savings)
    reading: ReadingCosts = field(default_factory=ReadingCosts)
    trials: int = TRIALS
    _watches: dict[Sequence, list[_Watch]] = field(default_factory=dict)
    _follows: dict[Sequence, bool] = field(default_factory=dict)
    _credit: float = 0.0

    def join(self, sequence: Sequence) -> None:
        """A sequence begins."""
        self._watches[sequence] = []

    def decide(self, sequence: Sequence, sequences: int, length: float) -> None:
        """An engine begins to follow a sequence if that saves more than to read the prompt costs, or to see if it does by now.

        Args:
            sequences: that there are.
            length: tokens that the answer is expected to have.
        """
        if sequence in self._follows:
            return
        saved = self.savings.estimate(sequences)
        token = self.costs.estimate(1)
        reading = self.reading.estimate(self.proposer.missing(sequence), token)
        follow = saved is None or saved * length > PROFIT * reading
        if not follow and self._credit > reading + TRIALS * PROBE_LENGTH * token:
            follow, self.trials = True, TRIALS
        if follow:
            self._credit = 0.0
        self._follows[sequence] = follow

    def earn(self, seconds: float) -> None:
        """Passes of the verifier took so long, of which trials may take their share."""
        self._credit += CURIOSITY * seconds

    def follows(self, sequence: Sequence) -> bool:
        """Whether it reads along with a sequence, so that it can draft for it."""
        return self._follows.get(sequence, False)

    def watch(self, sequence: Sequence, drafts: list[Draft]) -> None:
        """A draft was made for the text as it is."""
        if drafts:
            self._watches[sequence].append(_Watch(len(sequence.tokens), drafts))

    def learn(self, sequence: Sequence) -> None:
        """Compare watched drafts with what the text became; nothing is learned past the first token that missed."""
        tokens, unresolved = sequence.tokens, []
        for watch in self._watches[sequence]:
            hit = True
            while hit and watch.checked < len(watch.drafts) and watch.position + watch.checked < len(tokens):
                draft = watch.drafts[watch.checked]
                hit = draft.token == tokens[watch.position + watch.checked]
                self.acceptance.observe(draft.grade, hit)
                watch.checked += 1
            if hit and watch.checked < len(watch.drafts):
                unresolved.append(watch)
        self._watches[sequence] = unresolved

    def settle(self, sequence: Sequence, length: int) -> None:
        """Of the sequence, only the first `length` tokens were kept."""
        self._watches[sequence] = [watch for watch in self._watches[sequence] if watch.position <= length]

    def leave(self, sequence: Sequence) -> None:
        """The sequence is complete."""
        self._watches.pop(sequence, None)
        self._follows.pop(sequence, None)


class PlainPasses:
    """When to do a pass without drafts, of so many sequences, to see again what drafts are compared with.

    The first, and then after 4, 8, 16, ... passes with drafts: who never looks keeps a wrong idea of it.
    """

    def __init__(self) -> None:
        self._waits: dict[int, int] = {}
        self._intervals: dict[int, int] = {}

    def due(self, sequences: int) -> bool:
        """Whether it is time; counts as a pass with drafts if not."""
        left = self._waits.get(sequences, 0)
        self._waits[sequences] = left - 1
        if left > 0:
            return False
        interval = self._intervals.get(sequences, SHORTEST_INTERVAL)
        self._waits[sequences] = interval
        self._intervals[sequences] = min(2 * interval, LONGEST_INTERVAL)
        return True

    def seen(self, sequences: int) -> None:
        """There was one anyway."""
        self._waits[sequences] = self._intervals[sequences]
