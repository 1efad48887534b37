"""What chat templates are told beside the messages: by the API, the commands and a server's requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edited import add_template, edit_template

from quasar.engines.errors import UsageError
from quasar.runtime import Model, SamplingParams, load
from quasar.runtime.bench.cli import main as bench_main
from quasar.runtime.cli import main as generate_main
from quasar.runtime.serving.request import read_request

QUESTION = "How many legs have 3 cats?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]
SAYING = "<|im_start|>{{ thinking | tojson }} {{ tools | tojson }} {{ messages[-1].content }}"
REFUSING = "{{ raise_exception('thinking is ' ~ thinking | tojson) }}"

Capture = pytest.CaptureFixture[str]


def bundle_with(demo_bundle: Path, folder: Path, template: str) -> Path:
    bundle = Path(shutil.copytree(demo_bundle, folder / "bundle"))
    edit_template(bundle, template)
    return bundle


@pytest.fixture(scope="module")
def model(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its template writes what it is told."""
    bundle = bundle_with(demo_bundle, tmp_path_factory.mktemp("saying"), SAYING)
    add_template(bundle, "tool_use", f"with tools: {SAYING}")
    with load(bundle, chain="int8") as loaded:
        yield loaded


@pytest.fixture
def refusing(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose template says what it is told in an error."""
    return bundle_with(demo_bundle, tmp_path, REFUSING)


def prompt_of(model: Model, **chat: Any) -> str:
    return model.tokenizer.decode(model.read(**chat).ids)


def text(value: str) -> np.ndarray:
    return np.array([[value.encode()]], dtype=np.object_)


def test_options_and_tools_reach_the_template(model: Model) -> None:
    told = prompt_of(model, messages=MESSAGES, chat_template_kwargs={"thinking": {"budget": [1, None]}})
    assert told == f'{{"budget": [1, null]}} null {QUESTION}'
    told = prompt_of(model, messages=MESSAGES, tools=TOOLS, chat_template_kwargs={"thinking": False})
    assert told == f"with tools: false {json.dumps(TOOLS)} {QUESTION}"
    assert prompt_of(model, prompt=MESSAGES, tools=TOOLS, chat_template_kwargs={"thinking": 1}).startswith("with tools: 1 [")


def test_generate_and_stream_pass_them_on(model: Model) -> None:
    params = SamplingParams(max_new_tokens=4)
    chat: dict[str, Any] = {"tools": TOOLS, "chat_template_kwargs": {"thinking": True}}
    read = model.read(messages=MESSAGES, **chat)
    expected = model.answer(read, params).finish()
    assert expected.statistics.prompt_tokens == len(read.ids)
    for result in (
        model.generate(messages=MESSAGES, params=params, **chat),
        model.stream(messages=MESSAGES, params=params, **chat).finish(),
        *model.generate([MESSAGES, MESSAGES], params, **chat),
    ):
        assert (result.ids, result.statistics.prompt_tokens) == (expected.ids, len(read.ids))


@pytest.mark.parametrize("prompt", [QUESTION, [1, 2, 3], [QUESTION, [1, 2]]])
@pytest.mark.parametrize("chat", [{"tools": TOOLS}, {"chat_template_kwargs": {"thinking": True}}])
def test_prompts_that_are_no_messages_take_neither(model: Model, prompt: Any, chat: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="tools and chat_template_kwargs go through the chat template; give messages"):
        model.generate(prompt, **chat)


def test_an_argument_of_another_name_is_no_option(model: Model) -> None:
    with pytest.raises(TypeError, match="tool"):
        model.generate(messages=MESSAGES, tool=TOOLS)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("option", "told"),
    [("thinking=false", "false"), ('thinking={"a": [1]}', '{"a": [1]}'), ("thinking=off", '"off"'), ("thinking=a=b", '"a=b"')],
)
def test_an_option_of_the_command_is_json_or_text(refusing: Path, capsys: Capture, option: str, told: str) -> None:
    assert generate_main([str(refusing), QUESTION, "--template-option", option]) == 2
    assert capsys.readouterr().err.startswith(f"quasar-generate: chat template: thinking is {told};")


def test_options_hold_for_every_turn_of_a_chat(refusing: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter([QUESTION, QUESTION])

    def line(shown: str) -> str:
        if (found := next(lines, None)) is None:
            raise EOFError
        return found

    monkeypatch.setattr("builtins.input", line)
    assert generate_main([str(refusing), "--template-option", "thinking=1", "--template-option", "other=2"]) == 0
    assert capsys.readouterr().err.count("thinking is 1;") == 2


def test_prompts_of_the_bench_take_options(refusing: Path, tmp_path: Path, capsys: Capture) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"turns": [QUESTION]}))
    command = [str(refusing), "--prompts", str(prompts), "--chains", "int8", "--repeat", "1", "--max-new-tokens", "4"]
    assert bench_main([*command, "--template-option", "thinking=false"]) == 2
    assert "thinking is false;" in capsys.readouterr().err
    edit_template(refusing, SAYING)
    assert bench_main([*command, "--json", "--no-memory", "--template-option", "thinking=false"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["template_options"] == {"thinking": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hi", "--template-option", "thinking"], "--template-option thinking: give NAME=VALUE"),
        (["hi", "--template-option", "=1"], "--template-option =1: give NAME=VALUE"),
        (["hi", "--template-option", "messages=[]"], "template option 'messages': the call sets it itself"),
        (["hi", "--raw", "--template-option", "a=1"], "--template-option goes with the chat template"),
        (["--token-ids", "x", "--template-option", "a=1"], "--template-option goes with the chat template"),
    ],
)
def test_options_without_effect_are_refused(demo_bundle: Path, capsys: Capture, options: list[str], message: str) -> None:
    assert generate_main([str(demo_bundle), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_chat_without_a_default_template_names_those_that_are_there(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    (bundle / "tokenizer" / "chat_template.jinja").rename(bundle / "tokenizer" / "unread.jinja")
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace("tokenizer/chat_template.jinja", "tokenizer/unread.jinja"))
    add_template(bundle, "rag", "x")
    for command in ([str(bundle)], [str(bundle), QUESTION]):
        assert generate_main(command) == 2
        assert "no default chat template, only rag" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- requests


def test_a_request_carries_options_and_tools_as_json(model: Model) -> None:
    tensors = {"messages": text(json.dumps(MESSAGES)), "tools": text(json.dumps(TOOLS))}
    order = read_request(model, {**tensors, "chat_template_kwargs": text('{"thinking": false}')})
    assert order.prompt == model.read(messages=MESSAGES, tools=TOOLS, chat_template_kwargs={"thinking": False})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"tools": text("{}")}, "tools: give a list: "),
        ({"tools": text("[1]")}, "messages: tools must be a list of JSON schemas"),
        ({"tools": text("[")}, "tools: not JSON"),
        ({"chat_template_kwargs": text("[]")}, "chat_template_kwargs: give an object: "),
        ({"chat_template_kwargs": text('{"tools": []}')}, "messages: template option 'tools': the call sets it itself"),
    ],
)
def test_options_of_a_request_that_are_none_are_named(model: Model, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_request(model, {"messages": text(json.dumps(MESSAGES)), **tensors})


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
def test_options_of_a_request_go_with_messages(model: Model, name: str) -> None:
    value = "[]" if name == "tools" else "{}"
    with pytest.raises(UsageError, match=f"{name} given with text_input, which no chat template is applied to; give messages"):
        read_request(model, {"text_input": text(QUESTION), name: text(value)})


# ---------------------------------------------------------------------------------------------- special tokens


def test_a_stop_string_that_is_a_special_token_stops_by_its_id(model: Model) -> None:
    end = model.tokenizer.special_id("<|im_end|>")
    params = SamplingParams(max_new_tokens=120, ignore_eos=True)
    prompt = model.tokenizer.encode(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    endless = model.generate(prompt, params)
    assert end in endless.ids
    assert endless.finish_reason == "length"
    done = model.generate(prompt, SamplingParams(max_new_tokens=120, ignore_eos=True, stop=("<|im_end|>",)))
    assert done.ids == endless.ids[: endless.ids.index(end) + 1]
    assert done.finish_reason == "stop"
    assert done.text == model.tokenizer.decode(done.ids)
