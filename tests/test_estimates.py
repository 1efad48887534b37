"""Tier 0: what passes cost and how often drafts are right, as far as it was seen. No clock is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.chain.estimates import MEMORY, ROW_PRIOR, Acceptance, PassCosts, RowCosts, StepCosts


def estimate(made: RowCosts, rows: list[int]) -> list[float]:
    return made.estimate(np.array(rows)).tolist()


def costs(seconds: dict[int, float]) -> RowCosts:
    """As many passes of each as make a settled average."""
    made = RowCosts()
    for _ in range(100):
        for rows, value in seconds.items():
            made.observe(rows, value)
    return made


def test_measured_costs_are_known_and_others_lie_between() -> None:
    assert not RowCosts().known
    made = costs({1: 1.0, 5: 2.0, 9: 6.0})
    assert made.known
    assert estimate(made, [1, 5, 9]) == pytest.approx([1.0, 2.0, 6.0], rel=0.01)
    assert estimate(made, [3, 6, 8]) == pytest.approx([1.5, 3.0, 5.0], rel=0.01)


def test_more_rows_than_measured_cost_a_little_more_and_fewer_the_same() -> None:
    made = costs({3: 1.0, 5: 2.0})
    assert estimate(made, [1, 2]) == pytest.approx([1.0, 1.0], rel=0.01)
    assert estimate(made, [6, 10]) == pytest.approx([2.04, 2.2], rel=0.01)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*range(1, 17), 20, 24, 40]), st.floats(0.1, 10), min_size=1, max_size=5),
    st.lists(st.integers(1, 60), min_size=1),
)
def test_costs_settle_at_what_was_measured_in_any_order(seconds: dict[int, float], wanted: list[int]) -> None:
    made = costs(seconds)
    assert estimate(made, wanted) == [estimate(made, [rows])[0] for rows in wanted]
    assert estimate(made, list(seconds)) == pytest.approx(list(seconds.values()), rel=0.1)


def test_a_machine_that_gets_slower_does_so_for_every_number_of_rows() -> None:
    made = costs({1: 1.0, 5: 2.0})
    for _ in range(200):
        made.observe(1, 3.0)
    one, five = estimate(made, [1, 5])
    assert one == pytest.approx(3.0, rel=0.01)
    assert five > 3.5
    for _ in range(200):
        made.observe(5, 6.0)
        made.observe(1, 3.0)
    assert estimate(made, [1, 5]) == pytest.approx([3.0, 6.0], rel=0.05)


def test_a_pass_that_something_else_held_up_moves_little() -> None:
    made = costs({1: 1.0, 5: 2.0})
    made.observe(1, 1000.0)
    assert estimate(made, [1])[0] < 1.2
    assert estimate(made, [5])[0] < 2.3


def test_a_first_pass_that_was_held_up_is_not_believed_and_soon_corrected() -> None:
    made = costs({1: 1.0})
    made.observe(5, 1000.0)
    assert estimate(made, [5])[0] < 2.3
    for _ in range(30):
        made.observe(1, 1.0)
        made.observe(5, 1.2)
    assert estimate(made, [1, 5]) == pytest.approx([1.0, 1.2], rel=0.05)


def test_what_was_not_seen_for_long_is_forgotten_but_for_the_plain_step() -> None:
    """A number of rows measured in a bad moment is not chosen again, so nothing else would correct it."""
    made = costs({1: 1.0, 3: 1.1})
    made.observe(7, 2.0)
    assert estimate(made, [7])[0] > 1.6
    for _ in range(MEMORY + 1):
        made.observe(3, 1.1)
    assert estimate(made, [1, 3, 7]) == pytest.approx([1.0, 1.1, 1.1 * (1 + 4 * ROW_PRIOR)], rel=0.02)


def test_an_unseen_grade_is_believed_in() -> None:
    seen = Acceptance()
    for _ in range(100):
        seen.observe("bad", False)
    assert seen.estimate("new") == Acceptance().estimate() > 0.5
    assert seen.estimate("bad") < 0.15


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=60))
def test_few_observations_are_averaged_evenly(hits: list[bool]) -> None:
    """The prior counts for two of them."""
    seen = Acceptance()
    for hit in hits:
        seen.observe("grade", hit)
    assert seen.estimate("grade") == pytest.approx((2 * 0.6 + sum(hits)) / (2 + len(hits)))


def test_old_observations_fade() -> None:
    seen = Acceptance()
    for hit in [False] * 500 + [True] * 200:
        seen.observe("grade", hit)
    assert seen.estimate("grade") > 0.9


def test_all_grades_together_have_an_average_too() -> None:
    seen = Acceptance()
    for i in range(400):
        seen.observe(i % 2, i % 2 == 1)
    assert seen.estimate() == pytest.approx(0.5, abs=0.05)
    assert seen.estimate(1) > 0.95
    assert seen.estimate(0) < 0.05


def test_survivals_are_products() -> None:
    seen = Acceptance()
    for _ in range(500):
        seen.observe("sure", True)
    sure, new = seen.estimate("sure"), seen.estimate("new")
    assert seen.survivals(["sure", "new", "sure"]).tolist() == pytest.approx([sure, sure * new, sure * new * sure])
    assert seen.survivals([]).tolist() == []


# ------------------------------------------------------------------------------------------------ sequences


def test_each_number_of_sequences_is_measured_by_itself() -> None:
    made = PassCosts()
    assert not made.known(1)
    for _ in range(50):
        made.observe(1, 1, 1.0)
        made.observe(1, 8, 1.2)
        made.observe(8, 8, 3.0)
    assert made.known(1)
    assert made.known(8)
    assert not made.known(4)
    assert made.estimate(1, np.array([1, 8])).tolist() == pytest.approx([1.0, 1.2], rel=0.02)
    assert made.estimate(8, np.array([8])).tolist() == pytest.approx([3.0], rel=0.02)


def test_of_a_number_that_was_not_seen_the_nearest_is_taken() -> None:
    made = PassCosts()
    assert made.estimate(3, np.array([3])).tolist() == [0.0]
    made.observe(1, 1, 1.0)
    made.observe(8, 8, 3.0)
    assert made.estimate(2, np.array([1])).tolist() == [1.0]
    assert made.estimate(7, np.array([8])).tolist() == [3.0]


def test_a_round_s_tokens_share_its_seconds() -> None:
    """A verifier drafts in runs; what counts is the time until each sequence has one token more."""
    made = StepCosts()
    assert (made.known, made.estimate(1)) == (False, 0.0)
    made.observe(1, 4, 0.2)
    assert (made.known, made.estimate(1)) == (True, pytest.approx(0.05))
    made.observe(8, 16, 0.4)
    assert made.estimate(8) == pytest.approx(0.2)
    assert made.estimate(4) == pytest.approx(0.05 + 3 / 7 * 0.15)
    assert made.estimate(20) == pytest.approx(0.2)


def test_the_cost_of_a_step_survives_a_cold_start() -> None:
    """An engine's first pass can take many times as long as the others."""
    made = StepCosts()
    for seconds in (5.0, 0.1, 0.1):
        made.observe(1, 1, seconds)
    assert made.estimate(1) == pytest.approx(0.1)
    for _ in range(50):
        made.observe(1, 1, 0.1)
    made.observe(1, 1, 30.0)  # something else had the machine
    assert made.estimate(1) < 0.13
    for _ in range(100):
        made.observe(1, 1, 0.2)
    assert made.estimate(1) == pytest.approx(0.2, rel=0.02)


def test_passes_of_many_rows_are_learned_though_no_two_are_alike() -> None:
    """Eight sequences with drafts: what arithmetic costs must not be taken for a slow machine."""
    made = RowCosts()
    for _ in range(5):
        made.observe(8, 0.05)
    for rows in (33, 35, 36, 34, 38, 40, 37, 36, 39, 35, 34, 37):
        made.observe(rows, 0.3)
    assert estimate(made, [8])[0] < 0.07
    assert estimate(made, [36])[0] > 0.2
