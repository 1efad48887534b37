"""Tier 0: how far to draft, for all sequences of a pass: what is chosen has the highest rate of all that could be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quasar.runtime.chain.pacing import Standing, best_cut, best_steps

Rates = list[list[float]]


@st.composite
def drafts(draw: st.DrawFn) -> tuple[Rates, list[float], float]:
    """(acceptance of each token of each draft, seconds by drafted tokens, seconds spent)"""
    rates = draw(st.lists(st.lists(st.floats(0, 1), max_size=3), min_size=1, max_size=3))
    count = sum(map(len, rates))
    return rates, draw(st.lists(st.floats(0.01, 10), min_size=count + 1, max_size=count + 1)), draw(st.floats(0, 3))


def survivals(rates: Rates) -> list[NDArray[np.float64]]:
    return [np.cumprod(np.array(one)) for one in rates]


@settings(max_examples=300, deadline=None)
@given(drafts())
def test_the_best_cut_has_the_highest_rate(case: tuple[Rates, list[float], float]) -> None:
    rates, seconds, spent = case
    every = survivals(rates)

    def rate(lengths: tuple[int, ...]) -> float:
        tokens = len(rates) + sum(float(one[:length].sum()) for one, length in zip(every, lengths, strict=True))
        return tokens / (spent + seconds[sum(lengths)])

    lengths, shown = best_cut(every, len(rates), lambda count, longest: np.array(seconds)[count], spent)
    best = max(rate(chosen) for chosen in product(*(range(len(one) + 1) for one in rates)))
    assert shown == pytest.approx(rate(tuple(lengths))) == pytest.approx(best)


def test_the_likeliest_tokens_of_all_sequences_are_verified() -> None:
    every = survivals([[0.9, 0.9, 0.9], [0.3], [], [0.95, 0.1]])
    assert best_cut(every, 4, lambda count, longest: 4.0 + 0.8 * count)[0] == [1, 0, 0, 1]
    assert best_cut(every, 4, lambda count, longest: 4.0 + 0.0 * count)[0] == [3, 1, 0, 2]
    assert best_cut(every, 4, lambda count, longest: 4.0 + 4.0 * count)[0] == [0, 0, 0, 0]
    assert best_cut(every, 4, lambda count, longest: 4.0 + 1.5 * longest)[0] == [1, 0, 0, 1]


def test_drafts_get_shorter_as_more_sequences_share_the_pass() -> None:
    """The first rows are free beside what a pass costs anyway; with eight sequences there are eight already."""

    def verify(sequences: int, count: NDArray[np.integer]) -> NDArray[np.float64]:
        return np.maximum(1.0, (sequences + count) / 8)

    lengths = []
    for sequences in (1, 2, 4, 8):
        every = survivals([[0.8] * 8] * sequences)
        lengths.append(sum(best_cut(every, sequences, lambda count, _, n=sequences: verify(n, count))[0]) / sequences)  # type: ignore[misc]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] >= 7
    assert lengths[-1] <= 1


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[float], int, float, list[float], list[int], list[float], list[float], float]:
    count, most = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    likely = sorted(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)), reverse=True)
    certain = draw(st.lists(st.floats(1, 5), min_size=count + 1, max_size=count + 1))
    there = draw(st.lists(st.integers(0, 4), min_size=count + 1, max_size=count + 1))
    steps = draw(st.lists(st.floats(0, 2), min_size=count + 1, max_size=count + 1))
    verify = draw(st.lists(st.floats(0.01, 10), min_size=20, max_size=20))
    return likely, most, draw(st.floats(0, 1)), certain, there, steps, verify, draw(st.floats(0, 3))


@settings(max_examples=300, deadline=None)
@given(situations())
def test_the_best_steps_have_the_highest_rate(
    case: tuple[list[float], int, float, list[float], list[int], list[float], list[float], float],
) -> None:
    likely, most, typical, certain, there, steps, verify, spent = case

    def rate(count: int, length: int) -> float:
        tokens = certain[count] + sum(likely[:count]) * sum(typical**k for k in range(1, length + 1))
        longest = max(there[count], 2 + length) if count else there[0]
        return tokens / (spent + length * steps[count] + verify[there[count] + count * length] + 0.1 * longest)

    standing = [Standing(tokens, drafted, drafted) for tokens, drafted in zip(certain, there, strict=True)]
    count, length, shown = best_steps(
        likely, most, typical, standing, lambda n: steps[n], lambda n, longest: np.array(verify)[n] + 0.1 * longest, spent, 2
    )
    choices = [(0, 0), *product(range(1, len(likely) + 1), range(1, most + 1))]
    assert (count, length) in choices
    assert shown == pytest.approx(rate(count, length)) == pytest.approx(max(rate(*one) for one in choices))


def test_no_step_is_a_candidate_like_the_others() -> None:
    def verify(count: NDArray[np.integer], longest: NDArray[np.integer]) -> NDArray[np.float64]:
        return 1.0 + 0.02 * count

    def steps(typical: float, seconds: float) -> tuple[int, int, float]:
        return best_steps([1.0], 8, typical, [Standing(1.0, 0, 0)] * 2, lambda n: seconds, verify)

    assert steps(0.0, 0.0) == (0, 0, 1.0)
    assert steps(0.9, 10.0) == (0, 0, 1.0)
    assert steps(1.0, 0.0) == (1, 8, pytest.approx(9 / 1.16))
