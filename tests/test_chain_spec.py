from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.engines.errors import UsageError
from quasar.runtime.chain import ChainSpec, parse_chain

ENGINE_NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,10}", fullmatch=True).filter(lambda name: name != "prompt-lookup")
SPACES = st.text(" \t", max_size=2)


@settings(max_examples=100, deadline=None)
@given(ENGINE_NAMES, st.booleans(), SPACES, SPACES)
def test_every_valid_chain_is_read_whatever_its_spaces(engine: str, lookup: bool, left: str, right: str) -> None:
    text = f"{left}prompt-lookup{right}>{left}{engine}{right}" if lookup else f"{left}{engine}{right}"
    spec = parse_chain(text)
    assert spec == ChainSpec("prompt-lookup" if lookup else None, engine)
    assert parse_chain(str(spec)) == spec


def test_a_chain_is_written_as_it_is_documented() -> None:
    assert str(ChainSpec("prompt-lookup", "int8")) == "prompt-lookup > int8"
    assert str(ChainSpec(None, "int8")) == "int8"


@pytest.mark.parametrize("text", ["", " ", ">", "> int8", "int8 >", "prompt-lookup >", "prompt-lookup > > int8"])
def test_an_empty_stage_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="a stage is empty") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["prompt-lookup", "int8 > prompt-lookup", "prompt-lookup > prompt-lookup"])
def test_a_chain_must_end_with_an_engine(text: str) -> None:
    with pytest.raises(UsageError, match="prompt-lookup only proposes; end the chain with an engine") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["int4 > int8", "prompt-lookup > int8 > float", "prompt-lookup,int4 > int8", "suffix > int8", "a,b"]
)
def test_a_chain_that_this_release_does_not_run_is_refused_with_what_it_does(text: str) -> None:
    with pytest.raises(UsageError, match=r"runs ENGINE and PROPOSER > ENGINE, with the proposers prompt-lookup") as caught:
        parse_chain(text)
    assert repr(text) in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["int8", "float", "prompt-lookup", "", ",", " ", "x,y"]), max_size=4).map(">".join))
def test_any_text_is_a_chain_that_can_be_written_or_a_usage_error(text: str) -> None:
    try:
        spec = parse_chain(text)
    except UsageError:
        return
    assert spec.proposer in (None, "prompt-lookup")
    assert spec.verifier in ("int8", "float")
    assert str(spec).replace(" ", "") == text.replace(" ", "")
