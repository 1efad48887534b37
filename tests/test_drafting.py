"""Tier 0: which proposers are asked for which sequences, and what is learned of them. Their costs alone move the clock."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from quasar.runtime.chain import drafted, drafting
from quasar.runtime.chain.drafting import LONGEST_DRAFT, Drafting
from quasar.runtime.chain.estimates import Acceptance, PassCosts
from quasar.runtime.chain.experience import CURIOSITY, PROBE_LENGTH, SHORTEST_INTERVAL, TRIALS
from quasar.runtime.proposers.proposer import Ask, Draft
from quasar.runtime.sampler import Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence, Turn


@dataclass(eq=False)
class Oracle:
    """Proposes what will come, or where `right` is false what will not; texts count up.

    Attributes:
        cost: what a round takes, on the clock that stands for the machine's.
        reading: what a token of a prompt takes.
        most: tokens of a draft of what is weightless.
        asked: of each call, for how many sequences.
    """

    weightless: bool
    right: bool = True
    cost: float = 0.0
    reading: float = 0.0
    name: str = "oracle"
    leads: bool = False
    most: int = 64
    now: float = 0.0
    asked: list[int] = field(default_factory=list)

    def join(self, sequence: Sequence) -> None: ...

    def settle(self, sequence: Sequence, length: int) -> None: ...

    def leave(self, sequence: Sequence) -> None: ...

    def forget(self) -> None: ...

    def missing(self, sequence: Sequence) -> int:
        return len(sequence.tokens) - sequence.new_count

    def read(self, turns: Many[Turn]) -> int:
        self.now += self.reading * sum(self.missing(turn.sequence) for turn in turns)
        return sum(self.missing(turn.sequence) for turn in turns)

    def propose(self, asks: Many[Ask]) -> list[list[Draft]]:
        self.asked.append(len(asks))
        self.now += self.cost
        return [
            [
                Draft(len(ask.sequence.tokens) + i if self.right else -1, "grade")
                for i in range(min(ask.limit, self.most) if self.weightless else 1)
            ]
            for ask in asks
        ]


def measured(base: float = 0.95, row: float = 0.05, sequences: Many[int] = range(1, 9)) -> PassCosts:
    """Passes of `base` seconds and `row` for each row, for any number of sequences."""
    costs = PassCosts()
    for count in sequences:
        for _ in range(20):
            for rows in (count, count * 2, count * 40):
                costs.observe(count, rows, 0, base + row * rows)
    return costs


class Game:
    """Rounds of sequences whose verifier takes what is right of a draft, and one token more."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *oracles: Oracle,
        below: Many[Oracle] = (),
        fixed: int | None = None,
        costs: PassCosts | None = None,
        sequences: int = 1,
    ) -> None:
        clocks = (*oracles, *below)
        for module in (drafted, drafting):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: sum(one.now for one in clocks)))
        self.drafting = Drafting(oracles, below, measured() if costs is None else costs, fixed)
        self.sequences: list[Sequence] = []
        for _ in range(sequences):
            self.join()

    def join(self, prompt: int = 1) -> None:
        self.sequences.append(Sequence(list(range(prompt)), Sampler(SamplingParams(), prompt)))
        self.drafting.join(self.sequences[-1])
        self.drafting.read([Turn(self.sequences[-1], 64, prompt)])

    def begin_again(self) -> None:
        """The sequence ends, another one begins."""
        self.drafting.leave(self.sequences.pop())
        self.join()

    def round(self, limit: int = 64) -> list[int]:
        """Play a round and say how many tokens were drafted for each sequence."""
        before = [list(one.tokens) for one in self.sequences]
        drafts = self.drafting.draft([Ask(one, limit) for one in self.sequences], len(self.sequences))
        assert [one.tokens for one in self.sequences] == before
        for one, draft in zip(self.sequences, drafts, strict=True):
            assert len(draft) <= limit
            tokens = one.tokens
            accepted = next((i for i, d in enumerate(draft) if d.token != len(tokens) + i), len(draft))
            self.drafting.settle(one, len(tokens) + accepted)
            tokens.extend(range(len(tokens), len(tokens) + accepted + 1))
        return [len(draft) for draft in drafts]

    def rounds(self, count: int) -> list[int]:
        """Of the first sequence."""
        return [self.round()[0] for _ in range(count)]


@pytest.mark.parametrize("weightless", [True, False])
@pytest.mark.parametrize("fixed", [0, 1, 5])
def test_a_fixed_length_is_kept_whatever_it_costs(monkeypatch: pytest.MonkeyPatch, weightless: bool, fixed: int) -> None:
    game = Game(monkeypatch, Oracle(weightless, right=False, cost=100.0), fixed=fixed, sequences=3)
    for _ in range(30):
        assert game.round() == [fixed] * 3
    assert game.round(limit=3) == [min(fixed, 3)] * 3


def test_a_fixed_length_is_of_the_first_that_proposes(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Oracle(True), Oracle(False)
    Game(monkeypatch, first, second, fixed=4).rounds(5)
    assert (len(first.asked), second.asked) == (5, [])


@pytest.mark.parametrize("fixed", [5, None])
def test_others_go_on_behind_what_leads_and_behind_nothing_else(monkeypatch: pytest.MonkeyPatch, fixed: int | None) -> None:
    game = Game(monkeypatch, Oracle(True, leads=True, most=2), Oracle(True, most=3), Oracle(True), fixed=fixed, sequences=2)
    for _ in range(20):
        lengths = game.round()
    assert lengths == [5, 5]


def test_what_leads_is_not_asked_without_a_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    leading = Oracle(True, leads=True)
    assert Game(monkeypatch, leading, below=[leading]).rounds(20) == [0] * 20
    assert leading.asked == []


def test_before_a_pass_was_timed_nothing_is_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = PassCosts()
    game = Game(monkeypatch, Oracle(True), costs=costs)
    assert game.rounds(3) == [0, 0, 0]
    costs.observe(1, 1, 0, 1.0)
    assert game.rounds(2)[-1] > 0


def test_the_first_pass_of_so_many_sequences_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game(monkeypatch, Oracle(True))
    assert game.round() == [0]
    assert game.round() != [0]
    game.join()
    assert game.round() == [0, 0]
    assert game.round() != [0, 0]


@pytest.mark.parametrize("weightless", [True, False])
def test_drafts_that_are_right_get_long(monkeypatch: pytest.MonkeyPatch, weightless: bool) -> None:
    game = Game(monkeypatch, Oracle(weightless, cost=0.0 if weightless else 0.05))
    assert max(game.rounds(80)[-10:]) == LONGEST_DRAFT
    assert game.round(limit=4) == [4]


def test_a_weightless_proposer_that_is_wrong_is_watched_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(True, right=False)
    game = Game(monkeypatch, oracle)
    lengths = game.rounds(300)
    assert lengths[1] > 0
    assert set(lengths[100:]) == {0}
    assert len(oracle.asked) > 280
    oracle.right = True
    lengths = game.rounds(60)
    assert lengths[0] == 0
    assert lengths[-1] >= 8


def test_an_engine_that_is_wrong_takes_its_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, right=False, cost=0.3, reading=2.0)
    game = Game(monkeypatch, oracle)
    tried = []
    for number in range(100):
        game.begin_again()
        before = oracle.now
        lengths = game.rounds(60)
        if game.drafting._engines[0].follows(game.sequences[0]):
            tried.append(number)
            assert sum(length > 0 for length in lengths) <= TRIALS
        else:
            assert oracle.now == before  # its prompt was not read in vain
    assert 3 <= len(tried) <= 20
    assert oracle.now < 1.5 * CURIOSITY * 100 * 60 + 20


@pytest.mark.parametrize("prompt", [1, 400])
def test_an_engine_reads_a_prompt_if_the_answer_will_make_up_for_it(monkeypatch: pytest.MonkeyPatch, prompt: int) -> None:
    """It saves about half of 60 passes, and takes as long as a pass to read 4 tokens."""
    oracle = Oracle(False, cost=0.1, reading=0.25)
    game = Game(monkeypatch, oracle)
    read = 0
    for _ in range(40):
        game.drafting.leave(game.sequences.pop())
        game.join(prompt)
        game.rounds(10)
        read += game.drafting._engines[0].follows(game.sequences[0])
    assert read > 35 if prompt == 1 else read < 10


def test_a_few_short_answers_to_short_prompts_do_not_end_an_engine_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a quarter of a pass, and to read a prompt of any length as long as a step."""
    oracle = Oracle(False, cost=0.25)

    def read(turns: Many[Turn]) -> int:
        oracle.now += oracle.cost
        return sum(oracle.missing(turn.sequence) for turn in turns)

    monkeypatch.setattr(oracle, "read", read)
    game = Game(monkeypatch, oracle, sequences=0)
    game.join(5)
    for _ in range(4):
        game.round(limit=2)
    game.drafting.leave(game.sequences.pop())
    game.join(400)
    assert game.drafting._engines[0].follows(game.sequences[0])


def test_what_drafts_are_compared_with_is_measured_again_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Game(monkeypatch, Oracle(True))
    plain = [number for number, length in enumerate(game.rounds(300)) if length == 0]
    gaps = [later - earlier for earlier, later in pairwise(plain)]
    assert plain[0] == 0
    assert gaps == [(SHORTEST_INTERVAL << number) + 1 for number in range(len(gaps))]
    assert len(gaps) > 4


def test_a_prompt_in_the_pass_is_no_reason_to_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are free up to sixteen of them; a prompt uses these up, however long its own rows take."""
    costs = PassCosts()
    for _ in range(60):
        for rows in (1, 4, 8, 16, 32, 64, 128):
            costs.observe(1, rows, 0, max(1.0, rows / 16))
    monkeypatch.setattr(Acceptance, "survivals", lambda self, grades: 0.05 ** np.arange(1, len(grades) + 1))
    game = Game(monkeypatch, Oracle(True), costs=costs)
    game.rounds(1)
    ask = Ask(game.sequences[0], 30)
    assert len(game.drafting.draft([ask], 1)[0]) > 0
    assert game.drafting.draft([ask], 1, prompts=[64]) == [[]]


def test_an_engine_that_becomes_right_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, right=False, cost=0.1)
    game = Game(monkeypatch, oracle)
    assert sum(length > 0 for length in game.rounds(100)[-60:]) == 0
    oracle.right = True
    for _ in range(100):
        game.begin_again()
        lengths = game.rounds(40)
    assert sorted(lengths)[1] >= 5  # every round but for a plain one, and no trials


def test_an_engine_that_costs_more_than_it_saves_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always right, but a token drafted costs as much as one verified."""
    game = Game(monkeypatch, Oracle(False, cost=1.0))
    assert sum(length > 0 for length in game.rounds(1000)) < 12


def test_an_engine_that_was_slow_at_first_is_used_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(False, cost=50.0)
    game = Game(monkeypatch, oracle)
    game.rounds(1)
    oracle.cost = 0.01
    assert sum(length > PROBE_LENGTH for length in game.rounds(60)) > 30


def test_what_pays_for_one_sequence_may_not_pay_for_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are free up to eight of them."""
    costs = PassCosts()
    for count in (1, 8):
        for rows in (*range(count, 9), 16, 64, 320):
            for _ in range(60):
                costs.observe(count, rows, 0, max(1.0, rows / 8))
    monkeypatch.setattr(Acceptance, "survivals", lambda self, grades: 0.7 ** np.arange(1, len(grades) + 1))
    game = Game(monkeypatch, Oracle(True), costs=costs)
    assert min(game.rounds(4)[1:]) >= 4
    for _ in range(7):
        game.join()
    assert [game.round() for _ in range(3)] == [[0] * 8] * 3


def test_where_padding_is_dear_a_draft_for_each_beats_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def longest(padded: float) -> int:
        costs = PassCosts()
        for _ in range(30):
            for rows, padding in ((8, 0), (16, 0), (16, 56), (24, 0), (24, 112), (64, 0)):
                costs.observe(8, rows, padding, 1 + 0.02 * rows + padded * padding)
        game = Game(monkeypatch, Oracle(True), costs=costs, sequences=8)
        for _ in range(3):
            game.round()
        limits = [32, *[1] * 7]
        drafts = game.drafting.draft([Ask(one, limit) for one, limit in zip(game.sequences, limits, strict=True)], 8)
        return len(drafts[0])

    assert longest(0.0) > 2 * longest(0.02) > 0


def test_the_sequences_with_a_likely_draft_get_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(True)
    game = Game(monkeypatch, oracle, costs=measured(row=0.3), sequences=2)
    good = game.sequences[0]
    propose = oracle.propose

    def two_kinds(asks: Many[Ask]) -> list[list[Draft]]:
        drafts = propose(asks)
        return [
            draft if ask.sequence is good else [Draft(-1, "bad") for _ in draft] for ask, draft in zip(asks, drafts, strict=True)
        ]

    oracle.propose = two_kinds  # type: ignore[method-assign]
    for _ in range(60):
        lengths = game.round()
    assert lengths[0] > 4
    assert lengths[1] == 0


def test_a_level_that_does_not_pay_is_skipped_for_what_proposes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    level, weightless = Oracle(False, right=True, cost=1.0, name="level"), Oracle(True)
    game = Game(monkeypatch, level, below=[weightless])
    lengths = game.rounds(80)
    assert lengths[-1] == LONGEST_DRAFT
    counters = game.sequences[0].level("level")
    assert 70 < counters.skipped < 80
    assert len(level.asked) < 12


def test_a_level_that_pays_more_than_what_proposes_to_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    level, weightless = Oracle(False, cost=0.05, name="level"), Oracle(True, right=False)
    game = Game(monkeypatch, level, below=[weightless])
    game.rounds(80)
    assert game.sequences[0].level("level").skipped < 10


def test_a_draft_that_followed_rejected_tokens_is_not_held_against_the_proposer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next level took them back, so what the text became says nothing of it."""
    game = Game(monkeypatch, Oracle(True))
    game.rounds(5)
    one = game.sequences[0]
    length = len(one.tokens)
    one.tokens.extend([77, 78])
    game.drafting.draft([Ask(one, 4)], 1)
    before = game.drafting._all[0].acceptance.estimate("grade")
    del one.tokens[length:]
    game.drafting.settle(one, length)
    one.tokens.extend([5] * 9)
    game.drafting.draft([Ask(one, 4)], 1)
    assert game.drafting._all[0].acceptance.estimate("grade") == before


def test_nothing_is_learned_past_the_first_token_that_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would have followed another token was not asked."""
    game = Game(monkeypatch, Oracle(True))
    one = game.sequences[0]
    for _ in range(2):  # the first pass is a plain one
        game.drafting.draft([Ask(one, 6)], 1)
    expected = Acceptance()
    expected.observe("grade", False)
    for more in ([9], [2], [3], [4]):  # the draft was 1, 2, 3, ...
        one.tokens.extend(more)
        game.drafting._all[0].learn(one)
        assert game.drafting._all[0].acceptance.estimate("grade") == expected.estimate("grade")
