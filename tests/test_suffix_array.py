"""Tier 0: the suffix array against counting by hand."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suffix_tree import TEXTS, Text, occurrences

from quasar.runtime.proposers.suffix_array import END, SAMPLE, Int32, Occurrences, SuffixArray, sort_suffixes


def joined(texts: list[list[int]]) -> Int32:
    return np.array([token for text in texts for token in (*text, END)], dtype=np.int32)


def array_of(*texts: list[int]) -> SuffixArray:
    tokens = joined(list(texts))
    return SuffixArray(tokens, sort_suffixes(tokens))


def ends(array: SuffixArray, text: list[int]) -> list[Occurrences]:
    """The ends of a text that occur in an array."""
    found: list[Occurrences] = []
    for token in text:
        found = array.follow(found, token)
    return found


def likely(array: SuffixArray, text: list[int], limit: int) -> list[tuple[int, float]]:
    """How the longest end goes on."""
    return list(islice(ends(array, text)[0].continuation(), limit))


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=4), st.sampled_from([0, 1, 100, 1 << 17, (1 << 31) - 5]))
def test_suffixes_are_in_the_order_of_lists(texts: list[list[int]], base: int) -> None:
    tokens = joined([[base + token for token in text] for text in texts])
    listed = tokens.tolist()
    assert sort_suffixes(tokens).tolist() == sorted(range(len(listed)), key=lambda place: listed[place:])


def test_a_repetition_longer_than_any_key_is_sorted() -> None:
    tokens = joined([[7] * 3000, [7] * 3000, [*range(1000), *range(1000)]])
    listed = tokens.tolist()
    assert sort_suffixes(tokens).tolist() == sorted(range(len(listed)), key=lambda place: listed[place:])


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
def test_the_ends_that_occur_are_found_with_their_counts(texts: list[list[int]], text: list[int]) -> None:
    """Those that occur as often as a longer one are left out."""
    counts = occurrences(texts, 30)
    expected: list[tuple[int, int]] = []
    for size in range(len(text), 0, -1):
        times = counts[tuple(text[len(text) - size :])]
        if times > (expected[-1][1] if expected else 0):
            expected.append((size, times))
    assert [(match.length, match.times) for match in ends(array_of(*texts), text)] == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4), st.data())
def test_probabilities_are_shares_of_what_followed(texts: list[list[int]], data: st.DataObject) -> None:
    counts = occurrences(texts, 31)
    text = data.draw(st.sampled_from(texts))
    string: Text = tuple(text[: data.draw(st.integers(1, len(text)))])
    probability = 1.0
    for token, found in likely(array_of(*texts), list(string), 40):
        followers = {key[-1]: count for key, count in counts.items() if key[:-1] == string}
        assert followers[token] == max(followers.values())
        probability *= followers[token] / sum(followers.values())
        assert abs(found - probability) < 1e-9
        string = (*string, token)
    assert not any(key[:-1] == string for key in counts)


def test_a_text_does_not_go_on_into_the_next_one() -> None:
    array = array_of([1, 2, 3], [4, 5])
    assert likely(array, [1, 2], 5) == [(3, 1.0)]
    assert likely(array, [2, 3], 5) == []
    assert [match.length for match in ends(array, [3, 4])] == [1]


def test_of_many_places_a_sample_tells_the_likeliest() -> None:
    texts = [[1, 2, i] if i % 4 else [1, 3, i] for i in range(10, 10 + 8 * SAMPLE)]
    [(token, share)] = likely(array_of(*texts), [1], 1)
    assert token == 2
    assert abs(share - 0.75) < 0.02
    assert ends(array_of(*texts), [1, 2])[0].times == 6 * SAMPLE


@settings(max_examples=200, deadline=None)
@given(TEXTS.filter(bool), TEXTS, st.data())
def test_a_wrong_order_finds_something_else_and_fails_nowhere(text: list[int], other: list[int], data: st.DataObject) -> None:
    tokens = joined([text])
    order = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=len(tokens), max_size=len(tokens)))
    array = SuffixArray(tokens, np.array(order, dtype=np.int32))
    for match in ends(array, other):
        assert all(0 <= token <= max(text) for token, _ in islice(match.continuation(), 40))
