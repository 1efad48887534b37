"""SuffixDecoding: the likeliest continuation of the longest repeated ends of the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from itertools import islice

from quasar.runtime.proposers.proposer import Ask, Draft, Weightless
from quasar.runtime.proposers.suffix_tree import MAX_DEPTH, Match, SuffixTree
from quasar.runtime.sequence import Sequence

# Oliaro et al., SuffixDecoding (arXiv 2411.04975), and ArcticInference
LENGTH_FACTOR = 1.0
LENGTH_OFFSET = 0.0
MIN_PROBABILITY = 0.1
POOL_TOKENS = 100_000
LONGEST_GRADE = 8


class SuffixPool:
    """Earlier outputs, at most `max_tokens` of them; the oldest are forgotten first."""

    def __init__(self, max_tokens: int = POOL_TOKENS, depth: int = MAX_DEPTH) -> None:
        self._depth = depth
        self._max_tokens = max_tokens
        self.clear()

    def clear(self) -> None:
        """Forget all of them."""
        self.tree = SuffixTree(self._depth)
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
    """One sequence's own repetitions, and where its suffixes occur in the pool."""

    def __init__(self, pool: SuffixPool | None) -> None:
        self._pool = pool
        self._tree = SuffixTree()
        # per token of the text: its suffixes that occur in the pool, longest first
        self._pooled: list[list[Match]] = []

    def read(self, tokens: list[int]) -> None:
        """Take in what was added to the text."""
        for token in tokens[len(self._tree.text) :]:
            self._tree.append(token)
            self._follow(token)

    def _follow(self, token: int) -> None:
        if self._pool is None:
            return
        earlier = self._pooled[-1] if self._pooled else []
        followed = [longer for match in earlier if (longer := match.follow(token)) is not None]
        single = self._pool.tree.root_match(token)
        self._pooled.append(followed if single is None else [*followed, single])

    def matches(self) -> Iterator[Iterable[Match]]:
        """Suffixes of the text that occur elsewhere, longest first: in the text, then in the pool."""
        yield self._tree.matches()
        yield self._pooled[-1] if self._pooled else ()

    def rewind(self, length: int) -> None:
        """Forget the text from position `length` on."""
        self._tree.rewind(length)
        del self._pooled[length:]

    def search_again(self) -> None:
        """Find the suffixes in the pool, whose tree has changed under them; those of the end are enough."""
        text = self._tree.text
        first = max(len(text) - MAX_DEPTH, 0)
        self._pooled = [[] for _ in range(first)]
        for token in text[first:]:
            self._follow(token)


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
        self._texts[sequence] = _Text(self._pool)

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
        """Empty the pool."""
        if self._pool is not None:
            self._pool.clear()
            self._search_again()

    def _search_again(self) -> None:
        for text in self._texts.values():
            text.search_again()


def _likely(match: Match) -> Iterator[tuple[int, float]]:
    for token, probability in match.continuation():
        if probability < MIN_PROBABILITY:
            return
        yield token, probability
