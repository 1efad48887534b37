"""SuffixDecoding: the likeliest continuation of the longest repeated ends of the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from itertools import islice
from typing import Any

from quasar.runtime.proposers.proposer import Ask, Draft, Weightless
from quasar.runtime.proposers.suffix_array import Occurrences, SuffixArray
from quasar.runtime.proposers.suffix_tree import MAX_DEPTH, Match, SuffixTree
from quasar.runtime.sequence import Sequence

# Oliaro et al., SuffixDecoding (arXiv 2411.04975), and ArcticInference
LENGTH_FACTOR = 1.0
LENGTH_OFFSET = 0.0
MIN_PROBABILITY = 0.1
POOL_TOKENS = 100_000
LONGEST_GRADE = 8


Follow = Callable[[Iterable[Any], int], list[Any]]
"""Of texts: the matches of which a string ends, and the next token -> those of the longer string, longest first."""


class SuffixPool:
    """Earlier outputs, at most `max_tokens` of them; the oldest are forgotten first.

    Args:
        kept: texts beside them, which stay as they are.

    Attributes:
        sources: of matches: the outputs, then what is kept.
    """

    def __init__(self, max_tokens: int = POOL_TOKENS, depth: int = MAX_DEPTH, kept: SuffixArray | None = None) -> None:
        self._max_tokens = max_tokens
        self.tree = SuffixTree(depth)
        self.sources: tuple[Follow, ...] = (self.tree.follow,) if kept is None else (self.tree.follow, kept.follow)
        self.clear()

    @property
    def texts(self) -> Many[list[int]]:
        """The outputs, the oldest first."""
        return self._texts

    def clear(self) -> None:
        """Forget all outputs."""
        self.tree.clear()
        self._texts: deque[list[int]] = deque()
        self._tokens = 0

    def add(self, output: list[int]) -> None:
        """Remember an output."""
        self.tree.begin()
        for token in output[: self._max_tokens]:
            self.tree.append(token)
        self._texts.append(self.tree.text)
        self._tokens += len(self.tree.text)
        while self._tokens > self._max_tokens:
            oldest = self._texts.popleft()
            self.tree.remove(oldest)
            self._tokens -= len(oldest)


class _Text:
    """One sequence's own repetitions, and where its suffixes occur in a pool.

    Args:
        sources: of the pool.
    """

    def __init__(self, sources: Many[Follow]) -> None:
        self._tree = SuffixTree()
        self._sources = sources
        self._forget()

    def _forget(self) -> None:
        # by source, per token of the text: its suffixes that occur there, longest first
        self._pooled: list[list[list[Any]]] = [[] for _ in self._sources]

    def read(self, tokens: list[int]) -> None:
        """Take in what was added to the text."""
        for token in tokens[len(self._tree.text) :]:
            self._tree.append(token)
        self._search()

    def _search(self) -> None:
        """Find the suffixes of what was not searched for yet; of much of it, those of its end are enough."""
        text = self._tree.text
        for follow, places in zip(self._sources, self._pooled, strict=True):
            places.extend([] for _ in range(len(text) - MAX_DEPTH - len(places)))
            for token in text[len(places) :]:
                places.append(follow(places[-1] if places else (), token))

    def matches(self) -> Iterator[Iterable[Match | Occurrences]]:
        """Suffixes of the text that occur elsewhere, longest first: in the text, then in the pool."""
        yield self._tree.matches()
        yield from (places[-1] for places in self._pooled if places)

    def rewind(self, length: int) -> None:
        """Forget the text from position `length` on."""
        self._tree.rewind(length)
        for places in self._pooled:
            del places[length:]

    def search_again(self) -> None:
        """Find the suffixes in the pool, which has changed under them."""
        self._forget()
        self._search()


class Suffix(Weightless):
    """Proposes what the text's own repetitions suggest, and with a pool those of earlier outputs.

    Every suffix of the text that occurs before, of length n, suggests min(limit, floor(factor * n + offset)) tokens along its
    most frequent continuation, while the path's probability stays above `MIN_PROBABILITY`. The one with the highest sum of
    path probabilities is proposed; a tie goes to the longer match, and to the text before the pool. The grade of a token is
    the length of the string that it follows and its path probability.

    Args:
        pool: earlier outputs; every sequence that leaves is added. None for the text alone.
    """

    def __init__(self, pool: SuffixPool | None = None) -> None:
        self.name = "suffix" if pool is None else "suffix-pool"
        self._pool = pool
        self._texts: dict[Sequence, _Text] = {}

    def join(self, sequence: Sequence) -> None:
        """See `Proposer.join`."""
        self._texts[sequence] = _Text(() if self._pool is None else self._pool.sources)

    def propose(self, asks: Many[Ask]) -> list[list[Draft]]:
        """See `Proposer.propose`; none where nothing matches."""
        return [self._propose(ask.sequence, ask.limit) for ask in asks]

    def _propose(self, sequence: Sequence, limit: int) -> list[Draft]:
        text = self._texts[sequence]
        text.read(sequence.tokens)
        best: list[tuple[int, float]] = []
        best_score, best_length = 0.0, 0
        for source in text.matches():
            for match in source:
                budget = min(limit, int(LENGTH_FACTOR * match.length + LENGTH_OFFSET))
                if budget < best_score or (budget == best_score and match.length <= best_length):
                    break  # a score is at most the budget, and shorter matches follow
                path = list(islice(_likely(match), budget))
                score = sum(probability for _, probability in path)
                if score > best_score or (score == best_score and match.length > best_length):
                    best, best_score, best_length = path, score, match.length
        return [
            Draft(token, (min(best_length + i, LONGEST_GRADE), round(4 * probability)), origin=self.name)
            for i, (token, probability) in enumerate(best)
        ]

    def settle(self, sequence: Sequence, length: int) -> None:
        """See `Proposer.settle`."""
        self._texts[sequence].rewind(length)

    def leave(self, sequence: Sequence) -> None:
        """Add the output to the pool."""
        if self._texts.pop(sequence, None) is None or self._pool is None:
            return
        self._pool.add(sequence.new_tokens)
        self._search_again()

    def forget(self) -> None:
        """Empty the pool, but for what it was given to keep."""
        if self._pool is not None:
            self._pool.clear()
            self._search_again()

    def _search_again(self) -> None:
        for text in self._texts.values():
            text.search_again()


def _likely(match: Match | Occurrences) -> Iterator[tuple[int, float]]:
    for token, probability in match.continuation():
        if probability < MIN_PROBABILITY:
            return
        yield token, probability
