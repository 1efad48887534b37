"""Tier 0: what passes cost and how often drafts are right, as far as it was seen. No clock is read."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quasar.runtime.chain.estimates import Acceptance, Average, PassCosts, ReadingCosts, Savings, StepCosts

Cost = Callable[[int, int], float]


def estimate(made: PassCosts, passes: Many[tuple[int, int]]) -> list[float]:
    return [float(made.estimate(sequences, np.array([rows]))[0]) for sequences, rows in passes]


def watch(made: PassCosts, cost: Cost, passes: Many[tuple[int, int]], noise: float = 0.0, seed: int = 0) -> None:
    """Passes of these (sequences, rows) take what they cost, give or take some noise."""
    random = np.random.default_rng(seed)
    for sequences, rows in passes:
        made.observe(sequences, rows, 0, cost(sequences, rows) * float(np.exp(random.normal(0, noise))))


def line(sequences: int, rows: int) -> float:
    return 0.05 + 0.002 * rows + 0.001 * sequences + 0.01 * (rows > sequences)


def test_before_the_first_pass_nothing_is_known() -> None:
    made = PassCosts()
    assert not made.known
    made.observe(1, 1, 0, 1.0)
    assert made.known
    assert estimate(made, [(1, 1)]) == pytest.approx([1.0], rel=0.01)


def test_a_row_more_is_taken_to_cost_little_so_that_it_is_tried() -> None:
    made = PassCosts()
    made.observe(1, 1, 0, 1.0)
    one, nine = estimate(made, [(1, 1), (1, 9)])
    assert one < nine < 1.25 * one


@example({2: 0.5, 3: 2.0})
@example({4: 2.0, 2: 0.5})
@example({6: 2.0, 4: 0.5})
@example({11: 0.5, 14: 0.5, 15: 0.5, 16: 2.0})
@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from([*range(1, 17), 20, 24, 40]), st.floats(0.5, 2), min_size=1, max_size=5))
def test_costs_settle_at_what_was_measured_whatever_their_shape(seconds: dict[int, float]) -> None:
    cost = dict(zip(sorted(seconds), sorted(seconds.values()), strict=True))
    made = PassCosts()
    watch(made, lambda _, rows: cost[rows], [(1, rows) for rows in cost] * 100)
    assert estimate(made, [(1, rows) for rows in cost]) == pytest.approx(list(cost.values()), rel=0.15)


def test_what_was_never_measured_is_told_from_the_rest() -> None:
    """Few passes of some kinds are enough for those of every other, though one in ten takes three times as long."""
    made, random = PassCosts(), np.random.default_rng(0)
    kinds = [(8, 8), (8, 12), (8, 30), (4, 4), (4, 72), (1, 1), (1, 5), (2, 90)]
    for number in range(120):
        sequences, rows = kinds[random.integers(len(kinds))]
        late = 3.0 if number % 10 == 9 else 1.0
        made.observe(sequences, rows, 0, late * line(sequences, rows) * float(np.exp(random.normal(0, 0.06))))
    unseen = [(6, 6), (6, 20), (8, 50), (3, 80), (1, 9), (2, 2)]
    assert estimate(made, unseen) == pytest.approx([line(*one) for one in unseen], rel=0.25)


@pytest.mark.parametrize("first", [(8, 8), (2, 66), (8, 101)])
def test_the_first_pass_may_be_of_any_kind(first: tuple[int, int]) -> None:
    """A pass that reads a prompt or catches up is no plain step, and must not be taken for one."""
    made = PassCosts()
    watch(made, line, [first, *[(8, 8), (8, 12), (8, 16)] * 5])
    assert estimate(made, [(8, 8), (8, 14)]) == pytest.approx([line(8, 8), line(8, 14)], rel=0.1)


def test_padding_is_told_from_the_rows_that_it_pads() -> None:
    """Sixteen drafted tokens are dearer where one sequence has them all."""
    made = PassCosts()
    for _ in range(10):
        for rows, padding in ((8, 0), (16, 0), (16, 56), (24, 0), (24, 112), (24, 40)):
            made.observe(8, rows, padding, line(8, rows) + 0.0004 * padding)
    assert made.padding == pytest.approx(0.0004, rel=0.2)
    assert estimate(made, [(8, 16), (8, 24)]) == pytest.approx([line(8, 16), line(8, 24)], rel=0.1)


def test_more_rows_never_cost_less() -> None:
    made = PassCosts()
    watch(made, line, [(8, 8), (8, 24), (8, 70), (1, 1), (1, 3)] * 5, noise=0.3)
    for sequences in (1, 5, 8):
        seconds = made.trend(sequences, np.arange(sequences, 200))
        assert (seconds > 0).all()
        assert (np.diff(seconds) >= 0).all()


def test_a_machine_that_gets_slower_does_so_for_every_pass() -> None:
    made = PassCosts()
    watch(made, line, [(1, 1), (1, 5), (8, 8), (8, 30)] * 30)
    watch(made, lambda sequences, rows: 2 * line(sequences, rows), [(8, 8)] * 60)
    assert estimate(made, [(8, 8)]) == pytest.approx([2 * line(8, 8)], rel=0.1)
    assert estimate(made, [(8, 30)])[0] > 1.5 * line(8, 30)
    assert estimate(made, [(1, 5)])[0] > 1.4 * line(1, 5)


def test_a_pass_that_something_else_held_up_moves_little() -> None:
    made = PassCosts()
    watch(made, line, [(1, 1), (1, 5)] * 50)
    made.observe(1, 1, 0, 1000.0)
    assert estimate(made, [(1, 1), (1, 5)]) == pytest.approx([line(1, 1), line(1, 5)], rel=0.3)


def test_a_first_pass_that_was_held_up_is_soon_corrected() -> None:
    made = PassCosts()
    watch(made, line, [(1, 1)] * 50)
    made.observe(1, 5, 0, 1000.0)
    watch(made, line, [(1, 1), (1, 5)] * 30)
    assert estimate(made, [(1, 1), (1, 5)]) == pytest.approx([line(1, 1), line(1, 5)], rel=0.1)


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


def test_savings_are_known_by_how_many_sequences_there_are() -> None:
    made = Savings()
    assert made.estimate(3) is None
    made.observe(1, 0.02)
    assert made.estimate(8) == 0.02
    for _ in range(200):
        made.observe(8, 0.001)
    assert made.estimate(8) == made.estimate(7) == pytest.approx(0.001)
    assert made.estimate(1) == 0.02


def test_an_average_is_of_what_was_seen_last() -> None:
    made = Average()
    assert made.estimate(7.0) == 7.0
    made.observe(10.0, 5.0)
    assert made.estimate(7.0) == 2.0
    for _ in range(100):
        made.observe(12.0, 2.0)
    assert made.estimate(7.0) == pytest.approx(6.0, rel=0.01)


def test_one_thing_seen_does_not_end_what_was_expected() -> None:
    made = Average()
    made.observe(24.0)
    assert made.estimate(256.0, trust=1.0) == 140.0


@pytest.mark.parametrize("seen", [(6,), (6, 700), (700,)])
def test_a_short_prompt_says_what_a_long_one_takes(seen: tuple[int, ...]) -> None:
    """A step takes 20 ms, a token beside it one more."""
    made = ReadingCosts()
    for tokens in seen:
        made.observe(tokens, 0.02 + 0.001 * tokens)
    for tokens in (1, 50, 1000):
        assert made.estimate(tokens, 0.02) == pytest.approx(0.02 + 0.001 * tokens)
    assert made.estimate(1000, 10.0) == 10.0
