"""Prompt lookup: what followed the last time that the text ended like this."""

from __future__ import annotations

from collections.abc import Iterator

from quasar.runtime.proposers.proposer import Draft
from quasar.runtime.sequence import Sequence

MIN_NGRAM, MAX_NGRAM = 1, 3
LONGEST_GRADE = 8


class PromptLookup:
    """Proposes the continuation of the latest earlier occurrence of the longest matching n-gram.

    Saxena's prompt lookup decoding, with the n-grams of the prompt and the output in an index that grows with the text:
    a round costs a few dictionary look-ups, whatever the length of the context. The grade of a token is the length of the
    n-gram that it follows.

    Args:
        min_ngram: shortest match.
        max_ngram: longest match, tried first.
    """

    name = "prompt-lookup"
    weightless = True

    def __init__(self, min_ngram: int = MIN_NGRAM, max_ngram: int = MAX_NGRAM) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        # n-gram -> position after its latest occurrence that has a continuation
        self._index: dict[tuple[int, ...], int] = {}
        # per indexed position, the entries that it replaced
        self._journal: list[list[tuple[tuple[int, ...], int | None]]] = []

    def begin(self, sequence: Sequence, reuse: bool) -> None:
        """See `Proposer.begin`."""
        self._index, self._journal = {}, []
        self._read(sequence.tokens)

    def propose(self, sequence: Sequence, limit: int) -> Iterator[Draft]:
        """At most `limit` tokens; none where nothing matches."""
        tokens = sequence.tokens
        self._read(tokens)
        for size in self._sizes:
            if size < len(tokens) and (end := self._index.get(tuple(tokens[-size:]))) is not None:
                period = len(tokens) - end  # past the end of the text the match repeats itself
                copied = [tokens[end + i % period] for i in range(limit)]
                return (Draft(token, min(size + i, LONGEST_GRADE)) for i, token in enumerate(copied))
        return iter(())

    def rewind(self, length: int) -> None:
        """See `Proposer.rewind`."""
        # the n-gram that ends at position p is indexed once the token at p is known
        while self._journal and len(self._journal) >= length:
            for ngram, before in reversed(self._journal.pop()):
                if before is None:
                    del self._index[ngram]
                else:
                    self._index[ngram] = before

    def end(self, sequence: Sequence) -> None:
        """Nothing is kept for other sequences."""

    def forget(self) -> None:
        """See `end`."""

    def _read(self, tokens: list[int]) -> None:
        """Index what was added to the text."""
        for end in range(len(self._journal) + 1, len(tokens)):
            replaced = []
            for size in self._sizes:
                if size <= end:
                    ngram = tuple(tokens[end - size : end])
                    replaced.append((ngram, self._index.get(ngram)))
                    self._index[ngram] = end
            self._journal.append(replaced)
