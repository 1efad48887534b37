"""Requests of a server: every tensor that Triton's OpenAI frontend sends, and what is refused. No server needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quasar.engines.errors import UsageError
from quasar.runtime import Guide, Model, SamplingParams, load
from quasar.runtime.chat_template import ChatTemplates
from quasar.runtime.model_options import ModelOptions, options_from_strings
from quasar.runtime.serving.limits import queue_limit_of
from quasar.runtime.serving.triton.request import TritonOrder, read_request
from quasar.runtime.serving.triton.tensors import INPUTS, OUTPUTS

QUESTION = "Tom has 3 boxes of 8 pens. How many pens are there?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
TEMPLATE = "{{ tools | tojson }} {{ enable_thinking }} {{ messages[0].content }}"


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, chain="int8") as loaded:
        yield loaded


def text(*values: str) -> np.ndarray:
    return np.array([[value.encode() for value in values]], dtype=np.object_)


CHAT = text(json.dumps(MESSAGES))


def read(model: Model, **tensors: Any) -> TritonOrder:
    return read_request(model, {"text_input": text(QUESTION), **tensors})


def test_every_sampling_tensor_arrives(model: Model) -> None:
    order = read(
        model,
        stream=np.array([[True]]),
        max_tokens=np.array([[17]], dtype=np.int32),
        temperature=np.array([[0.7]], dtype=np.float32),
        top_k=np.array([[40]], dtype=np.int32),
        top_p=np.array([[0.95]], dtype=np.float32),
        min_p=np.array([[0.05]], dtype=np.float32),
        seed=np.array([[2**64 - 1]], dtype=np.uint64),
        repetition_penalty=np.array([[1.1]], dtype=np.float32),
        frequency_penalty=np.array([[-0.5]], dtype=np.float32),
        presence_penalty=np.array([[0.3]], dtype=np.float32),
        stop_words=text("\n\n", "####"),
        ignore_eos=np.array([[True]]),
        return_num_input_tokens=np.array([[True]]),
        return_num_output_tokens=np.array([[True]]),
    )
    # the decimals that the client wrote, not the float32 next to them
    assert order.params == SamplingParams(
        max_new_tokens=17,
        temperature=0.7,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        seed=2**64 - 1,
        repetition_penalty=1.1,
        frequency_penalty=-0.5,
        presence_penalty=0.3,
        stop=("\n\n", "####"),
        ignore_eos=True,
    )
    assert (order.stream, order.count_input, order.count_output, order.echo) == (True, True, True, "")


def test_what_is_left_out_is_as_in_the_library(model: Model) -> None:
    order = read(model)
    assert order.params == SamplingParams()
    assert (order.stream, order.count_input, order.count_output, order.echo) == (False, False, False, "")


def test_prompts_of_each_kind(model: Model) -> None:
    ids = model.tokenize(QUESTION)
    assert read(model).prompt.ids == read(model).prompt.continued == ids
    chat = read_request(model, {"messages": text(json.dumps(MESSAGES))})
    assert chat.prompt.ids == model.tokenize(MESSAGES)
    assert chat.prompt.continued == []
    assert read_request(model, {"token_ids": np.array([ids])}).prompt.ids == ids
    assert read_request(model, {"token_ids": np.array(ids)}).prompt.ids == ids  # [N] for [1, N]


def test_tools_and_template_options_reach_the_template(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.tokenizer, "templates", ChatTemplates({"default": TEMPLATE}, {}))
    tensors = {"messages": CHAT, "tools": text(json.dumps(TOOLS)), "chat_template_kwargs": text('{"enable_thinking": false}')}
    order = read_request(model, tensors)
    assert model.tokenizer.decode(order.prompt.ids) == f"{json.dumps(TOOLS)} False {QUESTION}"
    assert order.prompt.continued == []


def test_the_prompt_is_put_before_the_answer_where_asked_for(model: Model) -> None:
    echo = {"exclude_input_in_output": np.array([[False]])}
    assert read(model, **echo).echo == QUESTION
    assert read(model, exclude_input_in_output=np.array([[True]])).echo == ""
    ids = model.tokenize(QUESTION)
    assert read_request(model, {"token_ids": np.array([ids]), **echo}).echo == model.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("kind", "guide", "meant"),
    [
        ("json", "", Guide.json_object()),
        ("json_schema", '{"type": "array"}', Guide.json_schema({"type": "array"})),
        ("regex", "[a-z]+", Guide.regex("[a-z]+")),
        ("ebnf_grammar", "root ::= [0-9]+", Guide.lark("root ::= [0-9]+")),
        ("lark", "start: /a/", Guide.lark("start: /a/")),
    ],
)
def test_forms_arrive_under_the_names_that_clients_know(model: Model, kind: str, guide: str, meant: Guide) -> None:
    tensors = {"guided_decoding_guide_type": text(kind), **({"guided_decoding_guide": text(guide)} if guide else {})}
    assert read(model, **tensors).params.guide == meant
    later = read(model, **tensors, guided_decoding_after=text("</think>")).params.guide
    assert later == replace(meant, after="</think>")


def test_one_empty_stop_word_is_none(model: Model) -> None:
    assert read(model, stop_words=text("")).params.stop == ()
    with pytest.raises(UsageError, match="stop_words holds an empty string"):
        read(model, stop_words=text("a", ""))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"max_tokens": np.array([[0]])}, "max_tokens is 0; give an integer of at least 1"),
        ({"temperature": np.array([[-1.0]], dtype=np.float32)}, "temperature is -1.0"),
        ({"temperature": np.array([[np.nan]], dtype=np.float32)}, "temperature is nan"),
        ({"top_p": np.array([[1.5]], dtype=np.float32)}, "top_p is 1.5"),
        ({"top_k": np.array([[-1]])}, "top_k is -1"),
        ({"presence_penalty": np.array([[3.0]], dtype=np.float32)}, "presence_penalty is 3.0"),
        ({"max_tokens": np.array([[1], [2]])}, r"max_tokens has shape \[2, 1\]"),
        ({"max_tokens": np.array([[1, 2]])}, "max_tokens has 2 values"),
        ({"text_input": np.array([[b"\xff"]], dtype=np.object_)}, "text_input is not UTF-8 at byte 0"),
        ({"text_input": text("")}, "text_input: the prompt is empty"),
        ({"messages": text("[]")}, "text_input and messages given"),
        (
            {"guided_decoding_guide_type": text("xml")},
            "guided_decoding_guide_type is 'xml'; give one of json, ",
        ),
        ({"guided_decoding_guide_type": text("regex")}, "guided_decoding_guide: regex: it is empty"),
        ({"guided_decoding_guide_type": text("json"), "guided_decoding_guide": text("{}")}, "json_object: it takes no text"),
        ({"guided_decoding_guide_type": text("regex"), "guided_decoding_guide": text("(")}, "regex: unclosed group"),
        ({"guided_decoding_guide": text("{}")}, "guided_decoding_guide given without guided_decoding_guide_type"),
        ({"guided_decoding_after": text("</think>")}, "guided_decoding_after given without guided_decoding_guide_type"),
    ],
)
def test_bad_values_are_named(model: Model, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(model, **tensors)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no prompt given; give exactly one of text_input, messages, token_ids"),
        ({"messages": text("{")}, "messages: not JSON"),
        ({"messages": text("{}")}, "messages: give a list"),
        ({"messages": text("[1]")}, "messages: messages must be a list"),
        ({"messages": text('[{"role": "user"}]' * 2)}, "messages: not JSON"),
        ({"messages": CHAT, "tools": text("{}")}, r"tools: give a list: \[{\"type\": \"function\""),
        ({"messages": CHAT, "tools": text("[")}, "tools: not JSON"),
        ({"messages": CHAT, "tools": text("[1]")}, "tools must be a list of JSON schemas"),
        ({"messages": CHAT, "chat_template_kwargs": text("[]")}, "chat_template_kwargs: give an object"),
        ({"messages": CHAT, "chat_template_kwargs": text('{"tools": []}')}, "template option 'tools': the call sets it itself"),
        ({"text_input": text("a"), "tools": text("[]")}, "tools given with text_input, .* give messages"),
        ({"token_ids": np.array([[1]]), "chat_template_kwargs": text("{}")}, "chat_template_kwargs given with token_ids"),
        ({"tools": text("[]")}, "no prompt given"),
        ({"token_ids": np.array([[]], dtype=np.int64)}, "token_ids: the prompt is empty"),
        ({"token_ids": np.array([[1, 4096]])}, "token_ids: token id 4096 is outside"),
        ({"token_ids": np.ones((1, 4096), dtype=np.int64)}, "token_ids: the prompt has 4096 tokens"),
    ],
)
def test_bad_prompts_are_named(model: Model, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_request(model, tensors)


def test_a_field_that_is_no_input_is_refused(model: Model) -> None:
    """Triton's HTTP endpoint passes them on beside the tensors; a mistyped option would have no effect."""
    with pytest.raises(UsageError, match="max_token: no input of this model"):
        read_request(model, {"text_input": text(QUESTION)}, {"max_token": 5})
    read_request(model, {"text_input": text(QUESTION)}, {"triton_enable_empty_final_response": True})


def test_names_of_the_openai_frontend_are_declared() -> None:
    sent = (
        "text_input stream max_tokens stop_words top_p frequency_penalty presence_penalty seed temperature "
        "exclude_input_in_output return_num_input_tokens return_num_output_tokens "
        "guided_decoding_guide_type guided_decoding_guide"
    )
    assert set(sent.split()) <= {spec.name for spec in INPUTS}
    assert {"text_output", "num_input_tokens", "num_output_tokens"} <= {spec.name for spec in OUTPUTS}


def test_options_survive_the_configuration() -> None:
    options = ModelOptions(
        *("plain", 3, "onnxruntime", "cpu", 2, True, (4, 16), "rejection", True, False, "off"),
        *(Path("prepacked"), "off", Path("pool")),
    )  # none is the default
    assert len(options.to_strings()) == len(fields(ModelOptions))
    assert options_from_strings(options.to_strings()) == options
    assert ModelOptions().to_strings() == {}
    assert options_from_strings({"EXECUTION_ENV_PATH": "x", "queue_limit": "3"}) == ModelOptions()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threads": "two"}, "threads is 'two'"),
        ({"sequences": "0"}, "sequences is 0"),
        ({"batch_invariant": "1"}, "batch_invariant"),
        ({"draft_length": "a"}, "a: give a number"),
    ],
)
def test_bad_parameters_of_a_configuration_are_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_from_strings(parameters)


def test_a_queue_limit_is_read_where_it_stands() -> None:
    assert queue_limit_of({"queue_limit": "0"}) == 0
    assert queue_limit_of({"sequences": "2"}) is None
    with pytest.raises(UsageError, match="parameter queue_limit is '-1'; give a number"):
        queue_limit_of({"queue_limit": "-1"})
