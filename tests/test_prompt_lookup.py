from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quasar.runtime.draft.prompt_lookup import PromptLookup
from quasar.runtime.sequence import Sequence

TEXTS = st.one_of(*(st.lists(st.integers(0, size), max_size=40) for size in (0, 1, 2, 5)))


def brute_force(tokens: list[int], limit: int, sizes: range) -> list[int]:
    """Scan for the latest earlier occurrence of the longest ending n-gram, then copy what followed, cell by cell."""
    for size in sizes:
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[len(tokens) - size :]:
                longer = list(tokens)
                for i in range(limit):
                    longer.append(longer[start + size + i])
                return longer[len(tokens) :]
    return []


def proposed(tokens: list[int], limit: int = 5) -> list[int]:
    return PromptLookup().propose(Sequence(tokens), limit).tokens


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_a_proposal_is_what_a_full_scan_finds(tokens: list[int], limit: int) -> None:
    assert proposed(tokens, limit) == brute_force(tokens, limit, range(3, 0, -1))


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 4), st.integers(0, 3))
def test_other_ngram_sizes_are_respected(tokens: list[int], low: int, more: int) -> None:
    found = PromptLookup(low, low + more).propose(Sequence(tokens), 4).tokens
    assert found == brute_force(tokens, 4, range(low + more, low - 1, -1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8), st.booleans())
def test_an_index_grown_in_steps_equals_a_fresh_one(steps: list[list[int]], only_settle: bool) -> None:
    lookup, sequence = PromptLookup(), Sequence([])
    for step in steps:
        sequence.tokens.extend(step)
        if only_settle:
            lookup.settle(sequence)
        else:
            assert lookup.propose(sequence, 4).tokens == proposed(sequence.tokens, 4)
    assert lookup.propose(sequence, 4).tokens == proposed(sequence.tokens, 4)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS)
@example([1, 2, 9, 9], [3, 1, 2])
@example([1, 2, 3], [1, 2, 3])
def test_a_second_sequence_sees_nothing_of_the_first(first: list[int], second: list[int]) -> None:
    lookup, one, other = PromptLookup(), Sequence(first), Sequence(second)
    assert lookup.propose(one, 4).tokens == proposed(first, 4)
    assert lookup.propose(other, 4).tokens == proposed(second, 4)
    one.tokens.extend([7, 8, 7])
    assert lookup.propose(one, 2).tokens == [8, 7]


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_proposing_leaves_the_sequence_alone_and_is_repeatable(tokens: list[int], limit: int) -> None:
    lookup, sequence = PromptLookup(), Sequence(list(tokens))
    once = lookup.propose(sequence, limit)
    assert lookup.propose(sequence, limit) == once
    assert sequence.tokens == tokens
    assert len(once.tokens) in (0, limit)
    assert once.distributions is None


def test_a_longer_ngram_wins_over_a_later_shorter_one() -> None:
    assert proposed([1, 2, 3, 50, 9, 3, 60, 1, 2, 3], 1) == [50]


def test_the_latest_of_equal_ngrams_wins() -> None:
    assert proposed([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3], 1) == [60]


def test_the_end_of_the_text_does_not_match_itself() -> None:
    assert proposed([1, 2, 3, 4, 5]) == []


@pytest.mark.parametrize(("tokens", "expected"), [([7, 7], [7] * 5), ([1, 2, 3, 1, 2], [3, 1, 2, 3, 1])])
def test_past_the_end_of_the_text_the_period_goes_on(tokens: list[int], expected: list[int]) -> None:
    assert proposed(tokens) == expected


@pytest.mark.parametrize("tokens", [[], [3]])
def test_too_short_a_text_proposes_nothing(tokens: list[int]) -> None:
    assert proposed(tokens) == []
