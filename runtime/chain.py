"""Chains: proposers and the engine that verifies them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quasar.engines.engine import Engine, Float32
from quasar.engines.errors import UsageError
from quasar.runtime.acceptance import accept_greedy
from quasar.runtime.draft.prompt_lookup import PromptLookup
from quasar.runtime.draft.proposer import Proposal, Proposer
from quasar.runtime.sequence import Sequence
from quasar.runtime.statistics import Statistics

WEIGHTLESS: dict[str, Callable[[], Proposer]] = {PromptLookup.name: PromptLookup}


@dataclass(frozen=True)
class ChainSpec:
    """A chain as it is written: `proposer > engine`, or an engine alone.

    Attributes:
        proposer: name of a weightless proposer; None for plain decoding.
        verifier: name of the engine whose tokens the output is made of.
    """

    proposer: str | None
    verifier: str

    def __str__(self) -> str:
        return self.verifier if self.proposer is None else f"{self.proposer} > {self.verifier}"


def parse_chain(text: str) -> ChainSpec:
    """Read a chain.

    Raises:
        UsageError: it is not one that this release runs.
    """
    stages = [stage.strip() for stage in text.split(">")]
    proposers = ", ".join(WEIGHTLESS)
    if not all(stages):
        raise UsageError(f"chain {text!r}: a stage is empty; write ENGINE, or PROPOSER > ENGINE")
    if stages[-1] in WEIGHTLESS:
        raise UsageError(f"chain {text!r}: {stages[-1]} only proposes; end the chain with an engine, e.g. {stages[-1]} > int8")
    if len(stages) > 2 or "," in text or (len(stages) == 2 and stages[0] not in WEIGHTLESS):
        raise UsageError(f"chain {text!r}: this release runs ENGINE and PROPOSER > ENGINE, with the proposers {proposers}")
    return ChainSpec(stages[0] if len(stages) == 2 else None, stages[-1])


class Slot:
    """One sequence's place in an engine's cache.

    The engine may lag behind the sequence: what it has not seen is fed before what is asked for.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cached: list[int] = []

    def keep(self, tokens: list[int]) -> int:
        """Keep what the cache shares with the beginning of `tokens`, and say how much that is."""
        shared = 0
        for cached, token in zip(self._cached, tokens, strict=False):
            if cached != token:
                break
            shared += 1
        del self._cached[shared:]
        return shared

    def truncate(self, length: int) -> None:
        """Forget the cache from position `length` on."""
        del self._cached[length:]

    def logits(self, tokens: list[int], wanted: int) -> Float32:
        """Logits after the last `wanted` of `tokens`, float32 [wanted, V].

        `tokens` begins with what is cached; the rest, at least `wanted` tokens of it, is fed in chunks.
        """
        limit = self._engine.spec.max_rows
        start, end = len(self._cached), len(tokens)
        while end - start > max(limit, wanted):
            # nothing of this chunk is wanted, but one row costs little and keeps the graph's shapes plain
            size = min(limit, end - start - wanted)
            self._feed(tokens[start : start + size], start, 1)
            start += size
        return self._feed(tokens[start:], start, wanted)

    def _feed(self, tokens: list[int], start: int, wanted: int) -> Float32:
        count = len(tokens)
        rows = np.arange(count - wanted, count, dtype=np.int64)[None]
        logits = self._engine.forward(np.array([tokens], dtype=np.int64), np.array([start], dtype=np.int64), rows)
        self._cached.extend(tokens)
        first: Float32 = logits[0]
        return first


class Verifier:
    """An engine, and what proposes to it.

    Args:
        engine: its most likely tokens are the output, whatever is proposed.
        proposer: None for plain decoding.
        draft_length: tokens proposed a round, at the most.
    """

    def __init__(self, engine: Engine, proposer: Proposer | None, draft_length: int) -> None:
        self._engine = engine
        self._proposer = proposer
        self._draft_length = draft_length
        self._slot = Slot(engine)

    def prefill(self, sequence: Sequence, reuse: bool) -> tuple[int, int]:
        """Read the prompt: (the first new token, prompt tokens that were in the cache already).

        Args:
            reuse: keep what the cache shares with the prompt.
        """
        # the last token is fed in any case: its logits are wanted
        if self._proposer is not None:
            self._proposer.settle(sequence)
        shared = self._slot.keep(sequence.tokens[:-1] if reuse else [])
        return int(self._slot.logits(sequence.tokens, 1)[0].argmax()), shared

    def round(self, sequence: Sequence, limit: int, statistics: Statistics) -> list[int]:
        """One verification pass: the tokens that follow the sequence, between 1 and `limit`."""
        length = len(sequence.tokens)
        room = min(limit, self._engine.spec.max_length - length + 1, self._engine.spec.max_rows) - 1
        proposal = Proposal([])
        if self._proposer is not None and room > 0:
            proposal = self._proposer.propose(sequence, min(room, self._draft_length))
        draft = proposal.tokens
        logits = self._slot.logits(sequence.tokens + draft, len(draft) + 1)
        accepted, following = accept_greedy((int(row.argmax()) for row in logits), draft)
        self._slot.truncate(length + accepted)
        statistics.count_round(len(draft), accepted)
        return [*draft[:accepted], following]


def build_chain(spec: ChainSpec, engine: Engine, draft_length: int) -> Verifier:
    """The parts of a chain, put together."""
    if draft_length < 0:
        raise UsageError(f"draft_length is {draft_length}; it must be 0 or more")
    return Verifier(engine, WEIGHTLESS[spec.proposer]() if spec.proposer else None, draft_length)
