"""SuffixDecoding: the likeliest continuation of the longest repeated ends of the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from quasar.runtime.proposers.proposer import Draft
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


class Suffix:
    """Proposes what the text's own repetitions suggest, and with a pool those of earlier outputs.

    Every suffix of the text that occurs before, of length n, suggests min(limit, floor(factor * n + offset)) tokens along its
    most frequent continuation, while the path's probability stays above `MIN_PROBABILITY`. The one with the highest sum of
    path probabilities is proposed; a tie goes to the longer match, and to the text before the pool. The grade of a token is
    the length of the string that it follows and its path probability.

    Args:
        pool: earlier outputs; every sequence that ends is added. None for the text alone.
    """

    weightless = True

    def __init__(self, pool: SuffixPool | None = None) -> None:
        self.name = "suffix" if pool is None else "suffix-pool"
        self._tree = SuffixTree()
        self._pool = pool
        # per token of the text: its suffixes that occur in the pool, longest first
        self._pooled: list[list[Match]] = []

    def begin(self, sequence: Sequence, reuse: bool) -> None:
        """See `Proposer.begin`."""
        self._tree, self._pooled = SuffixTree(), []
        self._read(sequence.tokens)

    def propose(self, sequence: Sequence, limit: int) -> Iterator[Draft]:
        """At most `limit` tokens; none where nothing matches."""
        self._read(sequence.tokens)
        best: list[tuple[int, float]] = []
        best_score, best_length = 0.0, 0
        for source in (self._tree.matches(), self._pooled[-1] if self._pooled else ()):
            for match in source:
                budget = min(limit, int(LENGTH_FACTOR * match.length + LENGTH_OFFSET))
                if budget < best_score or (budget == best_score and match.length <= best_length):
                    break  # a score is at most the budget, and shorter matches follow
                path = list(islice(_likely(match), budget))
                score = sum(probability for _, probability in path)
                if score > best_score or (score == best_score and match.length > best_length):
                    best, best_score, best_length = path, score, match.length
        return (
            Draft(token, (min(best_length + i, LONGEST_GRADE), round(4 * probability)))
            for i, (token, probability) in enumerate(best)
        )

    def rewind(self, length: int) -> None:
        """See `Proposer.rewind`."""
        self._tree.rewind(length)
        del self._pooled[length:]

    def end(self, sequence: Sequence) -> None:
        """Add the output to the pool."""
        if self._pool is not None:
            self._pool.add(sequence.new_tokens)

    def forget(self) -> None:
        """Empty the pool."""
        if self._pool is not None:
            self._pool.clear()

    def _read(self, tokens: list[int]) -> None:
        """Take in what was added to the text."""
        for token in tokens[len(self._tree.text) :]:
            self._tree.append(token)
            if self._pool is not None:
                earlier = self._pooled[-1] if self._pooled else []
                followed = [longer for match in earlier if (longer := match.follow(token)) is not None]
                single = self._pool.tree.root_match(token)
                self._pooled.append(followed if single is None else [*followed, single])


def _likely(match: Match) -> Iterator[tuple[int, float]]:
    for token, probability in match.continuation():
        if probability < MIN_PROBABILITY:
            return
        yield token, probability
