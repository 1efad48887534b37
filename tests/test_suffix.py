"""Tier 0: what the suffix tree of a text, and that of a pool, makes proposals of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suffix_tree import EDITS, TEXTS, occurrences

from quasar.runtime.proposers.proposer import Ask, Draft
from quasar.runtime.proposers.suffix import Suffix, SuffixPool
from quasar.runtime.proposers.suffix_array import END, SuffixArray, sort_suffixes
from quasar.runtime.proposers.suffix_tree import MAX_DEPTH
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence


def join(proposer: Suffix, tokens: list[int], prompt_length: int = 0) -> Sequence:
    """A sequence of the proposer, whose prompt are the first `prompt_length` tokens."""
    sequence = Sequence(list(tokens[:prompt_length]), Sampler(SamplingParams(), prompt_length))
    proposer.join(sequence)
    sequence.tokens.extend(tokens[prompt_length:])
    return sequence


def drafts(proposer: Suffix, sequence: Sequence, limit: int = 32) -> list[Draft]:
    return proposer.propose([Ask(sequence, limit)])[0]


def propose(proposer: Suffix, tokens: list[int], limit: int = 32) -> list[int]:
    """What is proposed for a text that the proposer did not know."""
    return [draft.token for draft in drafts(proposer, join(proposer, tokens), limit)]


def pooled(*outputs: list[int]) -> Suffix:
    pool = SuffixPool()
    for output in outputs:
        pool.add(output)
    return Suffix(pool)


def test_a_match_suggests_as_many_tokens_as_it_is_long() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 9, 1, 2, 3]
    assert propose(Suffix(), text) == [4, 5, 6]
    assert propose(Suffix(), [8, *text[1:], 4]) == [5, 6, 7]
    assert propose(Suffix(), text, limit=2) == [4, 5]
    assert propose(Suffix(), text, limit=0) == []


@pytest.mark.parametrize("text", [[], [3], [1, 2, 3, 4]])
def test_what_was_never_there_suggests_nothing(text: list[int]) -> None:
    assert propose(Suffix(), text) == []


def test_the_most_frequent_continuation_is_followed() -> None:
    assert propose(Suffix(), [1, 2, 8, 1, 2, 7, 1, 2, 7, 0, 1, 2], limit=1) == [7]


def test_past_the_end_of_the_text_the_match_repeats_itself() -> None:
    assert propose(Suffix(), [1, 2, 3, 1, 2, 3, 1, 2]) == [3, 1, 2, 3, 1]


@pytest.mark.parametrize(("followers", "expected"), [(10, 1), (11, 0)])
def test_a_path_ends_where_its_probability_falls_below_a_tenth(followers: int, expected: int) -> None:
    text = [token for i in range(followers) for token in (1, 10 + i)]
    assert len(propose(Suffix(), [*text, 1])) == expected


def test_a_likely_short_match_beats_an_unlikely_long_one() -> None:
    """After (1, 2, 3) five tokens came, each once; the pool knows but one way on from (2, 3)."""
    text = [token for i in range(5) for token in (1, 2, 3, 10 + i, 20 + i, 30 + i)] + [1, 2, 3]
    assert propose(Suffix(), text)[0] in range(10, 15)
    assert propose(pooled([2, 3, 7, 7]), text) == [7, 7]


def test_a_tie_goes_to_the_longer_match() -> None:
    """Four tokens of probability 1/2 against two that are sure."""
    text = [3, 4, 7, 7, 0, 1, 2, 3, 4]
    assert propose(Suffix(), text) == [7, 7]
    assert propose(pooled([1, 2, 3, 4, 5, 5, 5, 5], [1, 2, 3, 4, 6, 6, 6, 6]), text) in ([5] * 4, [6] * 4)


def test_a_tie_under_the_limit_goes_to_the_longer_match() -> None:
    assert propose(pooled([1, 2, 3, 4, 5, 5]), [3, 4, 7, 7, 0, 1, 2, 3, 4], limit=2) == [5, 5]


def test_a_shorter_match_with_the_same_score_is_not_followed() -> None:
    """1/2 four times for the text's (1, 2, 3, 4), and 1, 1/2, 1/2 for the pool's (2, 3, 4)."""
    text = [1, 2, 3, 4, 5, 5, 5, 5, 9, 1, 2, 3, 4, 6, 6, 6, 6, 0, 1, 2, 3, 4]
    outputs = [9, 2, 3, 4, 7, 8, 8], [9, 2, 3, 4, 7, 6, 6]
    assert propose(pooled(*outputs), [0, 2, 3, 4])[0] == 7
    assert propose(pooled(*outputs), text) == propose(Suffix(), text) == [5, 5, 5, 5]


def test_a_tie_of_equal_length_goes_to_the_text_before_the_pool() -> None:
    assert propose(pooled([1, 2, 8, 8]), [1, 2, 7, 7, 1, 2]) == [7, 7]


def test_the_pool_is_asked_where_the_text_says_nothing() -> None:
    assert propose(pooled([1, 2, 8, 9]), [1, 2]) == [8, 9]


def test_only_the_output_of_a_sequence_that_left_is_remembered() -> None:
    proposer = Suffix(SuffixPool())
    first = join(proposer, [1, 2, 3, 5, 6, 7], prompt_length=3)
    assert propose(proposer, [5]) == []
    proposer.leave(first)
    assert propose(proposer, [1, 2]) == []
    assert propose(proposer, [5, 6], 1) == [7]
    proposer.leave(first)  # again: nothing is added twice
    assert proposer._pool is not None
    assert proposer._pool._tokens == 3


def test_a_pool_that_is_emptied_proposes_nothing_any_more() -> None:
    proposer = pooled([1, 2, 8, 9])
    open_text = join(proposer, [1, 2])
    assert [draft.token for draft in drafts(proposer, open_text)] == [8, 9]
    proposer.forget()
    assert drafts(proposer, open_text) == []
    assert propose(proposer, [1, 2]) == []


def test_the_grade_is_the_length_of_the_match_and_the_probability_in_quarters() -> None:
    proposer = Suffix()
    made = drafts(proposer, join(proposer, [1, 2, 7, 7, 0, 1, 2, 8, 8, 0, 1, 2, 7, 7, 4, 1, 2]))
    assert [draft.grade for draft in made] == [(2, 3), (3, 3)]
    assert all(draft.distribution is None for draft in made)


def places(proposer: Suffix, sequence: Sequence) -> list[list[int]]:
    """Of each token of a text, the lengths of the strings that end with it and occur in the pool's outputs."""
    return [[match.length for match in ends] for ends in next(iter(proposer._texts[sequence]._pooled), [])]


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), TEXTS, EDITS, st.booleans())
def test_a_rewound_proposer_equals_a_fresh_one(
    outputs: list[list[int]], tokens: list[int], edits: list[tuple[int, list[int]]], with_pool: bool
) -> None:
    def fresh() -> Suffix:
        return pooled(*outputs) if with_pool else Suffix()

    proposer = fresh()
    text = join(proposer, tokens)
    for taken_back, more in edits:
        drafts(proposer, text)
        del text.tokens[max(len(text.tokens) - taken_back, 0) :]
        proposer.settle(text, len(text.tokens))
        text.tokens.extend(more)
        other = fresh()
        same = join(other, text.tokens)
        assert drafts(proposer, text, 20) == drafts(other, same, 20) == drafts(proposer, text, 20)
        assert places(proposer, text) == places(other, same)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), TEXTS)
def test_the_place_in_the_pool_is_every_end_of_the_text_that_occurs_there(outputs: list[list[int]], tokens: list[int]) -> None:
    proposer = pooled(*outputs)
    text = join(proposer, tokens)
    drafts(proposer, text)
    counts = occurrences(outputs, 30)
    expected = [size for size in range(len(tokens), 0, -1) if tuple(tokens[len(tokens) - size :]) in counts]
    assert places(proposer, text)[-1:] == ([expected] if tokens else [])


# ------------------------------------------------------------------------------------------------ several sequences

Event = tuple[int, int, list[int], bool]
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), TEXTS, st.booleans()), max_size=8)
"""Of each: the sequence, what is taken back of it, what is added to it, and whether it leaves then."""


def play(proposer: Suffix, outputs: list[list[int]], sequences: list[Sequence], events: list[Event]) -> None:
    """After every event, each open sequence is proposed what a proposer says that reads its text, and the pool's, afresh."""
    with_pool = proposer._pool is not None
    for which, taken_back, more, leaves in [(0, 0, list[int](), False), *events]:
        text = sequences[which % len(sequences)]
        del text.tokens[max(len(text.tokens) - taken_back, text.prompt_length) :]
        proposer.settle(text, len(text.tokens))
        text.tokens.extend(more)
        if leaves:
            proposer.leave(text)
            outputs = [*outputs, text.new_tokens]
            sequences[which % len(sequences)] = join(proposer, more, len(more))
        shown = proposer.propose([Ask(one, 20) for one in sequences])
        for one, made in zip(sequences, shown, strict=True):
            fresh = pooled(*outputs) if with_pool else Suffix()
            assert made == drafts(fresh, join(fresh, one.tokens), 20)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=4), EVENTS)
def test_sequences_without_a_pool_see_nothing_of_each_other(texts: list[list[int]], events: list[Event]) -> None:
    proposer = Suffix()
    play(proposer, [], [join(proposer, text, len(text)) for text in texts], events)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), st.lists(TEXTS, min_size=2, max_size=4), EVENTS)
def test_a_pool_that_changes_gives_open_sequences_what_a_fresh_proposer_would(
    outputs: list[list[int]], texts: list[list[int]], events: list[Event]
) -> None:
    proposer = pooled(*outputs)
    play(proposer, outputs, [join(proposer, text, len(text)) for text in texts], events)


@pytest.mark.parametrize("length", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 3 * MAX_DEPTH])
def test_a_text_longer_than_the_tree_is_deep_is_found_again_in_a_pool_that_changes(length: int) -> None:
    proposer = Suffix(SuffixPool())
    story = list(range(length + 40))
    first, second = join(proposer, story, 0), join(proposer, story[:length], length)
    assert drafts(proposer, second) == []
    proposer.leave(first)
    fresh = pooled(story)
    assert drafts(proposer, second) == drafts(fresh, join(fresh, story[:length])) != []
    assert [draft.token for draft in drafts(proposer, second)] == story[length : length + 32]


def test_a_long_answer_that_comes_again_is_followed_no_deeper_than_the_tree_is() -> None:
    """All its ends occur in the pool: with its length squared, they would fill the memory."""
    story = list(range(5 * MAX_DEPTH))
    proposer = pooled(story)
    text = join(proposer, [])
    for token in story[:-5]:
        text.tokens.append(token)
        drafts(proposer, text)
    assert max(map(len, places(proposer, text))) == MAX_DEPTH
    assert [draft.token for draft in drafts(proposer, text)][:5] == story[-5:]


def test_what_is_kept_is_asked_after_the_outputs_and_stays_when_they_are_forgotten() -> None:
    tokens = np.array([1, 2, 7, 7, END, 3, 4, END], dtype=np.int32)
    proposer = Suffix(SuffixPool(kept=SuffixArray(tokens, sort_suffixes(tokens))))
    assert propose(proposer, [1, 2]) == [7, 7]
    proposer.leave(join(proposer, [1, 2, 8, 8]))
    assert propose(proposer, [1, 2]) == [8, 8]
    assert propose(proposer, [3]) == [4]
    proposer.forget()
    assert propose(proposer, [1, 2]) == [7, 7]


def test_a_pool_that_forgets_its_oldest_output_forgets_it_for_open_sequences_too() -> None:
    proposer = Suffix(SuffixPool(max_tokens=6))
    first, second, third = join(proposer, [1, 2, 8, 9], 0), join(proposer, [4, 5, 6, 7], 0), join(proposer, [1, 2], 2)
    proposer.leave(first)
    assert [draft.token for draft in drafts(proposer, third)] == [8, 9]
    proposer.leave(second)
    assert drafts(proposer, third) == []
