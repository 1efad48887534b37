"""Prompt lookup: what followed the last time that the text ended like this."""

from __future__ import annotations

from collections.abc import Sequence as Many

from quasar.runtime.proposers.proposer import Ask, Draft, Weightless
from quasar.runtime.sequence import Sequence

MIN_NGRAM, MAX_NGRAM = 1, 3
LONGEST_GRADE = 8


class NgramIndex:
    """Where each n-gram of a text was last followed by something; grows with the text, and shrinks with it.

    Args:
        sizes: lengths of the n-grams, the longest first.
    """

    def __init__(self, sizes: Many[int]) -> None:
        self._sizes = sizes
        # n-gram -> position after its latest occurrence that has a continuation
        self._index: dict[tuple[int, ...], int] = {}
        # per indexed position, the entries that it replaced
        self._journal: list[list[tuple[tuple[int, ...], int | None]]] = []

    def read(self, tokens: list[int]) -> None:
        """Index what was added to the text."""
        for end in range(len(self._journal) + 1, len(tokens)):
            replaced = []
            for size in self._sizes:
                if size <= end:
                    ngram = tuple(tokens[end - size : end])
                    replaced.append((ngram, self._index.get(ngram)))
                    self._index[ngram] = end
            self._journal.append(replaced)

    def find(self, tokens: list[int]) -> tuple[int, int] | None:
        """(the longest n-gram's size, the position after its latest occurrence) of the end of the text."""
        for size in self._sizes:
            if size < len(tokens) and (end := self._index.get(tuple(tokens[-size:]))) is not None:
                return size, end
        return None

    def rewind(self, length: int) -> None:
        """Forget the text from position `length` on."""
        # the n-gram that ends at position p is indexed once the token at p is known
        while self._journal and len(self._journal) >= length:
            for ngram, before in reversed(self._journal.pop()):
                if before is None:
                    del self._index[ngram]
                else:
                    self._index[ngram] = before


class PromptLookup(Weightless):
    """Proposes the continuation of the latest earlier occurrence of the longest matching n-gram.

    Saxena's prompt lookup decoding, with the n-grams of the prompt and the output in an index that grows with the text:
    a round costs a few dictionary look-ups, whatever the length of the context. The grade of a token is the length of the
    n-gram that it follows.

    Args:
        min_ngram: shortest match.
        max_ngram: longest match, tried first.
    """

    name = "prompt-lookup"

    def __init__(self, min_ngram: int = MIN_NGRAM, max_ngram: int = MAX_NGRAM) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._indexes: dict[Sequence, NgramIndex] = {}

    def join(self, sequence: Sequence) -> None:
        """See `Proposer.join`."""
        self._indexes[sequence] = NgramIndex(self._sizes)

    def propose(self, asks: Many[Ask]) -> list[list[Draft]]:
        """See `Proposer.propose`; none where nothing matches."""
        return [self._propose(ask.sequence, ask.limit) for ask in asks]

    def _propose(self, sequence: Sequence, limit: int) -> list[Draft]:
        tokens, index = sequence.tokens, self._indexes[sequence]
        index.read(tokens)
        found = index.find(tokens)
        if found is None:
            return []
        size, end = found
        period = len(tokens) - end  # past the end of the text the match repeats itself
        grades = (min(size + i, LONGEST_GRADE) for i in range(limit))
        return [Draft(tokens[end + i % period], grade, origin=self.name) for i, grade in enumerate(grades)]

    def settle(self, sequence: Sequence, length: int) -> None:
        """See `Proposer.settle`."""
        self._indexes[sequence].rewind(length)

    def leave(self, sequence: Sequence) -> None:
        """See `Proposer.leave`."""
        self._indexes.pop(sequence, None)

    def forget(self) -> None:
        """Nothing is kept of other sequences."""
