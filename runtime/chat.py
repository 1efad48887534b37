"""A conversation, and what its template is told beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from quasar.engines.errors import UsageError

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`"""
Tool = Mapping[str, Any]
"""A function's JSON schema: `{"type": "function", "function": {"name": ..., "parameters": ...}}`"""

OWN = ("messages", "tools", "add_generation_prompt")
"""Variables of a template that are no options: they come from the call itself."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send the reasoning of an answer; templates read the first two."""


class ChatOptions(TypedDict, total=False):
    """Arguments that go with messages.

    Attributes:
        tools: functions that the model may call, each a JSON schema.
        chat_template_kwargs: further variables of the chat template, such as `enable_thinking` or `documents`.
    """

    tools: Sequence[Tool] | None
    chat_template_kwargs: Mapping[str, Any] | None


@dataclass(frozen=True)
class Chat:
    """Messages for a chat template.

    Attributes:
        messages: at least one.
        tools: functions that the model may call; None where none were given, which templates tell from an empty list.
        options: further variables of the template, such as `enable_thinking` or `documents`.

    Raises:
        UsageError: messages, tools or options are of another kind, or an option has a name that is the call's own.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not is_messages(self.messages):
            raise UsageError('messages must be a list of {"role": ..., "content": ...}')
        if self.tools is not None and not _is_list_of_objects(self.tools):
            raise UsageError('tools must be a list of JSON schemas: [{"type": "function", "function": {...}}]')
        check_options(self.options or {})

    @property
    def wants_answer(self) -> bool:
        """Whether the last message is one to answer."""
        return self.messages[-1].get("role") != "assistant"

    def variables(self) -> dict[str, Any]:
        """What the template sees: plain JSON values and nothing else, since a template is a stranger's program.

        Keys of a message whose value is null are left out, as transformers does: clients send `"content": null` beside
        `tool_calls`, and templates would write `None`. Nulls further inside are values, as arguments of a call may be.

        Raises:
            UsageError: a value is no JSON.
        """
        try:
            messages = [_named(_plain(message, f"messages[{i}]")) for i, message in enumerate(self.messages)]
            tools = None if self.tools is None else _plain(self.tools, "tools")
            options = {name: _plain(value, f"template option {name!r}") for name, value in (self.options or {}).items()}
        except RecursionError:
            raise UsageError("messages, tools or template options are nested too deeply; flatten them") from None
        return {"documents": None, **options, "messages": messages, "tools": tools}


def check_options(options: Any) -> None:
    """Refuse what cannot be further variables of a template.

    Raises:
        UsageError: it is not names with values, or a name is the call's own.
    """
    if not isinstance(options, Mapping) or any(not isinstance(name, str) for name in options):
        raise UsageError('template options must be names with values: {"enable_thinking": false}')
    for name in OWN:
        if name in options:
            raise UsageError(f"template option {name!r}: the call sets it itself; leave it out")


def is_messages(value: Any) -> bool:
    """Whether this is a list of messages."""
    return bool(_is_list_of_objects(value) and value)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(part, Mapping) for part in value)


def _named(message: dict[str, Any]) -> dict[str, Any]:
    """A message without null keys, its reasoning under the names that templates read."""
    known = {key: value for key, value in message.items() if value is not None}
    reasoning = next((known[name] for name in REASONING if name in known), None)
    return known if reasoning is None else {"thinking": reasoning, **known, "reasoning_content": reasoning}


def _plain(value: Any, where: str) -> Any:
    """The value made of JSON's own types, without methods of subclasses that a template could call."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise UsageError(f"{where} is {type(value).__name__}; give JSON values: text, numbers, lists, objects")


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise UsageError(f"{where} has the key {key!r}; give text")
    return str.__str__(key)
