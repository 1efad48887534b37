from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quasar.runtime.proposers.prompt_lookup import PromptLookup
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
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


def sequence(tokens: list[int]) -> Sequence:
    return Sequence(tokens, Sampler(SamplingParams(), 0))


def propose(lookup: PromptLookup, tokens: list[int], limit: int = 5) -> list[int]:
    return [draft.token for draft in lookup.propose(sequence(tokens), limit)]


def proposed(tokens: list[int], limit: int = 5) -> list[int]:
    return propose(PromptLookup(), tokens, limit)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_a_proposal_is_what_a_full_scan_finds(tokens: list[int], limit: int) -> None:
    assert proposed(tokens, limit) == brute_force(tokens, limit, range(3, 0, -1))


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 4), st.integers(0, 3))
def test_other_ngram_sizes_are_respected(tokens: list[int], low: int, more: int) -> None:
    found = propose(PromptLookup(low, low + more), tokens, 4)
    assert found == brute_force(tokens, 4, range(low + more, low - 1, -1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8))
def test_an_index_grown_in_steps_equals_a_fresh_one(steps: list[list[int]]) -> None:
    lookup, text = PromptLookup(), sequence([])
    lookup.begin(text, reuse=False)
    for step in steps:
        text.tokens.extend(step)
        assert propose(lookup, text.tokens, 4) == proposed(text.tokens, 4)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 8), TEXTS), min_size=1, max_size=5))
def test_a_rewound_index_equals_a_fresh_one(tokens: list[int], cuts: list[tuple[int, list[int]]]) -> None:
    """Rounds read what is proposed, and take back what was not accepted."""
    lookup, tokens = PromptLookup(), list(tokens)
    lookup.begin(sequence(tokens), reuse=False)
    for taken_back, more in cuts:
        propose(lookup, tokens)
        del tokens[max(len(tokens) - taken_back, 0) :]
        lookup.rewind(len(tokens))
        tokens.extend(more)
        assert propose(lookup, tokens) == proposed(tokens)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, st.booleans())
@example([1, 2, 9, 9], [3, 1, 2], True)
@example([1, 2, 3], [1, 2, 3], False)
def test_a_second_sequence_sees_nothing_of_the_first(first: list[int], second: list[int], reuse: bool) -> None:
    lookup = PromptLookup()
    assert propose(lookup, first, 4) == proposed(first, 4)
    lookup.begin(sequence(second), reuse)
    assert propose(lookup, second, 4) == proposed(second, 4)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_proposing_leaves_the_sequence_alone_and_is_repeatable(tokens: list[int], limit: int) -> None:
    lookup, text = PromptLookup(), sequence(list(tokens))
    once = list(lookup.propose(text, limit))
    assert list(lookup.propose(text, limit)) == once
    assert text.tokens == tokens
    assert len(once) in (0, limit)
    assert all(draft.distribution is None for draft in once)


def test_the_grade_is_the_length_of_the_string_that_a_token_follows() -> None:
    def grades(tokens: list[int], limit: int) -> list[object]:
        return [draft.grade for draft in PromptLookup().propose(sequence(tokens), limit)]

    assert grades([5, 5], 3) == [1, 2, 3]
    assert grades([1, 2, 3, 4, 1, 2, 3], 2) == [3, 4]
    assert grades([1, 2] * 9, 40)[-1] == 8  # beyond that, hits are about as likely


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
