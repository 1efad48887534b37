from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.proposers.prompt_lookup import PromptLookup
from quasar.runtime.proposers.proposer import Ask, Draft
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


def join(lookup: PromptLookup, tokens: list[int]) -> Sequence:
    sequence = Sequence(list(tokens), Sampler(SamplingParams(), 0))
    lookup.join(sequence)
    return sequence


def propose(lookup: PromptLookup, sequence: Sequence, limit: int = 5) -> list[int]:
    return [draft.token for draft in lookup.propose([Ask(sequence, limit)])[0]]


def drafts(tokens: list[int], limit: int) -> list[Draft]:
    lookup = PromptLookup()
    return lookup.propose([Ask(join(lookup, tokens), limit)])[0]


def proposed(tokens: list[int], limit: int = 5) -> list[int]:
    """What a proposer says that never saw anything else."""
    return [draft.token for draft in drafts(tokens, limit)]


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_a_proposal_is_what_a_full_scan_finds(tokens: list[int], limit: int) -> None:
    assert proposed(tokens, limit) == brute_force(tokens, limit, range(3, 0, -1))


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 4), st.integers(0, 3))
def test_other_ngram_sizes_are_respected(tokens: list[int], low: int, more: int) -> None:
    lookup = PromptLookup(low, low + more)
    assert propose(lookup, join(lookup, tokens), 4) == brute_force(tokens, 4, range(low + more, low - 1, -1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8))
def test_an_index_grown_in_steps_equals_a_fresh_one(steps: list[list[int]]) -> None:
    lookup = PromptLookup()
    text = join(lookup, [])
    for step in steps:
        text.tokens.extend(step)
        assert propose(lookup, text, 4) == proposed(text.tokens, 4)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 8), TEXTS), min_size=1, max_size=5))
def test_a_rewound_index_equals_a_fresh_one(tokens: list[int], cuts: list[tuple[int, list[int]]]) -> None:
    """Rounds read what is proposed, and take back what was not accepted."""
    lookup = PromptLookup()
    text = join(lookup, tokens)
    for taken_back, more in cuts:
        propose(lookup, text)
        del text.tokens[max(len(text.tokens) - taken_back, 0) :]
        lookup.settle(text, len(text.tokens))
        text.tokens.extend(more)
        assert propose(lookup, text) == proposed(text.tokens)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(TEXTS, min_size=2, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), TEXTS, st.booleans()), max_size=12),
)
def test_sequences_see_nothing_of_each_other(texts: list[list[int]], events: list[tuple[int, int, list[int], bool]]) -> None:
    """They grow, shrink, leave and come again in any order, and all are asked at once."""
    lookup = PromptLookup()
    sequences = [join(lookup, text) for text in texts]
    for which, taken_back, more, leaves in [(0, 0, list[int](), False), *events]:
        text = sequences[which % len(sequences)]
        if leaves:
            lookup.leave(text)
            sequences[which % len(sequences)] = join(lookup, more)
        else:
            del text.tokens[max(len(text.tokens) - taken_back, 0) :]
            lookup.settle(text, len(text.tokens))
            text.tokens.extend(more)
        shown = lookup.propose([Ask(one, 4) for one in sequences])
        assert [[draft.token for draft in one] for one in shown] == [proposed(one.tokens, 4) for one in sequences]


def test_a_sequence_that_left_is_forgotten_and_may_leave_twice() -> None:
    lookup = PromptLookup()
    text = join(lookup, [1, 2, 1])
    lookup.leave(text)
    lookup.leave(text)
    assert not lookup._indexes


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(0, 12))
def test_proposing_leaves_the_sequence_alone_and_is_repeatable(tokens: list[int], limit: int) -> None:
    lookup = PromptLookup()
    text = join(lookup, tokens)
    once = lookup.propose([Ask(text, limit)])
    assert lookup.propose([Ask(text, limit)]) == once
    assert text.tokens == tokens
    assert len(once[0]) in (0, limit)
    assert all(draft.distribution is None for draft in once[0])


def test_the_grade_is_the_length_of_the_string_that_a_token_follows() -> None:
    def grades(tokens: list[int], limit: int) -> list[object]:
        return [draft.grade for draft in drafts(tokens, limit)]

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
