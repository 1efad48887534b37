from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.calibration.schemes import (
    DAMAGED,
    DEFAULT_BUDGET,
    FLOAT,
    OUTSTANDING,
    PER_TOKEN,
    STATIC,
    STATIC_ALLOWANCE,
    TWO_PARTS,
    Budget,
    Linear,
    Option,
    Scheme,
    choose,
)

ALPHAS: Mapping[Scheme, float] = {PER_TOKEN: 0.25, STATIC: 0.5, TWO_PARTS: 0.75}
"""An alpha for each scheme, by which tests tell where an option came from."""
NAMES = st.text("abcdef", min_size=1, max_size=4)
DAMAGES = st.one_of(st.floats(1e-6, 10.0), st.floats(1e-6, 2 * DAMAGED))
SIZES = st.integers(1, 50)
LINEARS = st.dictionaries(
    NAMES,
    st.builds(
        lambda size, plain, static, two_parts: linear(plain, size, static, two_parts),
        SIZES,
        DAMAGES,
        st.none() | DAMAGES,
        st.none() | DAMAGES,
    ),
    min_size=1,
    max_size=12,
)
PLAIN_LINEARS = st.dictionaries(
    NAMES, st.builds(lambda damage, size: linear(damage, size), DAMAGES, SIZES), min_size=1, max_size=12
)
BUDGETS = st.builds(Budget, st.floats(0, 1), st.floats(0, 1))
SLACK = 1e-6


def option(scheme: Scheme, damage: float) -> Option:
    return Option(scheme, ALPHAS[scheme], torch.ones(2), 0.1 if scheme == STATIC else None, damage)


def linear(damage: float, size: int = 1, static: float | None = None, two_parts: float | None = None) -> Linear:
    """A linear of that damage with a scale per token, and with other schemes where they are given."""
    damages: dict[Scheme, float | None] = {PER_TOKEN: damage, STATIC: static, TWO_PARTS: two_parts}
    return Linear(size, {scheme: option(scheme, d) for scheme, d in damages.items() if d is not None})


def plain_damage(linears: Mapping[str, Linear], name: str) -> float:
    return linears[name].options[PER_TOKEN].damage


def with_scheme(chosen: Mapping[str, Option], scheme: Scheme) -> set[str]:
    return {name for name, option in chosen.items() if option.scheme == scheme}


def size_of(linears: Mapping[str, Linear], names: set[str]) -> int:
    return sum(linears[name].size for name in names)


def source_of(linears: Mapping[str, Linear], chosen: Mapping[str, Option], name: str) -> Option:
    """The option that a linear had before it was kept float."""
    [source] = [option for option in linears[name].options.values() if option.smoothing is chosen[name].smoothing]
    assert source.alpha == chosen[name].alpha
    return source


def kept(damage: Mapping[str, float], budget: float, sizes: Mapping[str, int] | None = None) -> set[str]:
    """Which linears of these damages stay float."""
    sizes = sizes or dict.fromkeys(damage, 1)
    chosen = choose({name: linear(value, sizes[name]) for name, value in damage.items()}, Budget(two_parts=0.0, float=budget))
    assert {option.scheme for option in chosen.values()} <= {PER_TOKEN, FLOAT}
    return with_scheme(chosen, FLOAT)


def in_order(damage: Mapping[str, float], budget: float, steps: int = 200) -> Sequence[str]:
    """The linears that stay float, in the order in which a growing budget keeps them."""
    order: list[str] = []
    for step in range(steps + 1):
        now = kept(damage, budget * step / steps)
        assert now >= set(order)
        order += sorted(now - set(order))
    return tuple(order)


def healthy(count: int, damage: float = 1e-4) -> dict[str, float]:
    return {f"healthy{i}": damage for i in range(count)}


@settings(max_examples=200, deadline=None)
@given(LINEARS, BUDGETS)
def test_every_linear_has_an_option_and_both_budgets_last(linears: dict[str, Linear], budget: Budget) -> None:
    chosen = choose(linears, budget)
    total = size_of(linears, set(linears))
    assert list(chosen) == list(linears)
    assert size_of(linears, with_scheme(chosen, TWO_PARTS)) <= budget.two_parts * total + SLACK
    assert size_of(linears, with_scheme(chosen, FLOAT)) <= budget.float * total + SLACK
    for name, picked in chosen.items():
        if picked.scheme == FLOAT:
            assert (picked.damage, picked.input_scale) == (0.0, None)
            assert source_of(linears, chosen, name).scheme in (PER_TOKEN, TWO_PARTS)
        else:
            assert picked is linears[name].options[picked.scheme]


@settings(max_examples=200, deadline=None)
@given(LINEARS, BUDGETS)
def test_two_parts_go_to_outstanding_damage_that_they_lower_the_most_per_weight_first(
    linears: dict[str, Linear], budget: Budget
) -> None:
    chosen = choose(linears, budget)
    mean = sum(plain_damage(linears, name) for name in linears) / len(linears)
    gain = {
        name: (plain_damage(linears, name) - each.options[TWO_PARTS].damage) / each.size
        for name, each in linears.items()
        if TWO_PARTS in each.options
    }
    outstanding = {n for n in gain if plain_damage(linears, n) >= OUTSTANDING * mean * (1 - 1e-9) and gain[n] > 0}
    taken = with_scheme(chosen, TWO_PARTS) | {
        name for name in with_scheme(chosen, FLOAT) if source_of(linears, chosen, name).scheme == TWO_PARTS
    }
    assert taken <= outstanding
    limit = budget.two_parts * size_of(linears, set(linears))
    assert size_of(linears, taken) <= limit + SLACK
    surely = {n for n in outstanding if plain_damage(linears, n) >= OUTSTANDING * mean * (1 + 1e-9)}
    for name in surely - taken:  # there was no room beside those that gain more
        assert size_of(linears, {n for n in taken if gain[n] >= gain[name]}) + linears[name].size > limit - SLACK


@settings(max_examples=200, deadline=None)
@given(LINEARS, BUDGETS)
def test_only_ruined_linears_stay_float_the_worst_first(linears: dict[str, Linear], budget: Budget) -> None:
    chosen = choose(linears, budget)
    kept = with_scheme(chosen, FLOAT)
    # what a linear did before: with two parts where it took them
    before = {name: source_of(linears, chosen, name).damage if name in kept else chosen[name].damage for name in linears}
    before |= {name: plain_damage(linears, name) for name in with_scheme(chosen, STATIC)}
    assert all(before[name] >= DAMAGED for name in kept)
    limit = budget.float * size_of(linears, set(linears))
    for name in {name for name in linears if before[name] >= DAMAGED} - kept:
        assert size_of(linears, {n for n in kept if before[n] >= before[name]}) + linears[name].size > limit - SLACK


@settings(max_examples=200, deadline=None)
@given(LINEARS, BUDGETS)
def test_static_scales_add_no_more_than_their_allowance_and_go_where_they_add_least(
    linears: dict[str, Linear], budget: Budget
) -> None:
    chosen = choose(linears, budget)
    no_static = {n: Linear(each.size, {s: o for s, o in each.options.items() if s != STATIC}) for n, each in linears.items()}
    without = choose(no_static, budget)
    damage = sum(option.damage for option in without.values())
    static = with_scheme(chosen, STATIC)
    assert static <= with_scheme(without, PER_TOKEN)
    assert all(chosen[name] == without[name] for name in set(linears) - static)
    added = {
        name: linears[name].options[STATIC].damage - without[name].damage
        for name in with_scheme(without, PER_TOKEN)
        if STATIC in linears[name].options
    }
    total = sum(max(added[name], 0.0) for name in static)
    assert total <= STATIC_ALLOWANCE * damage * (1 + SLACK)
    assert sum(option.damage for option in chosen.values()) <= (1 + STATIC_ALLOWANCE) * damage * (1 + SLACK)
    for name in set(added) - static:
        assert added[name] > 0
        assert total + added[name] > STATIC_ALLOWANCE * damage * (1 - SLACK)
        assert all(added[name] >= added[other] for other in static)


@settings(max_examples=100, deadline=None)
@given(PLAIN_LINEARS)
def test_linears_without_other_options_and_budget_have_a_scale_per_token(linears: dict[str, Linear]) -> None:
    chosen = choose(linears, Budget(0.0, 0.0))
    assert all(chosen[name] is linears[name].options[PER_TOKEN] for name in linears)
    assert with_scheme(choose(linears, Budget(1.0, 0.0)), PER_TOKEN) == set(linears)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(DAMAGES, SIZES), min_size=1, max_size=12), BUDGETS)
def test_static_is_all_there_is_where_nothing_else_was_asked_for(linears: dict[str, tuple[float, int]], budget: Budget) -> None:
    only = {name: Linear(size, {STATIC: option(STATIC, damage)}) for name, (damage, size) in linears.items()}
    chosen = choose(only, budget)
    for name, picked in chosen.items():
        assert picked.scheme in (STATIC, FLOAT)
        if picked.scheme == STATIC:
            assert picked is only[name].options[STATIC]
        else:
            assert only[name].options[STATIC].damage >= DAMAGED
            assert picked.input_scale is None
    assert size_of(only, with_scheme(chosen, FLOAT)) <= budget.float * size_of(only, set(only)) + SLACK


def test_nothing_measured_chooses_nothing() -> None:
    assert choose({}, Budget(1.0, 1.0)) == {}
    assert kept({}, 1.0) == set()


@settings(max_examples=100, deadline=None)
@given(PLAIN_LINEARS, st.floats(0, 1))
def test_kept_linears_are_ruined_ones_worst_first_within_the_budget(linears: dict[str, Linear], budget: float) -> None:
    damage, sizes = {name: plain_damage(linears, name) for name in linears}, {name: linears[name].size for name in linears}
    chosen = kept(damage, budget, sizes)
    left, expected = budget * sum(sizes.values()), set()
    for name in sorted(damage, key=lambda name: -damage[name]):
        if damage[name] >= DAMAGED and sizes[name] <= left:
            expected.add(name)
            left -= sizes[name]
    assert sum(sizes[name] for name in chosen) <= budget * sum(sizes.values()) + SLACK
    assert all(damage[name] >= DAMAGED for name in chosen)
    assert chosen == expected


@settings(max_examples=100, deadline=None)
@given(PLAIN_LINEARS)
def test_an_unlimited_budget_keeps_every_ruined_linear(linears: dict[str, Linear]) -> None:
    damage, sizes = {name: plain_damage(linears, name) for name in linears}, {name: linears[name].size for name in linears}
    assert kept(damage, 1.0, sizes) == {name for name in damage if damage[name] >= DAMAGED}


def test_no_budget_keeps_nothing() -> None:
    assert kept({**healthy(10), "bad": 5.0}, 0.0) == set()


def test_healthy_linears_are_quantized_whatever_the_budget() -> None:
    assert kept(healthy(10), 1.0) == set()


def test_a_linear_counts_as_ruined_from_the_threshold_on() -> None:
    assert kept({**healthy(10), "below": DAMAGED * 0.99}, 1.0) == set()
    assert kept({**healthy(10), "above": DAMAGED * 1.01}, 1.0) == {"above"}


def test_a_model_that_is_ruined_everywhere_keeps_its_worst_linears() -> None:
    damage = {f"linear{i}": 0.1 + i / 100 for i in range(10)}
    assert kept(damage, 0.2) == {"linear9", "linear8"}
    assert in_order(damage, 0.2) == ("linear9", "linear8")


def test_the_worst_come_first_while_the_budget_lasts() -> None:
    damage = {**healthy(17), "bad": 0.2, "worst": 0.9, "worse": 0.5}
    assert in_order(damage, 1.0) == ("worst", "worse", "bad")
    assert in_order(damage, 0.101) == ("worst", "worse")


def test_a_linear_too_large_for_the_budget_makes_room_for_a_smaller_one() -> None:
    damage = {**healthy(10), "huge": 0.9, "small": 0.5}
    sizes = {**dict.fromkeys(healthy(10), 8), "huge": 15, "small": 5}
    assert kept(damage, 0.1, sizes) == {"small"}


def ordinary(count: int = 9, damage: float = 1e-4) -> dict[str, Linear]:
    return {f"ordinary{i}": linear(damage, two_parts=damage / 100) for i in range(count)}


def test_two_parts_take_an_outstanding_linear_only() -> None:
    linears = {**ordinary(), "outstanding": linear(1e-3, two_parts=1e-5)}
    chosen = choose(linears, Budget(1.0, 0.0))
    assert with_scheme(chosen, TWO_PARTS) == {"outstanding"}
    assert chosen["outstanding"] is linears["outstanding"].options[TWO_PARTS]


def test_damage_stands_out_from_twice_the_mean_on() -> None:
    assert OUTSTANDING == 2.0
    # x and n of 1 each: x is twice the mean where x = 2 n / (n - 1)
    for factor, taken in ((0.98, set()), (1.02, {"x"})):
        linears = {**ordinary(9, 1.0), "x": linear(2 * 9 / 8 * factor, two_parts=0.1)}
        assert with_scheme(choose(linears, Budget(1.0, 0.0)), TWO_PARTS) == taken


def test_equal_damage_everywhere_takes_no_second_part() -> None:
    assert with_scheme(choose(ordinary(10, 0.004), Budget(1.0, 1.0)), PER_TOKEN) == set(ordinary(10))


def test_two_parts_that_do_not_help_are_not_taken() -> None:
    for other in (1e-3, 2e-3):
        assert not with_scheme(choose({**ordinary(), "x": linear(1e-3, two_parts=other)}, Budget(1.0, 0.0)), TWO_PARTS)


def test_two_parts_go_by_damage_per_weight() -> None:
    linears = {**ordinary(40), "large": linear(2e-3, 10, two_parts=0.0), "small": linear(1e-3, 2, two_parts=0.0)}
    total = 40 + 10 + 2
    for room, taken in ((1, set()), (2, {"small"}), (11, {"small"}), (12, {"small", "large"})):
        assert with_scheme(choose(linears, Budget((room + 0.5) / total, 0.0)), TWO_PARTS) == taken


def test_a_linear_that_two_parts_heal_does_not_stay_float() -> None:
    linears = {**ordinary(), "healed": linear(0.5, two_parts=1e-4), "ruined": linear(0.5, two_parts=0.1)}
    chosen = choose(linears, Budget(1.0, 1.0))
    assert with_scheme(chosen, TWO_PARTS) == {"healed"}
    assert with_scheme(chosen, FLOAT) == {"ruined"}
    assert with_scheme(choose(linears, Budget(0.0, 1.0)), FLOAT) == {"healed", "ruined"}


def test_a_float_linear_keeps_its_smoothing_without_scale_and_damage() -> None:
    smoothing = torch.tensor([0.5, 2.0])
    only = {"x": Linear(1, {STATIC: Option(STATIC, 0.5, smoothing, 0.3, 1.0)})}
    picked = choose(only, Budget(0.0, 1.0))["x"]
    assert (picked.scheme, picked.alpha, picked.input_scale, picked.damage) == (FLOAT, 0.5, None, 0.0)
    assert picked.smoothing is smoothing
    assert only["x"].options[STATIC].scheme == STATIC


def test_static_scales_are_taken_while_the_allowance_lasts() -> None:
    assert STATIC_ALLOWANCE == 0.1
    extra = {"a": -1e-4, "b": 1e-4, "c": 4e-4, "d": 4.9e-4, "e": 9e-4}
    linears = {name: linear(2e-3, static=2e-3 + added) for name, added in extra.items()}
    chosen = choose(linears, Budget(0.0, 0.0))  # the allowance is 1e-3: 1e-4 + 4e-4 + 4.9e-4, and not what a gained
    assert with_scheme(chosen, STATIC) == {"a", "b", "c", "d"}
    assert with_scheme(chosen, PER_TOKEN) == {"e"}


def test_one_harmful_static_scale_does_not_keep_the_harmless_ones_away() -> None:
    linears = {f"good{i}": linear(1e-4, static=1e-4) for i in range(5)} | {"bad": linear(1e-4, static=1.0)}
    assert with_scheme(choose(linears, DEFAULT_BUDGET), STATIC) == {f"good{i}" for i in range(5)}


def test_a_linear_with_two_parts_or_in_float_does_not_become_static() -> None:
    linears = {name: linear(1e-4, 10, static=1e-4) for name in "abcdefgh"}
    linears |= {"healed": linear(0.4, static=0.4, two_parts=1e-4), "ruined": linear(0.4, static=0.0, two_parts=0.3)}
    chosen = choose(linears, Budget(0.5, 0.5))
    assert with_scheme(chosen, TWO_PARTS) == {"healed"}
    assert with_scheme(chosen, FLOAT) == {"ruined"}
    assert with_scheme(chosen, STATIC) == set("abcdefgh")


def test_the_default_budgets_are_a_twentieth_each() -> None:
    assert Budget() == DEFAULT_BUDGET == Budget(two_parts=0.05, float=0.05)
    linears = {f"x{i}": linear(1.0, 10, two_parts=0.5) for i in range(10)} | {f"y{i}": linear(1e-4, 10) for i in range(10)}
    linears |= {f"z{i}": linear(1e-4, 10) for i in range(20)}
    chosen = choose(linears, DEFAULT_BUDGET)
    assert len(with_scheme(chosen, TWO_PARTS)) == 2
    assert len(with_scheme(chosen, FLOAT)) == 2


@pytest.mark.parametrize("budget", [Budget(0.0, 0.0), Budget(1.0, 1.0)])
def test_choosing_does_not_change_what_was_measured(budget: Budget) -> None:
    linears = {**ordinary(), "x": linear(0.5, static=0.4, two_parts=0.1)}
    before = {name: dict(each.options) for name, each in linears.items()}
    choose(linears, budget)
    assert {name: dict(each.options) for name, each in linears.items()} == before
