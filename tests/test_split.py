"""Tier 0: reasoning, calls and text told apart, however the text is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quasar.runtime.serving.openai.split import Splitter
from quasar.runtime.serving.openai.tools import read_calls

NAMES = ("get_weather", "add")
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
Parts = list[tuple[str, str]]
CASES: list[tuple[dict[str, Any], str, Parts]] = [
    ({}, "A <think> b </think> c", [("content", "A <think> b </think> c")]),
    ({"thinks": True}, "<think>\nhm\n</think>\n\nYes.", [("reasoning", "hm\n"), ("content", "Yes.")]),
    ({"thinks": True, "thinking": True}, "hm</think>Yes.", [("reasoning", "hm"), ("content", "Yes.")]),
    ({"thinks": True, "thinking": True}, "never ends", [("reasoning", "never ends")]),
    ({"thinks": True}, "Yes. <think> is a tag", [("content", "Yes. <think> is a tag")]),
    ({"thinks": True}, "<think></think>Yes", [("content", "Yes")]),
    ({"functions": NAMES}, HERMES, [("call", 'get_weather({"city": "Rome"})')]),
    ({"functions": NAMES}, f"Let me see.\n{HERMES}\n{HERMES}", [
        ("content", "Let me see.\n"), ("call", 'get_weather({"city": "Rome"})'), ("call", 'get_weather({"city": "Rome"})'),
    ]),
    ({"functions": NAMES, "thinks": True}, f"<think>{HERMES}</think>{HERMES}", [
        ("reasoning", HERMES), ("call", 'get_weather({"city": "Rome"})'),
    ]),
    ({}, HERMES, [("content", HERMES)]),
    ({"functions": NAMES}, '{"name": "add", "parameters": {"a": 1}}', [("call", 'add({"a": 1})')]),
    ({"functions": NAMES}, ' [{"name": "add", "arguments": {"a": 1}}]', [("call", 'add({"a": 1})')]),
    ({"functions": NAMES}, 'add{"a": 1}', [("call", 'add({"a": 1})')]),
    ({"functions": NAMES}, "add two and two", [("content", "add two and two")]),
    ({"functions": NAMES}, '{"a": 1}', [("content", '{"a": 1}')]),
    ({"functions": NAMES}, "<tool_call>\nnonsense\n</tool_call>", [("content", "<tool_call>\nnonsense\n</tool_call>")]),
    ({"functions": NAMES}, "<tool_call>\n{", [("content", "<tool_call>\n{")]),
    ({"functions": NAMES}, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', [
        ("content", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    ]),
]  # fmt: skip


def split(options: dict[str, Any], pieces: list[str]) -> Parts:
    """Parts, neighbours of one kind joined."""
    splitter, found = Splitter(**options), list[tuple[str, str]]()
    for number, piece in enumerate(pieces, start=1):
        for delta in splitter.push(piece, last=number == len(pieces)):
            if delta.call is not None:
                found.append(("call", f"{delta.call.name}({delta.call.arguments})"))
            elif found and found[-1][0] == delta.kind:
                found[-1] = (delta.kind, found[-1][1] + delta.text)
            else:
                found.append((delta.kind, delta.text))
    return found


@pytest.mark.parametrize(("options", "text", "parts"), CASES)
def test_texts_are_split(options: dict[str, Any], text: str, parts: Parts) -> None:
    assert split(options, [text]) == parts
    assert split(options, [text, ""]) == parts


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 120), max_size=12))
def test_it_does_not_matter_where_a_text_is_cut(case: tuple[dict[str, Any], str, Parts], cuts: list[int]) -> None:
    options, text, parts = case
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert split(options, [text[a:b] for a, b in pairwise(places)]) == parts


def test_text_is_shown_as_soon_as_it_is_clear() -> None:
    splitter = Splitter(thinks=True, functions=NAMES)
    assert [delta.text for delta in splitter.push("Hello")] == ["Hello"]
    assert [delta.text for delta in splitter.push(" you <to")] == [" you "]
    assert [delta.text for delta in splitter.push("day>")] == ["<today>"]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', [("add", {"a": 1})]),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', [("add", {"a": 1})]),
        ('{"name": "add"}', [("add", {})]),
        ('{"name": "add", "arguments": {}}; {"name": "get_weather", "arguments": {}}', [("add", {}), ("get_weather", {})]),
        ("<function=add>\n<parameter=a>\n1\n</parameter>\n</function>", [("add", {"a": "1"})]),
        ('[{"name": "add", "arguments": {"a": [1, 2]}}]', [("add", {"a": [1, 2]})]),
        ('{"name": "add", "arguments": {"a": 1}} and then', []),
        ('{"name": 3}', []),
        ('{"name": "add", "arguments": {"a": ', []),
        ("[" * 5000, []),
        ("add{]", []),
        ("", []),
    ],
)
def test_calls_are_read(text: str, calls: list[tuple[str, Any]]) -> None:
    assert [(call.name, json.loads(call.arguments)) for call in read_calls(text, NAMES)] == calls


def test_calls_have_ids_of_their_own() -> None:
    first, second = read_calls('[{"name": "add"}, {"name": "add"}]', NAMES)
    assert first.id != second.id
