"""Prompt lookup: what followed the last time that the text ended like this."""

from __future__ import annotations

from quasar.runtime.draft.proposer import Proposal
from quasar.runtime.sequence import Sequence

MIN_NGRAM, MAX_NGRAM = 1, 3


class PromptLookup:
    """Proposes the continuation of the latest earlier occurrence of the longest matching n-gram.

    Saxena's prompt lookup decoding, with the n-grams of the prompt and the output in an index that grows with the text:
    a round costs a few dictionary look-ups, whatever the length of the context.

    Args:
        min_ngram: shortest match.
        max_ngram: longest match, tried first.
    """

    name = "prompt-lookup"

    def __init__(self, min_ngram: int = MIN_NGRAM, max_ngram: int = MAX_NGRAM) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._sequence: Sequence | None = None
        self._indexed = 0
        # n-gram -> position after its latest occurrence that has a continuation
        self._index: dict[tuple[int, ...], int] = {}

    def propose(self, sequence: Sequence, limit: int) -> Proposal:
        """At most `limit` tokens; none where nothing matches."""
        self.settle(sequence)
        tokens = sequence.tokens
        for size in self._sizes:
            if size < len(tokens) and (end := self._index.get(tuple(tokens[-size:]))) is not None:
                return Proposal(_continue(tokens, end, limit))
        return Proposal([])

    def settle(self, sequence: Sequence) -> None:
        """Index what was added to the sequence since the last call."""
        if sequence is not self._sequence:
            self._sequence, self._indexed, self._index = sequence, 1, {}
        tokens = sequence.tokens
        # an n-gram is indexed once the token after it is known, so the end of the text does not match itself
        for end in range(self._indexed, len(tokens)):
            for size in self._sizes:
                if size <= end:
                    self._index[tuple(tokens[end - size : end])] = end
        self._indexed = max(self._indexed, len(tokens))


def _continue(tokens: list[int], end: int, limit: int) -> list[int]:
    """`limit` tokens from `end` on; past the end of the text the match repeats itself."""
    period = len(tokens) - end
    return [tokens[end + i % period] for i in range(limit)]
