"""Tier 0: costs, acceptance and the length that pays; and a drafter that learns from what it sees. No clock is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.chain import drafting
from quasar.runtime.chain.drafting import LONGEST_DRAFT, LONGEST_PAUSE, PROBE_LENGTH, Drafter
from quasar.runtime.chain.pacing import MEMORY, ROW_PRIOR, Acceptance, StepCosts, TokenCost, best_length
from quasar.runtime.proposers.proposer import Draft
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence

# ------------------------------------------------------------------------------------------------ costs


def costs(seconds: dict[int, float]) -> StepCosts:
    """As many passes of each as make a settled average."""
    made = StepCosts()
    for _ in range(100):
        for rows, value in seconds.items():
            made.observe(rows, value)
    return made


def test_measured_costs_are_known_and_others_lie_between() -> None:
    assert not StepCosts().known
    made = costs({1: 1.0, 5: 2.0, 9: 6.0})
    assert made.known
    assert made.estimate([1, 5, 9]) == pytest.approx([1.0, 2.0, 6.0], rel=0.01)
    assert made.estimate([3, 6, 8]) == pytest.approx([1.5, 3.0, 5.0], rel=0.01)


def test_more_rows_than_measured_cost_a_little_more_and_fewer_the_same() -> None:
    made = costs({3: 1.0, 5: 2.0})
    assert made.estimate([1, 2]) == pytest.approx([1.0, 1.0], rel=0.01)
    assert made.estimate([6, 10]) == pytest.approx([2.04, 2.2], rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(1, 40), st.floats(0.1, 10), min_size=1, max_size=5), st.lists(st.integers(1, 60), min_size=1))
def test_costs_settle_at_what_was_measured_in_any_order(seconds: dict[int, float], wanted: list[int]) -> None:
    made = costs(seconds)
    assert made.estimate(wanted) == [made.estimate([rows])[0] for rows in wanted]
    assert made.estimate(list(seconds)) == pytest.approx(list(seconds.values()), rel=0.1)


def test_a_machine_that_gets_slower_does_so_for_every_number_of_rows() -> None:
    made = costs({1: 1.0, 5: 2.0})
    for _ in range(200):
        made.observe(1, 3.0)
    one, five = made.estimate([1, 5])
    assert one == pytest.approx(3.0, rel=0.01)
    assert five > 3.5
    for _ in range(200):
        made.observe(5, 6.0)
        made.observe(1, 3.0)
    assert made.estimate([1, 5]) == pytest.approx([3.0, 6.0], rel=0.05)


def test_a_pass_that_something_else_held_up_moves_little() -> None:
    made = costs({1: 1.0, 5: 2.0})
    made.observe(1, 1000.0)
    assert made.estimate([1])[0] < 1.2
    assert made.estimate([5])[0] < 2.3


def test_a_first_pass_that_was_held_up_is_not_believed_and_soon_corrected() -> None:
    made = costs({1: 1.0})
    made.observe(5, 1000.0)
    assert made.estimate([5])[0] < 2.3
    for _ in range(30):
        made.observe(1, 1.0)
        made.observe(5, 1.2)
    assert made.estimate([1, 5]) == pytest.approx([1.0, 1.2], rel=0.05)


def test_what_was_not_seen_for_long_is_forgotten_but_for_the_plain_step() -> None:
    """A number of rows measured in a bad moment is not chosen again, so nothing else would correct it."""
    made = costs({1: 1.0, 3: 1.1})
    made.observe(7, 2.0)
    assert made.estimate([7])[0] > 1.6
    for _ in range(MEMORY + 1):
        made.observe(3, 1.1)
    assert made.estimate([1, 3, 7]) == pytest.approx([1.0, 1.1, 1.1 * (1 + 4 * ROW_PRIOR)], rel=0.02)


# ------------------------------------------------------------------------------------------------ acceptance


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


# ------------------------------------------------------------------------------------------------ the length that pays


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[float], list[float], float, int]:
    count = draw(st.integers(0, 12))
    verify = draw(st.lists(st.floats(0.01, 10), min_size=count + 1, max_size=count + 1))
    acceptance = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    return verify, acceptance, draw(st.floats(0, 3)), draw(st.integers(0, count))


@settings(max_examples=300, deadline=None)
@given(situations())
def test_the_best_length_has_the_highest_rate(case: tuple[list[float], list[float], float, int]) -> None:
    verify, acceptance, token_cost, at_least = case

    def rate(k: int) -> float:
        tokens = 0.0
        for accepted in range(k + 1):  # by the number of accepted tokens
            probability = 1.0 if accepted == k else 1 - acceptance[accepted]
            for hit in acceptance[:accepted]:
                probability *= hit
            tokens += probability * (accepted + 1)
        return tokens / (verify[k] + k * token_cost)

    best, shown = best_length(verify, acceptance, token_cost, at_least)
    assert at_least <= best < len(verify)
    assert shown == pytest.approx(rate(best)) == pytest.approx(max(rate(k) for k in range(at_least, len(verify))))
    above, below = (best_length(verify, acceptance, token_cost, at_least, shown * factor) for factor in (1.01, 0.99))
    assert above == (at_least, pytest.approx(shown * 1.01))
    assert below == (best, shown)


def test_no_draft_is_a_candidate_like_the_others() -> None:
    verify = [1.0 + 0.02 * k for k in range(9)]
    assert best_length(verify, [0.0] * 8, 0.0) == (0, 1.0)
    assert best_length(verify, [0.9] * 8, 10.0) == (0, 1.0)
    assert best_length([1.0, 2.0, 3.0], [0.9, 0.9], 0.0) == (0, 1.0)
    assert best_length(verify, [1.0] * 8, 0.0) == (8, 9 / 1.16)
    assert best_length([0.5], [], 0.0) == (0, 2.0)


# ------------------------------------------------------------------------------------------------ the drafter


@dataclass
class Oracle:
    """Proposes what will come, or where `right` is false what will not; the text counts up.

    Attributes:
        cost: what a token takes, on the clock that stands for the machine's.
        asked: how many tokens were made for each draft.
    """

    weightless: bool
    right: bool = True
    cost: float = 0.0
    name: str = "oracle"
    now: float = 0.0
    asked: list[int] = field(default_factory=list)

    def begin(self, sequence: Sequence, reuse: bool) -> None: ...

    def rewind(self, length: int) -> None: ...

    def end(self, sequence: Sequence) -> None: ...

    def propose(self, sequence: Sequence, limit: int) -> Iterator[Draft]:
        self.asked.append(0)
        for i in range(limit):
            self.now += self.cost
            self.asked[-1] += 1
            yield Draft(len(sequence.tokens) + i if self.right else -1, "grade")


class Known:
    """1 second for a row, and 0.05 for each one more."""

    known = True

    def estimate(self, rows: Iterable[int]) -> list[float]:
        return [0.95 + 0.05 * count for count in rows]


class Game:
    """Rounds of a drafter whose verifier takes what is `Known`."""

    def __init__(self, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, fixed: int | None = None) -> None:
        monkeypatch.setattr(drafting, "time", SimpleNamespace(perf_counter=lambda: oracle.now))
        self.oracle = oracle
        self.drafter = Drafter(oracle, Known(), fixed)  # type: ignore[arg-type]
        self.sequence = Sequence([0], Sampler(SamplingParams(), 1))
        self.drafter.begin(self.sequence, False)

    def round(self, limit: int = 64, floor: float = 0.0) -> int:
        """Play a round and say how many tokens were drafted."""
        tokens = self.sequence.tokens
        drafts = self.drafter.draft(self.sequence, limit, 1, lambda: floor)
        assert len(drafts) <= limit
        accepted = len(drafts) if self.oracle.right else 0
        self.drafter.rewind(len(tokens) + accepted)
        tokens.extend(range(len(tokens), len(tokens) + accepted + 1))
        return len(drafts)

    def rounds(self, count: int) -> list[int]:
        return [self.round() for _ in range(count)]


@pytest.mark.parametrize("weightless", [True, False])
@pytest.mark.parametrize("fixed", [0, 1, 5])
def test_a_fixed_length_is_kept_whatever_it_costs(monkeypatch: pytest.MonkeyPatch, weightless: bool, fixed: int) -> None:
    game = Game(Oracle(weightless, right=False, cost=100.0), monkeypatch, fixed)
    assert game.rounds(50) == [fixed] * 50
    assert game.round(limit=3) == min(fixed, 3)


def test_before_a_pass_was_timed_nothing_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game(Oracle(True), monkeypatch)
    game.drafter._costs = StepCosts()
    assert game.rounds(3) == [0, 0, 0]


@pytest.mark.parametrize("weightless", [True, False])
def test_drafts_that_are_right_get_long(monkeypatch: pytest.MonkeyPatch, weightless: bool) -> None:
    game = Game(Oracle(weightless, cost=0.0 if weightless else 0.05), monkeypatch)
    assert max(game.rounds(80)[-10:]) == LONGEST_DRAFT
    assert game.round(limit=4) == 4


def test_a_weightless_proposer_that_is_wrong_is_watched_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(True, right=False)
    game = Game(oracle, monkeypatch)
    lengths = game.rounds(300)
    assert lengths[0] > 0
    assert set(lengths[100:]) == {0}
    asked = len(oracle.asked)
    assert asked == 300
    oracle.right = True
    lengths = game.rounds(60)
    assert lengths[0] == 0
    assert lengths[-1] >= 8


def test_an_engine_that_is_wrong_is_tried_in_ever_fewer_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, right=False, cost=0.3)
    game = Game(oracle, monkeypatch)
    tried = []
    for number in range(200):
        game.drafter.begin(game.sequence, False)
        lengths = game.rounds(100)
        assert lengths[20:] == [0] * 80  # within a sequence it would have to catch up
        assert sum(lengths) <= 4 * PROBE_LENGTH
        if any(lengths):
            tried.append(number)
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (1, LONGEST_PAUSE)
    assert game.oracle.now < 0.003 * 200 * 100  # what all trials cost of the rounds' time


def test_an_engine_that_becomes_right_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, right=False, cost=0.1)
    game = Game(oracle, monkeypatch)
    assert sum(length > 0 for length in game.rounds(100)[-60:]) == 0
    oracle.right = True
    for _ in range(100):
        game.drafter.begin(game.sequence, False)
        lengths = game.rounds(40)
    assert min(lengths) >= 5  # every round, and no trials


def test_an_engine_that_costs_more_than_it_saves_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always right, but a token drafted costs as much as one verified."""
    game = Game(Oracle(False, right=True, cost=1.0), monkeypatch)
    lengths = game.rounds(2000)
    assert sum(length > 0 for length in lengths) < 12


def test_a_draft_that_followed_rejected_tokens_is_not_held_against_the_proposer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next level took them back, so what the text became says nothing of it."""
    game = Game(Oracle(True), monkeypatch)
    game.rounds(5)
    tokens = game.sequence.tokens
    length = len(tokens)
    tokens.extend([77, 78])
    game.drafter.draft(game.sequence, 4, 1, lambda: 0.0)
    before = game.drafter._acceptance.estimate("grade")
    del tokens[length:]
    game.drafter.rewind(length)
    tokens.extend([5] * 9)
    game.drafter.draft(game.sequence, 4, 1, lambda: 0.0)
    assert game.drafter._acceptance.estimate("grade") == before


def test_nothing_is_learned_past_the_first_token_that_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would have followed another token was not asked."""
    game = Game(Oracle(True), monkeypatch)
    tokens = game.sequence.tokens
    game.drafter.draft(game.sequence, 6, 1, lambda: 0.0)
    expected = Acceptance()
    expected.observe("grade", False)
    for more in ([9], [2], [3], [4]):  # the draft was 1, 2, 3, ...
        tokens.extend(more)
        game.drafter._learn(tokens)
        assert game.drafter._acceptance.estimate("grade") == expected.estimate("grade")


def test_a_draft_leaves_the_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game(Oracle(False), monkeypatch)
    game.rounds(3)
    before = list(game.sequence.tokens)
    game.drafter.draft(game.sequence, 9, 1, lambda: 0.0)
    assert game.sequence.tokens == before


def test_a_weightless_draft_must_beat_what_the_engines_after_it_would_make(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game(Oracle(True), monkeypatch)
    game.rounds(80)
    best = 33 / (0.95 + 0.05 * 33)  # all of the longest draft, as it is nearly sure
    assert game.round(floor=0.9 * best) == LONGEST_DRAFT
    assert game.round(floor=1.1 * best) == 0


def test_an_engine_says_what_its_drafts_would_make(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, cost=0.05)
    game = Game(oracle, monkeypatch)
    assert game.drafter.rate(64, 1) == 0  # nothing was drafted yet
    game.rounds(80)
    assert game.drafter.rate(64, 1) == pytest.approx(33 / (1 + 32 * 0.1), rel=0.1)
    assert game.drafter.rate(1, 1) == pytest.approx(2 / 1.1, rel=0.05)
    oracle.right = False
    game.rounds(300)
    assert game.drafter._resting > 0
    assert game.drafter.rate(64, 1) == 0
    assert Game(Oracle(True), monkeypatch).drafter.rate(64, 1) == 0  # costs nothing, so it is asked itself


def test_the_cost_of_a_token_survives_a_cold_start() -> None:
    """An engine's first pass can take many times as long as the others."""
    cost = TokenCost()
    assert (cost.samples, cost.estimate()) == (0, 0.0)
    for begin, seconds in enumerate([5.0, 0.1, 0.1]):
        cost.observe([begin, begin + seconds / 2, begin + seconds])
    assert cost.estimate() == pytest.approx(0.05)
    for _ in range(50):
        cost.observe([0.0, 0.2, 0.2, 0.2, 0.2])  # a run: the first token takes all the time
    assert cost.estimate() == pytest.approx(0.05)
    cost.observe([1.0])  # nothing was drafted
    assert cost.estimate() == pytest.approx(0.05)


def test_an_engine_that_was_slow_at_first_is_used_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, cost=50.0)
    game = Game(oracle, monkeypatch)
    game.rounds(1)
    oracle.cost = 0.01
    lengths = game.rounds(60)
    assert sum(length > PROBE_LENGTH for length in lengths) > 30
