"""The round: an engine checks what was proposed to it, and keeps a prefix of each sequence's draft."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Hashable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np

from quasar.engines.engine import Float32, Scores
from quasar.runtime.chain.acceptance import Probabilities, accept_matching, accept_rejection
from quasar.runtime.chain.cached import CachedTokens, Wanted
from quasar.runtime.chain.drafting import Drafting
from quasar.runtime.chain.estimates import PassCosts
from quasar.runtime.proposers.proposer import Ask, Draft, Proposer
from quasar.runtime.sequence import Sequence, Turn

# a pass that catches up with more tokens than this is a prefill, and says nothing of verification
LONGEST_PENDING = 32
# an engine's probabilities of its own choices, between which drafts get another grade
CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Round:
    """What one pass gave a sequence.

    Attributes:
        tokens: those that follow the sequence: what was accepted of the draft, and one more. None where a prompt was read
            and goes on.
        scores: what each of them was chosen from, row by row of `feed`; valid until the engine's next pass.
        distributions: p of each, where the acceptance rule needs it.
        origins: of each, see `Draft.origin`; empty for the one that nobody proposed.
    """

    tokens: list[int]
    scores: Scores
    feed: int
    distributions: list[Probabilities] | None = None
    origins: list[str] = field(default_factory=list)

    def logits(self, row: int) -> Float32:
        """float32 [V] that a token was chosen from."""
        logits: Float32 = self.scores.logits(self.feed)[row]
        return logits


class _Branch:
    """What proposes to a verifier, and how far."""

    def __init__(self, proposers: Many[Proposer], costs: PassCosts, draft_length: int | None) -> None:
        self.inner = [proposer for proposer in proposers if isinstance(proposer, Verifier)]
        below = [further for level in self.inner for further in level.below]
        self.below: list[Proposer] = [*proposers, *below]
        self.drafting = Drafting(proposers, below, costs, draft_length)

    @property
    def levels(self) -> list[Verifier]:
        """The verifiers that propose."""
        return [level for proposer in self.inner for level in proposer.levels()]


class Verifier:
    """An engine, and what proposes to it. It is itself a proposer: what it accepts, it proposes to the next.

    Sequences share its passes whatever proposes to them: beside the branch that it is made with, others may be added.

    Args:
        cached: of the engine, whose choices the tokens are, whatever is proposed.
        proposers: none for plain decoding.
        draft_length: tokens proposed a round; None for as many as pay.
    """

    weightless = False
    leads = False

    def __init__(self, cached: CachedTokens, proposers: Many[Proposer], draft_length: int | None) -> None:
        self.cached = cached
        self.name = cached.engine.spec.name
        self._costs = PassCosts()
        self._own = _Branch(proposers, self._costs, draft_length)
        self._branches: dict[Hashable, _Branch] = {None: self._own}
        self._joined: dict[Sequence, _Branch] = {}

    @property
    def below(self) -> list[Proposer]:
        """All that proposes, to it or further down."""
        return self._own.below

    def add_branch(self, key: Hashable, proposers: Many[Proposer], draft_length: int | None) -> None:
        """Let sequences choose other proposers; any thread may."""
        self._branches[key] = _Branch(proposers, self._costs, draft_length)

    def drop_branch(self, key: Hashable) -> None:
        """Take a branch away: sequences that have joined keep it, others get the verifier's own."""
        del self._branches[key]

    def levels(self, sequence: Sequence | None = None) -> list[Verifier]:
        """The verifiers that work on a sequence, else all; this one last."""
        branches = self._every_branch() if sequence is None else [self._joined[sequence]]
        return [*(level for branch in branches for level in branch.levels), self]

    def _every_branch(self) -> list[_Branch]:
        """Those that were taken away and are still at work among them."""
        return list(dict.fromkeys((*self._branches.values(), *self._joined.values())))

    def join(self, sequence: Sequence) -> None:
        """See `Proposer.join`: what the slot holds of the prompt is kept."""
        # the last token is fed in any case: its logits are wanted
        self.cached.truncate(sequence.slot, self.cached.shared(sequence.slot, sequence.tokens[:-1]))
        sequence.level(self.name)
        branch = self._joined[sequence] = self._branches.get(sequence.branch, self._own)
        branch.drafting.join(sequence)

    def missing(self, sequence: Sequence) -> int:
        """See `Proposer.missing`."""
        return len(sequence.tokens) - self.cached.filled(sequence.slot)

    def read(self, turns: Many[Turn]) -> int:
        """See `Proposer.read`."""
        for branch, members in self._by_branch(turns):
            branch.drafting.read(members)
        if self.cached.follows:
            return 0
        wanted = [_wanted(turn, [], 0) for turn in turns if turn.upto and turn.upto > self.cached.filled(turn.sequence.slot)]
        tokens = sum(map(self.cached.fed, wanted))
        if wanted:
            self.cached.score(wanted)
        return tokens

    def round(self, turns: Many[Turn]) -> list[Round]:
        """One verification pass: between 1 and `limit` tokens for each sequence that is not in its prompt."""
        reading = [turn for turn in turns if turn.upto is not None]
        going = [turn for turn in turns if turn.upto is None]
        for branch, members in self._by_branch(reading):
            branch.drafting.read(members)
        pending = sum(self.missing(turn.sequence) for turn in going)
        prompts = [turn.upto - self.cached.filled(turn.sequence.slot) for turn in reading if turn.upto]
        made = self._draft(going, prompts)
        begin = time.perf_counter()
        parts = [(turn, made.get(turn.sequence, [])) for turn in turns]
        wanted = [_wanted(turn, [draft.token for draft in drafted], self._rows(turn, drafted)) for turn, drafted in parts]
        fed = [self.cached.fed(one) for one in wanted]
        rows = sum(fed)
        scores = self.cached.score(wanted)
        rounds = []
        for feed, ((turn, drafted), one) in enumerate(zip(parts, wanted, strict=True)):
            done, accepted = self._judge(turn.sequence, drafted, scores, feed) if one.rows else (Round([], scores, feed), 0)
            rounds.append(done)
            self.settle(turn.sequence, one.upto + accepted)
        seconds = time.perf_counter() - begin
        if going and pending <= LONGEST_PENDING * len(going):
            self._costs.observe(len(going), rows, len(fed) * max(fed) - rows, seconds)
        for (turn, drafted), done in zip(parts, rounds, strict=True):
            if turn.upto is None:
                turn.sequence.level(self.name).count_round(len(drafted), len(done.tokens) - 1, rows, seconds)
        return rounds

    def propose(self, asks: Many[Ask]) -> list[list[Draft]]:
        """See `Proposer.propose`."""
        rounds = self.round([Turn(ask.sequence, ask.limit) for ask in asks])
        return [self._drafts(ask.sequence, done) for ask, done in zip(asks, rounds, strict=True)]

    def settle(self, sequence: Sequence, length: int) -> None:
        """See `Proposer.settle`."""
        self.cached.truncate(sequence.slot, length)
        self._joined[sequence].drafting.settle(sequence, length)

    def leave(self, sequence: Sequence) -> None:
        """See `Proposer.leave`. What the slot holds stays, for a prompt that begins alike."""
        self._joined.pop(sequence).drafting.leave(sequence)

    def forget(self) -> None:
        """See `Proposer.forget`."""
        for branch in self._every_branch():
            branch.drafting.forget()

    def _by_branch(self, turns: Many[Turn]) -> list[tuple[_Branch, list[Turn]]]:
        members: dict[_Branch, list[Turn]] = {}
        for turn in turns:
            members.setdefault(self._joined[turn.sequence], []).append(turn)
        return list(members.items())

    def _draft(self, going: Many[Turn], prompts: list[int]) -> dict[Sequence, list[Draft]]:
        """The drafts of a round. For a branch, what the others have in the pass is like prompts: there whatever it drafts."""
        made: dict[Sequence, list[Draft]] = {}
        for branch, members in self._by_branch(going):
            others = [turn.sequence for turn in going if turn not in members]
            beside = [self.missing(sequence) + len(made.get(sequence, ())) for sequence in others]
            asks = [Ask(turn.sequence, self._room(turn)) for turn in members]
            pending = sum(self.missing(ask.sequence) for ask in asks)
            drafts = branch.drafting.draft(asks, pending, [*prompts, *beside])
            made.update(zip((ask.sequence for ask in asks), drafts, strict=True))
        return made

    def _room(self, turn: Turn) -> int:
        """Tokens that a draft may have: the following token is not fed, so the cache may be full of it."""
        spec = self.cached.engine.spec
        room = min(turn.limit - 1, spec.max_length - len(turn.sequence.tokens), spec.max_rows - self.missing(turn.sequence))
        return max(room, 0)

    @staticmethod
    def _rows(turn: Turn, drafted: list[Draft]) -> int:
        """Rows whose scores are wanted; none within a prompt."""
        return 0 if turn.upto is not None and turn.upto < len(turn.sequence.tokens) else len(drafted) + 1

    def _drafts(self, sequence: Sequence, done: Round) -> list[Draft]:
        return [
            Draft(
                token,
                self._grade(sequence, done, i),
                done.distributions[i] if done.distributions else None,
                done.origins[i] or self.name,
            )
            for i, token in enumerate(done.tokens)
        ]

    @staticmethod
    def _grade(sequence: Sequence, done: Round, row: int) -> Hashable:
        """Grade of a round's token by its probability."""
        probability = done.scores.confidence(done.feed, row)
        if not sequence.sampler.takes_best:
            logits = done.logits(row)
            probability *= float(np.exp(logits[done.tokens[row]] - logits.max()))
        grade = bisect(CONFIDENCES, probability)
        # of an answer with a guide, what an engine would rather say counts for less than what it may
        return grade if sequence.guide is None else (done.origins[row], grade)

    @staticmethod
    def _judge(sequence: Sequence, draft: list[Draft], scores: Scores, feed: int) -> tuple[Round, int]:
        """(the round, draft tokens accepted)"""
        sampler, tokens = sequence.sampler, [drafted.token for drafted in draft]
        rows = range(len(draft) + 1)
        if sampler.takes_best:
            accepted, following = accept_matching((scores.best(feed, i) for i in rows), tokens)
            return Round([*tokens[:accepted], following], scores, feed, origins=_origins(draft, accepted)), accepted
        context = sequence.tokens + tokens
        length = len(sequence.tokens)
        kept: list[Probabilities] = []

        def distributions() -> Iterator[Probabilities]:
            for i in rows:
                kept.append(sampler.distribution(scores.logits(feed)[i], context[: length + i]))
                yield kept[-1]

        if sampler.rejects:
            drafted = [d.distribution for d in draft]
            accepted, following = accept_rejection(distributions(), tokens, drafted, sampler.uniform)
        else:
            choices = (sampler.choose(scores.logits(feed)[i], context[: length + i]) for i in rows)
            accepted, following = accept_matching(choices, tokens)
        return Round([*tokens[:accepted], following], scores, feed, kept or None, _origins(draft, accepted)), accepted


def _origins(draft: list[Draft], accepted: int) -> list[str]:
    return [*(drafted.origin for drafted in draft[:accepted]), ""]


def _wanted(turn: Turn, draft: list[int], rows: int) -> Wanted:
    sequence = turn.sequence
    return Wanted(sequence.slot, sequence.tokens, len(sequence.tokens) if turn.upto is None else turn.upto, draft, rows)
