from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.engines.errors import UsageError
from quasar.runtime.chain.spec import PRESETS, WEIGHTLESS, ChainSpec, parse_chain

RESERVED = {*WEIGHTLESS, *PRESETS, "plain"}
ENGINE_NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True).filter(lambda name: name not in RESERVED)
SPACES = st.text(" \t", max_size=2)


@settings(max_examples=100, deadline=None)
@given(st.data(), SPACES, SPACES)
def test_every_valid_chain_is_read_whatever_its_spaces(data: st.DataObject, left: str, right: str) -> None:
    engines = data.draw(st.lists(ENGINE_NAMES, min_size=1, max_size=5, unique=True))
    drafting = data.draw(st.integers(0, len(engines) - 1))
    weightless = data.draw(st.lists(st.sampled_from(sorted(WEIGHTLESS)), max_size=3, unique=True))
    proposers = data.draw(st.permutations([*weightless, *engines[:drafting]]))
    verifiers = engines[drafting:]
    stages = [f"{left},{right}".join(proposers), *verifiers] if proposers else verifiers
    spec = parse_chain(left + f"{right}>{left}".join(stages) + right)
    if not proposers:  # what stands first in a chain of engines proposes to the second
        proposers, verifiers = verifiers[:-1][:1], verifiers[1:] or verifiers
    assert spec == ChainSpec(tuple(proposers), tuple(verifiers))
    assert parse_chain(str(spec)) == spec
    assert sorted(spec.engines) == sorted(engines)
    assert spec.target == engines[-1]


def test_a_chain_is_written_as_it_is_documented() -> None:
    assert str(ChainSpec(("prompt-lookup",), ("int8",))) == "prompt-lookup > int8"
    assert str(ChainSpec((), ("int8",))) == "int8"
    assert str(ChainSpec(("prompt-lookup", "int4"), ("int8", "float"))) == "prompt-lookup,int4 > int8 > float"


@pytest.mark.parametrize(
    "text", ["", " ", ">", "> int8", "int8 >", "prompt-lookup >", "prompt-lookup > > int8", "a, > int8", ","]
)
def test_an_empty_stage_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a stage is empty") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["prompt-lookup", "suffix", "int8 > prompt-lookup", "prompt-lookup > suffix > int8"])
def test_a_chain_must_go_on_with_engines(text: str) -> None:
    with pytest.raises(UsageError, match="only proposes; put it first, and an engine after it") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["a,b", "prompt-lookup > a,b", "a > b > c,d"])
def test_only_proposers_may_be_a_list(text: str) -> None:
    with pytest.raises(UsageError, match="only the first stage may be a list") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["int8 > int8", "a,a > b", "prompt-lookup > prompt-lookup", "a > b > a"])
def test_a_part_stands_once_in_a_chain(text: str) -> None:
    """An engine has one cache, which two levels would take from each other."""
    with pytest.raises(UsageError, match="is in it twice") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_chain_that_it_stands_for(name: str) -> None:
    assert parse_chain(f" {name} ") == parse_chain(PRESETS[name])


@pytest.mark.parametrize(("default", "expected"), [("prompt-lookup > int8 > float", "float"), ("int8", "int8")])
def test_plain_is_the_last_engine_of_the_default_chain(default: str, expected: str) -> None:
    assert parse_chain("plain", default) == ChainSpec((), (expected,))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["int8", "float", "prompt-lookup", "", ",", " ", "x,y"]), max_size=4).map(">".join))
def test_any_text_is_a_chain_that_can_be_written_or_a_usage_error(text: str) -> None:
    try:
        spec = parse_chain(text)
    except UsageError:
        return
    assert not set(spec.verifiers) & set(WEIGHTLESS)
    assert spec.verifiers
    assert len({*spec.proposers, *spec.verifiers}) == len(spec.proposers) + len(spec.verifiers)
    assert str(spec).replace(" ", "") == text.replace(" ", "")
