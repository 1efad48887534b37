"""What chat templates are told beside the messages, in bundles that have several."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edited import add_template, edit_template

from quasar.runtime import Model, SamplingParams, load
from quasar.runtime.bench.cli import main as bench_main
from quasar.runtime.cli import main as generate_main

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


def without_template(demo_bundle: Path, folder: Path) -> Path:
    """A bundle whose template has a name that nobody reads."""
    bundle = Path(shutil.copytree(demo_bundle, folder / "bundle"))
    (bundle / "tokenizer" / "chat_template.jinja").rename(bundle / "tokenizer" / "unread.jinja")
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace("tokenizer/chat_template.jinja", "tokenizer/unread.jinja"))
    return bundle


@pytest.fixture(scope="module")
def model(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Its template writes what it is told."""
    bundle = bundle_with(demo_bundle, tmp_path_factory.mktemp("saying"), SAYING)
    add_template(bundle, "tool_use", f"with tools: {SAYING}")
    with load(bundle, chain="int8") as loaded:
        yield loaded


def prompt_of(model: Model, **chat: Any) -> str:
    return model.tokenizer.decode(model.read(**chat).ids)


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


def test_an_argument_of_another_name_is_no_option(model: Model) -> None:
    with pytest.raises(TypeError, match="tool"):
        model.generate(messages=MESSAGES, tool=TOOLS)  # type: ignore[call-overload]


def test_options_hold_for_every_turn_of_a_chat(
    demo_bundle: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = bundle_with(demo_bundle, tmp_path, REFUSING)
    lines = iter([QUESTION, QUESTION])

    def line(shown: str) -> str:
        if (found := next(lines, None)) is None:
            raise EOFError
        return found

    monkeypatch.setattr("builtins.input", line)
    assert generate_main([str(refusing), "--template-option", "thinking=1", "--template-option", "other=2"]) == 0
    assert capsys.readouterr().err.count("thinking is 1;") == 2


def test_prompts_of_the_bench_take_options(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = bundle_with(demo_bundle, tmp_path, REFUSING)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"turns": [QUESTION]}))
    command = [str(bundle), "--prompts", str(prompts), "--chains", "int8", "--repeat", "1", "--max-new-tokens", "4"]
    assert bench_main([*command, "--template-option", "thinking=false"]) == 2
    assert "thinking is false;" in capsys.readouterr().err
    edit_template(bundle, SAYING)
    assert bench_main([*command, "--json", "--no-memory", "--template-option", "thinking=false"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["template_options"] == {"thinking": False}


def test_options_of_the_bench_without_a_template_are_refused(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = without_template(demo_bundle, tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"turns": [QUESTION]}))
    assert bench_main([str(bundle), "--prompts", str(prompts), "--chains", "int8", "--template-option", "day=1"]) == 2
    assert "--template-option day: this model has no chat template; leave it out" in capsys.readouterr().err


def test_a_chat_without_a_default_template_names_those_that_are_there(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = without_template(demo_bundle, tmp_path)
    add_template(bundle, "rag", "x")
    for command in ([str(bundle)], [str(bundle), QUESTION]):
        assert generate_main(command) == 2
        assert "no default chat template, only rag" in capsys.readouterr().err
