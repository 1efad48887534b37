"""What a verifier has seen of one of its proposers: how often it is right, what it costs, and whether to try it again."""

from __future__ import annotations

from dataclasses import dataclass, field

from quasar.runtime.chain.estimates import Acceptance, StepCosts
from quasar.runtime.proposers.proposer import Draft, Proposer
from quasar.runtime.sequence import Sequence

# sequences until an engine whose drafts did not pay may try again, at the most
LONGEST_PAUSE = 16
# rounds in which it then drafts before it is judged
TRIALS = 2


@dataclass
class _Watch:
    """A draft whose tokens are compared with what the text became, also those that nobody verified."""

    position: int
    drafts: list[Draft]
    checked: int = 0


@dataclass(eq=False)
class Experience:
    """Acceptance and costs belong to the proposer, watched drafts to a sequence.

    An engine whose drafts do not pay need not read prompts: it rests for 1, 2, 4, ... sequences, and is then tried again.

    Attributes:
        trials: rounds in which it is asked whatever it promises.
    """

    proposer: Proposer
    acceptance: Acceptance = field(default_factory=Acceptance)
    costs: StepCosts = field(default_factory=StepCosts)
    trials: int = TRIALS
    _watches: dict[Sequence, list[_Watch]] = field(default_factory=dict)
    _followed: set[Sequence] = field(default_factory=set)
    _paid: bool = True
    _pause: int = 1
    _resting: int = 0

    def join(self, sequence: Sequence) -> None:
        """A sequence begins."""
        self._watches[sequence] = []
        if not self._paid and self._resting == 0:  # it was tried, in vain
            self._resting, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        if self._resting > 0:
            self._resting -= 1
            if self._resting > 0:
                return
            self._paid, self.trials = True, TRIALS
        self._followed.add(sequence)

    def follows(self, sequence: Sequence) -> bool:
        """Whether it reads along with a sequence, so that it can draft for it."""
        return sequence in self._followed

    def judge(self, paid: bool) -> None:
        """A round was decided: with the proposer's drafts, or without because they would not have paid."""
        self._paid = paid
        if paid and self.trials == 0:
            self._pause = 1
        self.trials = max(self.trials - 1, 0)

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
        self._followed.discard(sequence)
