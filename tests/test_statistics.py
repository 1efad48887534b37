from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.runtime.statistics import LevelStatistics, Statistics, difference

ROUNDS = st.lists(st.integers(0, 6).flatmap(lambda proposed: st.tuples(st.just(proposed), st.integers(0, proposed))), max_size=12)


def counted(rounds: list[tuple[int, int]]) -> Statistics:
    statistics = Statistics(new_tokens=1)
    for proposed, accepted in rounds:
        statistics.levels[-1].count_round(proposed, accepted, proposed + 1, 0.01 * (proposed + 1))
        statistics.new_tokens += accepted + 1
    return statistics


@settings(max_examples=100, deadline=None)
@given(ROUNDS)
def test_counters_are_the_sums_over_rounds(rounds: list[tuple[int, int]]) -> None:
    statistics = counted(rounds)
    assert statistics.rounds == len(rounds)
    assert statistics.proposed == sum(proposed for proposed, _ in rounds)
    assert statistics.accepted == sum(accepted for _, accepted in rounds)


@settings(max_examples=100, deadline=None)
@given(ROUNDS)
def test_each_position_counts_the_rounds_that_accepted_it(rounds: list[tuple[int, int]]) -> None:
    longest = max((accepted for _, accepted in rounds), default=0)
    expected = [sum(accepted > position for _, accepted in rounds) for position in range(longest)]
    assert counted(rounds).accepted_per_position == expected


@settings(max_examples=100, deadline=None)
@given(ROUNDS.filter(bool))
def test_tokens_per_round_is_one_plus_the_accepted_per_round(rounds: list[tuple[int, int]]) -> None:
    statistics = counted(rounds)
    assert statistics.tokens_per_round == pytest.approx(1 + statistics.accepted / len(rounds))


@settings(max_examples=50, deadline=None)
@given(ROUNDS)
def test_acceptance_rate_is_a_share_of_what_was_proposed(rounds: list[tuple[int, int]]) -> None:
    statistics = counted(rounds)
    proposed, accepted = (sum(column) for column in zip(*rounds, strict=True)) if rounds else (0, 0)
    assert statistics.acceptance_rate == (accepted / proposed if proposed else None)


def test_without_a_round_every_ratio_is_none() -> None:
    statistics = Statistics(prompt_tokens=3, new_tokens=1, prefill_seconds=0.5, decode_seconds=0.1)
    assert statistics.tokens_per_round is None
    assert statistics.acceptance_rate is None
    assert statistics.tokens_per_second is None
    assert statistics.outside_share is None


def test_speed_and_share_leave_the_prefill_out() -> None:
    statistics = counted([(0, 0)] * 10)
    statistics.prefill_seconds, statistics.decode_seconds = 100.0, 2.0
    statistics.engine_seconds = {"int8": 101.0}
    statistics.decode_engine_seconds = {"int8": 1.0, "float": 0.5}
    assert statistics.tokens_per_second == 5.0
    assert statistics.outside_share == 0.25


def test_a_clock_that_did_not_move_gives_no_speed() -> None:
    statistics = counted([(2, 1)])
    assert statistics.tokens_per_second is None
    assert statistics.outside_share is None


@settings(max_examples=50, deadline=None)
@given(ROUNDS)
def test_the_dictionary_is_json_with_counters_and_ratios(rounds: list[tuple[int, int]]) -> None:
    statistics = counted(rounds)
    statistics.engine_seconds = {"int8": 0.5}
    values = statistics.to_dict()
    level = values.pop("levels")[0]
    assert json.loads(json.dumps(values)) == values
    assert json.loads(json.dumps(level))["step_ms"] == {str(rows): ms for rows, ms in level["step_ms"].items()}
    names = ("rounds", "proposed", "accepted", "accepted_per_position", "tokens_per_round", "acceptance_rate")
    assert {name: values[name] for name in names} == {name: getattr(statistics, name) for name in names}
    assert {"prefill_seconds", "decode_seconds", "engine_seconds", "tokens_per_second", "outside_share"} <= set(values)


@settings(max_examples=100, deadline=None)
@given(ROUNDS)
def test_acceptance_per_position_is_relative_to_the_rounds_that_proposed_one_there(rounds: list[tuple[int, int]]) -> None:
    longest = max((proposed for proposed, _ in rounds), default=0)
    expected = [
        sum(accepted > position for _, accepted in rounds) / sum(proposed > position for proposed, _ in rounds)
        for position in range(longest)
    ]
    assert counted(rounds).levels[-1].acceptance_per_position == expected


@settings(max_examples=100, deadline=None)
@given(ROUNDS, ROUNDS)
def test_levels_added_are_those_of_all_rounds(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    level = counted(first).levels[-1]
    level.add(counted(second).levels[-1])
    assert level == counted(first + second).levels[-1]


def test_the_last_level_counts_for_the_generation() -> None:
    statistics = Statistics(new_tokens=9, levels=[LevelStatistics("int8"), LevelStatistics("float")])
    statistics.levels[0].count_round(2, 2, 3, 0.1)
    statistics.levels[0].count_round(2, 2, 3, 0.3)
    statistics.levels[1].count_round(7, 7, 8, 0.1)
    assert (statistics.rounds, statistics.proposed, statistics.accepted, statistics.tokens_per_round) == (1, 7, 7, 8.0)
    assert statistics.levels[0].step_ms == {3: pytest.approx(200)}
    report = str(statistics)
    assert "int8: 2 rounds, 3.00 tokens per round, 4 of 4 proposed tokens accepted (100%)" in report
    assert "float: 1 rounds, 8.00 tokens per round, 7 of 7 proposed tokens accepted (100%)" in report


def test_the_dictionary_is_a_snapshot() -> None:
    statistics = counted([(2, 1)])
    values = statistics.to_dict()
    statistics.levels[-1].count_round(2, 2, 3, 0.1)
    assert values["accepted_per_position"] == [1]


def test_two_generations_share_no_counters() -> None:
    counted([(3, 3)])
    assert Statistics().accepted_per_position == []


def test_the_report_says_rounds_and_acceptance() -> None:
    statistics = counted([(4, 3), (4, 1), (0, 0)])
    statistics.decode_seconds = 2.0
    report = str(statistics)
    assert "8 new tokens in 2.00 s, 3.5 tokens/s" in report
    assert "3 rounds, 2.33 tokens per round, 4 of 8 proposed tokens accepted (50%)" in report


def test_the_report_of_plain_decoding_says_nothing_of_proposals() -> None:
    assert "proposed" not in str(counted([(0, 0)]))
    assert "time outside engines: -" in str(Statistics())


def test_difference_is_by_engine_and_starts_at_zero() -> None:
    assert difference({"int8": 5.0, "float": 2.0}, {"int8": 3.5, "gone": 1.0}) == {"int8": 1.5, "float": 2.0}
