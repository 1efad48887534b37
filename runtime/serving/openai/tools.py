"""Calls of functions, as models write them into their answers."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

XML_CALL = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
XML_ARGUMENT = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?(?:</parameter>|\Z)", re.DOTALL)
NAMED = re.compile(r"\s*([\w.-]+)\s*(\{.*)", re.DOTALL)
ARGUMENTS = ("arguments", "parameters", "args")
"""Names under which models write a call's arguments: of Hermes and Qwen, of Llama 3, of others."""


@dataclass(frozen=True)
class Call:
    """A call of a function.

    Attributes:
        arguments: JSON text, as OpenAI gives it.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


def read_calls(text: str, names: Collection[str]) -> list[Call]:
    """The calls that a text is, without the markers around it; empty where it is none.

    Read are `{"name": ..., "arguments": {...}}` (Hermes, Qwen, and with `parameters` Llama 3), lists of these (Mistral),
    `name{...}` (newer Mistral), and `<function=name><parameter=x>...` (Qwen3-Coder).

    Args:
        names: of the functions that there are: a text that calls another one is text.
    """
    if found := XML_CALL.findall(text):
        calls = [Call(name, _to_json(dict(XML_ARGUMENT.findall(inner)))) for name, inner in found]
    elif (named := NAMED.fullmatch(text)) and named[1] in names:
        arguments = _json_values(named[2])
        calls = [Call(named[1], _to_json(arguments[0]))] if len(arguments) == 1 else []
    else:
        calls = [call for value in _json_values(text) for call in _calls_of(value)]
    return calls if all(call.name in names for call in calls) else []


def _calls_of(value: Any) -> list[Call]:
    if isinstance(value, list):
        return [call for one in value for call in _calls_of(one)]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return []
    arguments: Any = next((value[name] for name in ARGUMENTS if name in value), {})
    return [Call(value["name"], arguments if isinstance(arguments, str) else _to_json(arguments))]


def _json_values(text: str) -> list[Any]:
    """JSON values that follow each other with spaces, commas or semicolons between them; none where there is anything else."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found.append(value)
        while at < len(text) and text[at] in " \t\r\n;,":
            at += 1
    return found


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
