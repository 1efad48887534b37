from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.acceptance import accept_greedy

TOKENS = st.integers(0, 2)


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(best, draft) of one verification pass over an alphabet small enough for long agreements."""
    best = draw(st.lists(TOKENS, min_size=1, max_size=8))
    draft = draw(st.lists(TOKENS, min_size=len(best) - 1, max_size=len(best) - 1))
    agree = draw(st.integers(0, len(draft)))
    return best, best[:agree] + draft[agree:]


@settings(max_examples=100, deadline=None)
@given(passes())
def test_the_accepted_prefix_is_the_longest_that_agrees(case: tuple[list[int], list[int]]) -> None:
    best, draft = case
    accepted, _ = accept_greedy(np.array(best), draft)
    assert draft[:accepted] == best[:accepted]
    assert accepted == len(draft) or draft[accepted] != best[accepted]


@settings(max_examples=100, deadline=None)
@given(passes())
def test_emitted_tokens_are_what_the_verifier_says_alone(case: tuple[list[int], list[int]]) -> None:
    best, draft = case
    accepted, following = accept_greedy(np.array(best), draft)
    assert [*draft[:accepted], following] == best[: accepted + 1]


def test_a_correct_token_after_the_first_difference_does_not_count() -> None:
    assert accept_greedy(np.array([4, 5, 6, 7]), [4, 9, 6]) == (1, 5)


def test_a_wholly_accepted_draft_brings_the_bonus_token() -> None:
    assert accept_greedy(np.array([4, 5, 6]), [4, 5]) == (2, 6)


def test_an_empty_draft_gives_one_plain_token() -> None:
    accepted, following = accept_greedy(np.array([3], dtype=np.int64), [])
    assert (accepted, following) == (0, 3)
    assert type(following) is int
