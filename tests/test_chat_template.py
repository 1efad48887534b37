"""Chat templates give what transformers gives, for every means that templates have."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import FILES
from transformers import PreTrainedTokenizerFast

from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.chat import Chat
from quasar.runtime.chat_template import ChatTemplates, read_templates

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
LOADED = PreTrainedTokenizerFast(tokenizer_object=FILES["byte-level"], **TOKENS)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is in <Köln> & 東京",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]},
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}],
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wie ist's in <Köln> & 東京?\n  "},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Ask for it."},
    {"role": "tool", "content": '{"degrees": 5}', "name": None},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
]
OPTIONS = {"enable_thinking": False, "documents": [{"title": "T", "text": "x"}]}
GIVEN: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES},
    "no tools": {"messages": MESSAGES, "tools": []},
    "all": {"messages": MESSAGES, "tools": [TOOL], "options": OPTIONS},
}


def rendered(
    template: str,
    messages: Sequence[Mapping[str, Any]] = MESSAGES,
    tools: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
) -> str:
    return ChatTemplates({"default": template}, TOKENS).render(Chat(messages, tools, options), generation_prompt)


def of_transformers(
    template: str,
    messages: Sequence[Mapping[str, Any]] = MESSAGES,
    tools: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
) -> str:
    return str(
        LOADED.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            **(options or {}),
        )
    )


def each(body: str) -> str:
    """A template that writes `body` for every message `m`."""
    return "{% for m in messages %}" + body + "{% endfor %}"


ALIKE = {
    "loop": each("\n  {%- if m.content is string %}{{ m.role }}: {{ m.content | trim }}{% endif %}\n"),
    "trimmed blocks": each("\n    {% if loop.first %}\n{{ bos_token }}\n    {% endif %}\n"),
    "loop controls": each("{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }}{% break %}"),
    "generation": each("{% generation %}{{ m.role }}{% if loop.last %}.{% endif %}{% endgeneration %};"),
    "generation, trimmed": "a\n{%- generation -%}\n  b {{ eos_token }}\n{%- endgeneration -%}\nc",
    "generation prompt": "{{ add_generation_prompt }}",
    "tojson": "{{ tools | tojson }} {{ messages[1].content | tojson }}",
    "tojson, indented": "{{ tools | tojson(indent=4) }}",
    "tojson, sorted": "{{ messages | tojson(sort_keys=true) }}",
    "tojson, separators": "{{ messages | tojson(separators=(',', ':')) }}",
    "tojson, ascii": "{{ messages | tojson(ensure_ascii=true) }} {{ messages | tojson(ensure_ascii=False) }}",
    "tojson, all": "{{ tools | tojson(True, 2, (', ', ': '), true) }}",
    "null keys": each("{{ 'content' in m }}{{ m.content is defined }}{{ m | length }} {{ m.name }};"),
    "nulls inside": "{{ tools[0].function.parameters.properties.city | tojson if tools }}",
    "tools and documents": "{{ tools is none }} {{ tools is defined }} {{ documents is none }} {{ documents is defined }}",
    "documents": "{% if documents %}{% for d in documents %}{{ d.title }}{{ d['text'] }}{% endfor %}{% endif %}",
    "options": "{{ enable_thinking is defined and enable_thinking is false }} {{ date_string is defined }}",
    "reasoning": each("{{ m.reasoning_content }}{{ m.thinking }}{{ m.reasoning }}"),
    "namespace": "{% set ns = namespace(n=0, self='x') %}" + each("{% set ns.n = ns.n + 1 %}") + "{{ ns.n }}{{ ns.self }}",
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['a', 'b'], 2) | tojson }}",
    "macro": "{% macro turn(m, end='') %}[{{ m.role }}]{{ end }}{% endmacro %}{{ turn(messages[0], end=eos_token) }}",
    "methods": "{{ messages[1].content.split('?')[0].strip().upper() }}{{ messages[2].items() | list | length }}",
    "mappings": "{{ messages[0] is mapping }}{{ messages[0].content is string }}{{ messages[4].content is iterable }}",
    "slices": "{% for m in messages[1:] %}{{ loop.index0 }}{{ loop.last }}{% endfor %}{{ messages[::-1][0].role }}",
    "end of file": "text\n",
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ALIKE)
def test_a_template_gives_what_transformers_gives(name: str, given: str) -> None:
    for prompt in (True, False):
        expected = of_transformers(ALIKE[name], **GIVEN[given], generation_prompt=prompt)
        assert rendered(ALIKE[name], **GIVEN[given], generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_read_under_the_names_that_transformers_reads(name: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", name: "because"}]
    assert rendered(ALIKE["reasoning"], messages) == of_transformers(ALIKE["reasoning"], messages)


def test_null_contents_are_dropped_and_nulls_of_arguments_are_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {"city": None}}}]}
    assert rendered("{{ messages[0] | tojson }}", [call]) == json.dumps({key: call[key] for key in ("role", "tool_calls")})


def test_the_time_is_that_of_now() -> None:
    before = datetime.datetime.now().strftime("%Y-%m-%d")
    text = rendered("{{ strftime_now('%Y-%m-%d') }}")
    assert text in (before, datetime.datetime.now().strftime("%Y-%m-%d"))


# ------------------------------------------------------------------------------------------------ options


def test_options_are_json_values_and_may_stand_over_special_tokens() -> None:
    assert rendered("{{ a }} {{ b | tojson }} {{ bos_token }}", options={"a": 1.5, "b": [None, "x"], "bos_token": "!"}) == (
        '1.5 [null, "x"] !'
    )


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_an_option_that_the_call_sets_itself_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"template option '{name}': the call sets it itself; leave it out"):
        Chat(MESSAGES, options={name: []})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": []}, "messages must be a list"),
        ({"messages": ["hi"]}, "messages must be a list"),
        ({"messages": MESSAGES, "tools": {"type": "function"}}, "tools must be a list of JSON schemas"),
        ({"messages": MESSAGES, "tools": [print]}, "tools must be a list of JSON schemas"),
        ({"messages": MESSAGES, "options": ["enable_thinking"]}, "template options must be names with values"),
        ({"messages": MESSAGES, "options": {1: 2}}, "template options must be names with values"),
    ],
)
def test_what_is_no_chat_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Chat(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": [{"role": "user", "content": b"x"}]}, r"messages\[0\]\['content'\] is bytes; give JSON values"),
        ({"messages": [{"role": "user", 5: "x"}]}, r"messages\[0\] has the key 5; give text"),
        ({"tools": [{"f": print}]}, r"tools\[0\]\['f'\] is builtin_function_or_method"),
        ({"options": {"when": datetime.date.today()}}, "template option 'when' is date"),
    ],
)
def test_values_that_are_no_json_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rendered("", **arguments)


def test_values_without_an_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="nested too deeply"):
        rendered("", options={"a": endless})


# ---------------------------------------------------------------------------------------- which template


def test_the_template_for_tools_is_used_where_there_are_tools() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "with {{ tools | length }}", "rag": "r"}, {})
    assert templates.names == ["default", "rag", "tool_use"]
    assert templates.render(Chat(MESSAGES), True) == "plain"
    assert templates.render(Chat(MESSAGES, [TOOL]), True) == "with 1"
    assert ChatTemplates({"default": "plain"}, {}).render(Chat(MESSAGES, [TOOL]), True) == "plain"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, r"this model has no chat template; give plain text \(--raw\)"),
        ({"rag": "", "tool_use": ""}, "this model has no default chat template, only rag, tool_use; give plain text"),
    ],
)
def test_without_a_default_template_chats_are_refused(sources: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ChatTemplates(sources, {}).render(Chat(MESSAGES), True)


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({}, {}, {}),
        ({}, {"chat_template": "old"}, {"default": "old"}),
        ({}, {"chat_template": None}, {}),
        (
            {},
            {"chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]},
            {"default": "a", "rag": "b"},
        ),
        ({}, {"chat_template": [{"name": "default", "template": 5}, "x", {"template": "c"}]}, {}),
        ({"chat_template.jinja": "é"}, {"chat_template": "old"}, {"default": "é"}),
        ({"chat_template.jinja": "a", "additional_chat_templates/rag.jinja": "b"}, {}, {"default": "a", "rag": "b"}),
        ({"additional_chat_templates/tool_use.jinja": "b", "additional_chat_templates/x.txt": ""}, {}, {"tool_use": "b"}),
    ],
)
def test_templates_lie_in_files_or_as_older_bundles_have_them(
    tmp_path: Path, files: dict[str, str], config: dict[str, Any], expected: dict[str, str]
) -> None:
    write(tmp_path, files)
    assert read_templates(tmp_path, config) == expected


def test_a_template_that_is_no_text_is_a_bundle_error_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match=r"chat_template\.jinja: cannot be read"):
        read_templates(tmp_path, {})


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("template", ["{% if %}", "{% generation %}", "{{ a", "{% endgeneration %}", "{{ x | nofilter }}"])
def test_a_template_that_is_no_jinja_is_a_bundle_error(template: str) -> None:
    with pytest.raises(BundleError, match=r"chat template default: .*; correct the template"):
        rendered(template)


def test_a_broken_template_does_no_harm_to_another() -> None:
    templates = ChatTemplates({"default": "fine", "tool_use": "{% if %}"}, {})
    assert templates.render(Chat(MESSAGES), True) == "fine"
    with pytest.raises(BundleError, match="chat template tool_use"):
        templates.render(Chat(MESSAGES, [TOOL]), True)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.nothing.more }}", "nothing"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|__class__"),
        ("{{ dict.__init__.__globals__ }}", "unsafe|__init__"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__"),
        ("{{ namespace(_x=1) }}", "_x"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% include 'other' %}", "."),
    ],
)
def test_a_template_that_refuses_or_fails_is_a_usage_error_with_its_reason(template: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"chat template: .*(?:{reason}).*; check the messages"):
        rendered(template)
