"""Tier 5: forms of answers and demanded calls over HTTP, asked by the clients that people have."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from edited import edit_template
from pydantic import BaseModel
from served import PATIENCE, Served

from quasar.runtime import Guide, SamplingParams, load

CHAIN = "prompt-lookup > int8"
QUESTION = "A baker has 24 rolls and sells 6 of them. How many are left?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
TOOLS: Any = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "now"}}]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}{# </think> #}"
)


class Sale(BaseModel):
    """What is asked for."""

    left_over: Literal[18, 19, 20]
    seller: Literal["baker", "shop"]


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bundle = tmp_path_factory.mktemp("tools") / "demo"
    shutil.copytree(demo_bundle, bundle)
    edit_template(bundle, TEMPLATE)
    with Served(bundle, "--chain", CHAIN) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as made:
        yield made


@pytest.mark.parametrize("how", ["off", CHAIN, "int4 > int8", 4])
def test_a_client_parses_what_a_schema_describes(client: openai.OpenAI, how: Any) -> None:
    done = client.chat.completions.parse(
        model="demo", messages=MESSAGES, response_format=Sale, max_tokens=60, extra_body={"speculation": how}
    )
    sale = done.choices[0].message.parsed
    assert sale is not None
    assert (sale.seller in ("baker", "shop"), done.choices[0].finish_reason) == (True, "stop")


def test_the_answer_is_the_library_s_under_the_same_guide(server: Served, demo_bundle: Path) -> None:
    schema = Sale.model_json_schema()
    form = {"type": "json_schema", "json_schema": {"name": "sale", "schema": schema}}
    said = server.post("/v1/chat/completions", {"messages": MESSAGES, "response_format": form, "max_tokens": 60}).json()
    with load(demo_bundle, chain="int8") as model:
        wanted = model.generate(messages=MESSAGES, params=SamplingParams(max_new_tokens=60, guide=Guide.json_schema(schema)))
    assert said["choices"][0]["message"]["content"] == wanted.text


def test_forms_of_every_kind_are_kept(server: Served) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({"response_format": {"type": "regex", "pattern": r"[0-9]{2} rolls"}}, r"[0-9]{2} rolls"),
        ({"response_format": {"type": "grammar", "grammar": 'start: "yes" | "no"'}}, "yes|no"),
        ({"structured_outputs": {"choice": ["18 (left)", "20"]}}, r"18 \(left\)|20"),
        ({"structured_outputs": {"json": {"const": {"a": 1}}}}, r'\{\s*"a"\s*:\s*1\s*\}'),
    ]
    for fields, pattern in asked:
        for path, body in (("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": "A baker"})):
            choice = server.post(f"/v1/{path}", {**body, **fields, "max_tokens": 40}).json()["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            assert re.fullmatch(pattern, text), (fields, path, text)


def test_the_responses_api_takes_a_form(client: openai.OpenAI) -> None:
    done = client.responses.parse(model="demo", input=QUESTION, text_format=Sale, max_output_tokens=60)
    assert done.output_parsed is not None


def test_a_form_waits_for_the_reasoning_to_end(server: Served) -> None:
    """The prompt has begun it, and the demo model, which knows no marker, does not end it."""
    body = {
        "messages": MESSAGES,
        "chat_template_kwargs": {"enable_thinking": True},
        "response_format": {"type": "regex", "pattern": "[0-9]{2}"},
        "max_tokens": 60,
    }
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert choice["message"]["reasoning_content"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    without = {**body, "chat_template_kwargs": {"enable_thinking": False}}
    assert re.fullmatch("[0-9]{2}", server.post("/v1/chat/completions", without).json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_demanded_call_comes(client: openai.OpenAI, choice: Any) -> None:
    done = client.chat.completions.create(model="demo", messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=80)
    assert done.choices[0].finish_reason == "tool_calls"
    [call] = done.choices[0].message.tool_calls or []
    assert call.type == "function"
    if isinstance(choice, dict) or call.function.name == "get_weather":
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Rome", "Oslo")
        assert 1 <= arguments["days"] <= 9
    with client.chat.completions.stream(
        model="demo", messages=MESSAGES, tools=TOOLS, tool_choice=choice, max_tokens=80
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [(one.function.name, one.function.arguments) for one in streamed] == [(call.function.name, call.function.arguments)]


def test_the_other_apis_demand_calls_too(server: Served, client: openai.OpenAI) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as asker:
        tool: Any = {"name": "get_weather", "input_schema": PARAMETERS}
        done = asker.messages.create(
            model="demo", max_tokens=80, messages=MESSAGES, tools=[tool], tool_choice={"type": "tool", "name": "get_weather"}
        )
    [block] = done.content
    assert block.type == "tool_use"
    assert (block.name, done.stop_reason) == ("get_weather", "tool_use")
    assert block.input["city"] in ("Rome", "Oslo")
    said = client.responses.create(
        model="demo", input=QUESTION, tools=[{"type": "function", "strict": None, **FUNCTION}], tool_choice="required"
    )
    [item] = said.output
    assert item.type == "function_call"
    assert json.loads(item.arguments)["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, "response_format"),
        ({"response_format": {"type": "regex", "pattern": "(("}}, "response_format"),
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"response_format": {"type": "grammar", "grammar": "start: nothing"}}, "response_format"),
        ({"response_format": {"type": "regex", "pattern": "a" * 200000}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs.json"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
    ],
)
def test_a_form_that_cannot_be_kept_is_named(server: Served, change: dict[str, Any], param: str) -> None:
    said = server.post("/v1/chat/completions", {"messages": MESSAGES, **change})
    error = said.json()["error"]
    assert (said.status_code, error["param"]) == (400, param)
    assert "\n" not in error["message"]


def test_an_answer_that_is_cut_says_so(server: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"schema": Sale.model_json_schema()}}
    choice = server.post("/v1/chat/completions", {"messages": MESSAGES, "response_format": form, "max_tokens": 3}).json()[
        "choices"
    ][0]
    assert choice["finish_reason"] == "length"
