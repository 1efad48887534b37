"""A suffix array: strings are found by bisection in texts that do not change, and nothing is built to begin with."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]

END = -1
"""Stands behind every text, so that no string of tokens goes on into the next one."""
KEY_BITS = 62
SAMPLE = 128
"""Of a string with more places, so many are asked how it goes on."""


class SuffixArray:
    """All strings of some texts.

    Nobody need have checked the order: of a wrong one, wrong strings are found, and nothing else happens.

    Args:
        tokens: int32 [N], the texts one after the other, each with END behind it.
        order: int32 [N] in 0..N-1: the places of `tokens` in the order of what follows from there (`sort_suffixes`).
    """

    def __init__(self, tokens: Int32, order: Int32) -> None:
        self._tokens, self._order = tokens, order
        self._places = range(len(order))
        self._single: dict[int, Occurrences | None] = {}

    def follow(self, matches: Iterable[Occurrences], token: int) -> list[Occurrences]:
        """The strings that go on with a token, and the token itself; longest first.

        Left out is what occurs just as often as the string before it, at whose end it stands: it goes on in the same way.
        """
        found: list[Occurrences] = []
        for match in matches:
            longer = match.follow(token)
            if longer is not None and (not found or longer.times > found[-1].times):
                found.append(longer)
        if token not in self._single:
            self._single[token] = Occurrences(self, 0, len(self._places), 0).follow(token)
        single = self._single[token]
        return found if single is None or (found and found[-1].times == single.times) else [*found, single]

    def behind(self, length: int) -> Callable[[int], int]:
        """What stands `length` tokens behind the beginning of the suffix at a place of the order."""
        # items of `data` are Python's own numbers, and come sooner
        tokens, starts, last = self._tokens.data, self._order.data, len(self._places) - 1
        return lambda place: tokens[min(starts[place] + length, last)]

    def rest(self, place: int, length: int) -> Iterator[int]:
        """How the suffix at a place of the order goes on behind its first `length` tokens, to the end of its text."""
        return takewhile(END.__ne__, self._tokens[self._order[place] + length :].data)

    def narrow(self, first: int, end: int, length: int, token: int) -> tuple[int, int]:
        """Of the places of a string of `length` tokens, those where it goes on with a token."""
        behind = self.behind(length)
        first = bisect_left(self._places, token, first, end, key=behind)
        if first == end or behind(first) != token:
            return first, first
        return first, bisect_right(self._places, token, first, end, key=behind)

    def likeliest(self, first: int, end: int, length: int) -> tuple[int, float] | None:
        """(the token that most often follows a string, its share of those that do); None where all places are ends of texts."""
        starts = self._order[first : end : (end - first) // SAMPLE + 1]
        counts = Counter(self._tokens[np.minimum(starts + length, len(self._tokens) - 1)].tolist())
        del counts[END]
        if not counts:
            return None
        [(best, count)] = counts.most_common(1)
        return best, count / counts.total()


class Occurrences(NamedTuple):
    """A string of `length` tokens that occurs in an array: at the places `first` to `end` of its order."""

    array: SuffixArray
    first: int
    end: int
    length: int

    @property
    def times(self) -> int:
        """How often it occurs."""
        return self.end - self.first

    def follow(self, token: int) -> Occurrences | None:
        """The string with one token more; None where that does not occur."""
        array, first, end, length = self
        first, end = array.narrow(first, end, length, token)
        return Occurrences(array, first, end, length + 1) if first < end else None

    def continuation(self) -> Iterator[tuple[int, float]]:
        """(token, probability of the path up to it) along the most frequent continuation, to the end of the text."""
        array, first, end, length = self
        probability = 1.0
        while end - first > 1:
            following = array.likeliest(first, end, length)
            if following is None:
                return
            probability *= following[1]
            yield following[0], probability
            first, end = array.narrow(first, end, length, following[0])
            length += 1
        for token in array.rest(first, length) if first < end else ():
            yield token, probability


def sort_suffixes(tokens: Int32) -> Int32:
    """The places of an array in the order of what follows from there.

    Prefix doubling: places are ranked by as many tokens as one integer holds; then, among those of equal rank, by the rank of
    what stands behind these tokens, which is twice as far, and so on.

    Args:
        tokens: int32 [N] of END and more.

    Returns:
        int32 [N].
    """
    size, bits = len(tokens), (int(tokens.max(initial=0)) + 2).bit_length()
    width = KEY_BITS // bits
    shifted = np.zeros(size + width, dtype=np.int64)
    shifted[:size] = tokens + np.int64(2)  # 0 stands behind the last one
    keys = np.zeros(size, dtype=np.int64)
    for ahead in range(width):
        keys = (keys << bits) | shifted[ahead : size + ahead]
    order = np.argsort(keys)
    rank = np.empty(size, dtype=np.int64)
    slots, members, keys = np.arange(size), order, keys[order]  # of the order, what is not settled
    while len(slots):
        begins = np.diff(keys, prepend=-1) != 0
        rank[members] = slots[np.maximum.accumulate(np.where(begins, np.arange(len(slots)), 0))]
        alone = begins & np.append(begins[1:], True)
        slots = slots[~alone]
        members = order[slots]
        behind = members + width
        keys = rank[members] * (size + 1) + np.where(behind < size, rank[np.minimum(behind, size - 1)] + 1, 0)
        within = np.argsort(keys)
        order[slots] = members = members[within]
        keys = keys[within]
        width *= 2
    return order.astype(np.int32)
