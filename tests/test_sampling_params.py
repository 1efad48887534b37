from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.engines.errors import UsageError
from quasar.runtime.sampling import SamplingParams

GREEDY = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logprobs": 0,
}


def refused(**fields: Any) -> str:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**fields)
    return str(caught.value)


def test_defaults_are_plain_greedy_decoding() -> None:
    params = dataclasses.asdict(SamplingParams())
    assert {name: params[name] for name in GREEDY} == GREEDY
    assert (params["stop"], params["stop_token_ids"], params["ignore_eos"]) == ((), (), False)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(GREEDY)), st.one_of(st.floats(), st.integers(-5, 5)))
def test_a_setting_that_greedy_decoding_cannot_honour_is_refused_by_name_and_value(name: str, value: float) -> None:
    if value == GREEDY[name]:
        assert getattr(SamplingParams(**{name: value}), name) == value
    else:
        assert refused(**{name: value}).startswith(f"{name} is {value}")


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_a_meaningless_temperature_is_named_as_such(value: float) -> None:
    assert refused(temperature=value) == f"temperature is {value}; it must be 0 (greedy) or more"


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None])
def test_max_new_tokens_must_be_a_positive_integer(value: Any) -> None:
    assert refused(max_new_tokens=value).startswith(f"max_new_tokens is {value!r}")


@pytest.mark.parametrize("value", ["", ("",), ("ok", ""), (5,)])
def test_an_empty_stop_string_is_refused(value: Any) -> None:
    assert refused(stop=value).startswith("stop ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "warm"), ("temperature", None), ("stop", None), ("stop", 5), ("stop_token_ids", 2)],
)
def test_a_value_of_the_wrong_type_is_a_usage_error_that_names_the_field(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(name)


def test_one_stop_string_stands_for_a_tuple_of_one() -> None:
    assert SamplingParams(stop="\n\n") == SamplingParams(stop=("\n\n",))
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)


def test_what_greedy_decoding_honours_is_kept() -> None:
    fields = {"max_new_tokens": 1, "stop": ("a", "b"), "stop_token_ids": (1, 2), "ignore_eos": True, "seed": 7}
    assert SamplingParams(**fields) == dataclasses.replace(SamplingParams(), **fields)


def test_params_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().max_new_tokens = 3  # type: ignore[misc]
