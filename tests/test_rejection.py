"""Tier 0: rejection sampling, by the acceptance rule's own arithmetic and by counting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tables import chi_square

from quasar.runtime.chain.acceptance import Probabilities, accept_rejection, sample

VOCAB = 4


def distribution(weights: list[float]) -> Probabilities:
    return (np.array(weights) / np.sum(weights)).astype(np.float32)


WEIGHTS = st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0, 2.0]), min_size=VOCAB, max_size=VOCAB).filter(any)
DISTRIBUTIONS = WEIGHTS.map(distribution)


def script(*values: float) -> Callable[[], float]:
    """These random numbers, and no more."""
    numbers = iter(values)
    return lambda: next(numbers)


def decision(p: Probabilities, token: int, q: Probabilities | None, at: float) -> int | None:
    """What one draft token gives where the first random number is `at`: None for accepted, else nothing is asked further."""
    accepted, _ = accept_rejection([p, p], [token], [q], script(at, 0.5))
    return None if accepted else 0


def law_of_one(p: Probabilities, token: int, q: Probabilities | None) -> np.ndarray:
    """Exact law of the token at a draft's position, given the draft token: by bisection of both random numbers."""
    low, high = 0.0, 1.0
    if decision(p, token, q, np.nextafter(1, 0)) is None:
        low = 1.0
    else:
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if decision(p, token, q, middle) is None else (low, middle)
    accepted = low
    law = np.zeros(VOCAB)
    law[token] += accepted
    if accepted < 1:
        rejected = np.nextafter(1, 0)
        grid = [(i + 0.5) / 4000 for i in range(4000)]
        for u in grid:
            law[accept_rejection([p, p], [token], [q], script(rejected, u))[1]] += (1 - accepted) / len(grid)
    return law


@settings(max_examples=25, deadline=None)
@given(DISTRIBUTIONS, st.integers(0, VOCAB - 1))
@example(distribution([1, 0, 0, 0]), 1)
@example(distribution([1, 0, 0, 0]), 0)
def test_a_deterministic_draft_leaves_the_law_of_p(p: Probabilities, token: int) -> None:
    np.testing.assert_allclose(law_of_one(p, token, None), p, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(DISTRIBUTIONS, DISTRIBUTIONS)
@example(distribution([1, 0, 0, 0]), distribution([0, 1, 1, 1]))
@example(distribution([0, 1, 1, 1]), distribution([1, 0, 0, 0]))
@example(distribution([1, 2, 3, 4]), distribution([1, 2, 3, 4]))
def test_a_draft_drawn_from_q_leaves_the_law_of_p(p: Probabilities, q: Probabilities) -> None:
    law = sum(float(q[token]) * law_of_one(p, token, q) for token in range(VOCAB) if q[token] > 0)
    np.testing.assert_allclose(law, p, atol=2e-3)


@settings(max_examples=100, deadline=None)
@given(DISTRIBUTIONS, DISTRIBUTIONS, st.integers(0, VOCAB - 1), st.floats(0, 1, exclude_max=True))
def test_a_draft_is_accepted_with_p_over_q(p: Probabilities, q: Probabilities, token: int, u: float) -> None:
    if q[token] == 0:
        return  # could not have been drawn
    accepted, _ = accept_rejection([p, p], [token], [q], script(u, 0.5))
    assert accepted == (u * float(q[token]) < float(p[token]))


@settings(max_examples=100, deadline=None)
@given(DISTRIBUTIONS, st.floats(0, 1, exclude_max=True))
def test_a_draft_from_p_itself_is_always_accepted(p: Probabilities, u: float) -> None:
    for token in np.flatnonzero(p):
        assert accept_rejection([p, p], [int(token)], [p], script(u, 0.5))[0] == 1


@settings(max_examples=100, deadline=None)
@given(DISTRIBUTIONS, st.integers(0, VOCAB - 1), st.floats(0, 1, exclude_max=True))
def test_what_cannot_come_is_never_accepted(p: Probabilities, token: int, u: float) -> None:
    q = distribution([float(i == token) for i in range(VOCAB)])
    accepted, following = accept_rejection([p, p], [token], [q], script(u, u))
    assert p[token] > 0 or (accepted == 0 and following != token)


def test_a_rejection_by_rounding_alone_still_gives_a_token_of_p() -> None:
    """q above p everywhere, as float32 sums allow: nothing is left of p - q."""
    q = distribution([1, 1, 0, 0])
    p = (q * np.float32(0.999)).astype(np.float32)
    assert accept_rejection([p, p], [0], [q], script(0.9999, 0.75)) == (0, 1)


def test_without_a_draft_the_token_is_drawn_from_p() -> None:
    p = distribution([0, 1, 3, 0])
    assert [accept_rejection([p], [], [], script(u)) for u in (0.0, 0.2499, 0.25, 0.999)] == [(0, 1), (0, 1), (0, 2), (0, 2)]


def test_nothing_is_asked_for_past_the_first_rejection() -> None:
    p, asked = distribution([1, 0, 0, 0]), []

    def one_by_one() -> Iterator[Probabilities]:
        for i in range(4):
            asked.append(i)
            yield p

    assert accept_rejection(one_by_one(), [0, 1, 0], [None] * 3, script(0.5, 0.5, 0.5)) == (1, 0)
    assert asked == [0, 1]


def test_too_few_distributions_are_a_mistake_of_the_caller() -> None:
    p = distribution([1, 0, 0, 0])
    with pytest.raises(ValueError, match="1 distributions do not verify a draft of 1"):
        accept_rejection([p], [0], [None], script(0.5))


def test_a_run_of_drafts_follows_the_joint_law() -> None:
    """Two positions whose distributions depend on the token before, drafts of both kinds."""
    numbers = np.random.default_rng(5)
    p = [distribution(row) for row in numbers.uniform(0, 1, (VOCAB + 1, VOCAB))]
    q = [distribution(row) for row in numbers.uniform(0, 1, (VOCAB + 1, VOCAB))]
    counts, rounds = np.zeros((VOCAB, VOCAB)), 8000
    for i in range(rounds):
        first = sample(q[VOCAB], numbers.random())
        second = 2 if i % 2 else sample(q[first], numbers.random())
        verified = [p[VOCAB], p[first], p[second]]
        accepted, following = accept_rejection(verified, [first, second], [q[VOCAB], None if i % 2 else q[first]], numbers.random)
        tokens = [*[first, second][:accepted], following]
        if len(tokens) < 2:
            tokens.append(sample(p[tokens[0]], numbers.random()))
        counts[tokens[0], tokens[1]] += 1
    expected = rounds * p[VOCAB][:, None].astype(np.float64) * np.array(p[:VOCAB])
    assert chi_square(counts.reshape(-1), expected.reshape(-1)) > 1e-4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-30, 0.25, 1.0, 7.0]), min_size=1, max_size=6).filter(any), st.floats(0, 1, exclude_max=True)
)
@example([1.0, 0.0], float(np.nextafter(1, 0)))
@example([0.0, 1.0], 0.0)
def test_a_sample_is_the_token_at_a_quantile(weights: list[float], u: float) -> None:
    values = np.array(weights, dtype=np.float32)
    token, total = sample(values, u), float(np.cumsum(values, dtype=np.float64)[-1])
    assert values[token] > 0
    exact = values.astype(np.float64)
    assert exact[:token].sum() <= u * total <= exact[: token + 1].sum()
