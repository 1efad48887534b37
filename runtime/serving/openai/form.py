"""The form that an answer shall have: as OpenAI asks for it, as vLLM does, and for a call that is demanded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.guided.guide import Guide
from quasar.runtime.model import Model
from quasar.runtime.serving.openai.body import Body

FORMAT, STRUCTURED = "response_format", "structured_outputs"
FIELDS = (FORMAT, STRUCTURED)


def read_form(body: Body, model: Model, after: str, format_field: str = FORMAT) -> Guide | None:
    """The guide of a request; None where any text will do.

    Args:
        after: text that comes before the form, see `Guide`.
        format_field: where OpenAI's description stands.

    Raises:
        RequestError: it is none, or cannot be followed.
    """
    if body.has(format_field) and body.has(STRUCTURED):
        body.refuse(STRUCTURED, f"give either this or {format_field}")
    name = STRUCTURED if body.has(STRUCTURED) else format_field
    asked = Body(body.mapping(name) or {}, f"{name}.")
    try:
        guide = _structured(asked, after) if name == STRUCTURED else _format(asked, after)
        model.prepare_guide(guide)
    except UsageError as error:
        body.refuse(name, str(error))
    return guide


def _format(asked: Body, after: str) -> Guide | None:
    """OpenAI's description of a form."""
    kind = asked.choice("type", ("text", "json_object", "json_schema", "regex", "grammar"), "text")
    if kind == "json_object":
        return Guide.json_object(after)
    if kind == "json_schema":
        named = asked.mapping("json_schema") or asked.values  # the responses API has the schema right here
        schema = named.get("schema")
        if not isinstance(schema, dict):
            asked.refuse("json_schema", 'give {"name": ..., "schema": {...}}')
        return Guide.json_schema(schema, after)
    if kind == "regex":
        return Guide.regex(asked.text("pattern"), after)
    return Guide.lark(asked.text("grammar"), after) if kind == "grammar" else None


def _structured(asked: Body, after: str) -> Guide | None:
    """vLLM's description of a form."""
    kinds = [name for name in ("json", "regex", "grammar", "choice") if asked.has(name)]
    if len(kinds) != 1:
        asked.refuse("json", "give one of json, regex, grammar and choice")
    if kinds == ["json"]:
        schema = asked.get("json")
        return Guide.json_schema(schema if isinstance(schema, str) else asked.mapping("json") or {}, after)
    if kinds == ["regex"]:
        return Guide.regex(asked.text("regex"), after)
    if kinds == ["grammar"]:
        return Guide.lark(asked.text("grammar"), after)
    return Guide.regex("|".join(map(re.escape, asked.texts("choice", 100))), after)


def demanded_call(body: Body, tools: Sequence[dict[str, Any]], model: Model, after: str) -> Guide | None:
    """The guide that makes the answer a call, where `tool_choice` demands one: of a function, or of any.

    Raises:
        RequestError: there is no such function, or the schema of its parameters cannot be followed.
    """
    choice = body.get("tool_choice")
    if choice in (None, "auto", "none"):
        return None
    named = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else None
    if choice != "required" and not isinstance(named, str):
        body.refuse("tool_choice", 'give auto, none, required, or {"type": "function", "function": {"name": ...}}')
    functions = [tool["function"] for tool in tools if named in (None, tool["function"]["name"])]
    if not functions:
        body.refuse("tool_choice", f"there is no function {json.dumps(named)} among tools" if named else "give tools with it")
    try:
        guide = Guide.json_schema({"anyOf": [_call_schema(function) for function in functions]}, after)
        model.prepare_guide(guide)
    except UsageError as error:
        body.refuse("tool_choice", str(error))
    return guide


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    """Of a call, as `read_calls` reads it."""
    parameters = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
