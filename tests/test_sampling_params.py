from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
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
    "logprobs": None,
    "seed": None,
}


def refused(**fields: Any) -> str:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**fields)
    return str(caught.value)


def test_defaults_are_plain_greedy_decoding() -> None:
    params = dataclasses.asdict(SamplingParams())
    assert {name: params[name] for name in GREEDY} == GREEDY
    assert (params["stop"], params["stop_token_ids"], params["ignore_eos"]) == ((), (), False)


ALLOWED: dict[str, tuple[float, float, bool]] = {  # lowest, highest, whether only integers
    "temperature": (0, sys.float_info.max, False),
    "top_k": (0, float("inf"), True),
    "top_p": (5e-324, 1, False),
    "min_p": (0, 1, False),
    "repetition_penalty": (5e-324, sys.float_info.max, False),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "seed": (0, (1 << 64) - 1, True),
    "logprobs": (0, 50, True),
}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(ALLOWED)), st.one_of(st.floats(), st.integers(), st.integers(-5, 5), st.sampled_from([1, 2, 50, 51]))
)
@example("top_p", 0)
@example("top_p", 0.0)
@example("top_p", 1.0000001)
@example("min_p", -5e-324)
@example("repetition_penalty", 0.0)
@example("presence_penalty", 2.0000001)
@example("frequency_penalty", -2.0000001)
@example("seed", 1 << 64)
@example("logprobs", 51)
@example("top_k", 5.0)
def test_a_value_is_kept_as_it_is_or_refused_by_name_and_value(name: str, value: float) -> None:
    low, high, only_integers = ALLOWED[name]
    if low <= value <= high and not (only_integers and isinstance(value, float)):
        assert getattr(SamplingParams(**{name: value}), name) == value
    else:
        assert refused(**{name: value}).startswith(f"{name} is {value!r}; ")


@pytest.mark.parametrize("name", sorted(ALLOWED))
@pytest.mark.parametrize("value", [True, "1", [1], float("nan")])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{name} is {value!r}; ")


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
    [("temperature", "warm"), ("temperature", None), ("stop", 5), ("stop_token_ids", 2), ("stop_token_ids", (True,))],
)
def test_a_value_of_the_wrong_type_is_a_usage_error_that_names_the_field(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(name)


def test_one_stop_string_stands_for_a_tuple_of_one() -> None:
    assert SamplingParams(stop="\n\n") == SamplingParams(stop=("\n\n",))
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)


def test_none_stands_for_no_stop() -> None:
    assert SamplingParams(stop=None, stop_token_ids=None) == SamplingParams()  # type: ignore[arg-type]


def test_lists_and_arrays_of_stop_tokens_are_kept_as_a_tuple() -> None:
    for ids in ([3, 4], np.array([3, 4]), torch.tensor([3, 4]), (np.int32(3), torch.tensor(4))):
        params = SamplingParams(stop_token_ids=ids)  # type: ignore[arg-type]
        assert params.stop_token_ids == (3, 4)
        assert all(type(token) is int for token in params.stop_token_ids)
    assert SamplingParams(stop=["a"]).stop == ("a",)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_new_tokens", "seed", "top_k", "logprobs"])
@pytest.mark.parametrize("number", [np.int32(7), np.uint64(7), np.array(7), torch.tensor(7), torch.tensor(7, dtype=torch.uint8)])
def test_integers_of_numpy_and_torch_become_plain_ones(name: str, number: Any) -> None:
    value = getattr(SamplingParams(**{name: number}), name)
    assert (value, type(value)) == (7, int)


def test_other_numbers_of_numpy_and_torch_become_plain_ones() -> None:
    params = SamplingParams(temperature=np.float32(0.5), top_p=torch.tensor(0.5), ignore_eos=np.bool_(True))  # type: ignore[arg-type]
    assert params == SamplingParams(temperature=0.5, top_p=0.5, ignore_eos=True)
    json.dumps(dataclasses.asdict(params))


@pytest.mark.parametrize(
    "value", [np.float64(7), torch.tensor(7.0), np.bool_(True), torch.tensor(True), np.array([7]), torch.tensor([7])]
)
def test_what_is_no_integer_stays_refused(value: Any) -> None:
    for name in ("max_new_tokens", "seed", "top_k", "logprobs"):
        assert refused(**{name: value}).startswith(f"{name} is ")
    if value.shape == ():
        assert refused(stop_token_ids=(value,)).startswith("stop_token_ids is ")


def test_what_is_asked_for_is_kept() -> None:
    fields = {"max_new_tokens": 1, "stop": ("a", "b"), "stop_token_ids": (1, 2), "ignore_eos": True, "seed": 7}
    assert SamplingParams(**fields) == dataclasses.replace(SamplingParams(), **fields)


def test_params_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().max_new_tokens = 3  # type: ignore[misc]
