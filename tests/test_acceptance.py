from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.chain.acceptance import accept_matching

TOKENS = st.integers(0, 2)


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(choices, draft) of one verification pass over an alphabet small enough for long agreements."""
    choices = draw(st.lists(TOKENS, min_size=1, max_size=8))
    draft = draw(st.lists(TOKENS, min_size=len(choices) - 1, max_size=len(choices) - 1))
    agree = draw(st.integers(0, len(draft)))
    return choices, choices[:agree] + draft[agree:]


@settings(max_examples=100, deadline=None)
@given(passes())
def test_the_accepted_prefix_is_the_longest_that_agrees(case: tuple[list[int], list[int]]) -> None:
    choices, draft = case
    accepted, _ = accept_matching(choices, draft)
    assert draft[:accepted] == choices[:accepted]
    assert accepted == len(draft) or draft[accepted] != choices[accepted]


@settings(max_examples=100, deadline=None)
@given(passes())
def test_emitted_tokens_are_what_the_verifier_says_alone(case: tuple[list[int], list[int]]) -> None:
    choices, draft = case
    accepted, following = accept_matching(choices, draft)
    assert [*draft[:accepted], following] == choices[: accepted + 1]


@settings(max_examples=100, deadline=None)
@given(passes())
def test_no_choice_is_made_past_the_first_difference(case: tuple[list[int], list[int]]) -> None:
    """A choice costs a pass over the vocabulary, and under penalties its context would be wrong."""
    choices, draft = case
    made: list[int] = []

    def one_by_one() -> Iterator[int]:
        for token in choices:
            made.append(token)
            yield token

    accepted, _ = accept_matching(one_by_one(), draft)
    assert len(made) == accepted + 1


def test_a_correct_token_after_the_first_difference_does_not_count() -> None:
    assert accept_matching([4, 5, 6, 7], [4, 9, 6]) == (1, 5)


def test_a_wholly_accepted_draft_brings_the_bonus_token() -> None:
    assert accept_matching([4, 5, 6], [4, 5]) == (2, 6)


def test_an_empty_draft_gives_one_plain_token() -> None:
    accepted, following = accept_matching([3], [])
    assert (accepted, following) == (0, 3)
    assert type(following) is int


def test_too_few_choices_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="2 choices do not verify a draft of 2"):
        accept_matching([4, 5], [4, 5])
