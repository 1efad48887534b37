"""Messages and tools of a request, and the prompt that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.model import Model
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.serving.openai.asked import Asked
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.errors import RequestError, unread
from quasar.runtime.serving.openai.split import THINK, THOUGHT, Splitter

LOOK_BACK = 8
"""Tokens at the end of a prompt among which a template opens the reasoning itself."""
TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Conversation:
    """A conversation, ready to be answered.

    Attributes:
        functions: names of those that may be called.
        thinks: whether the model writes its reasoning first.
        thinking: whether the prompt has begun it.
    """

    prompt: ReadPrompt
    functions: tuple[str, ...]
    thinks: bool
    thinking: bool

    @classmethod
    def of(
        cls,
        model: Model,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None,
        param: str,
    ) -> Conversation:
        """Put messages through the chat template.

        Args:
            param: the field to blame where they do not fit.

        Raises:
            RequestError: they do not fit the context or the template.
        """
        try:
            prompt = model.read(messages=messages, tools=tools or None, chat_template_kwargs=options)
            if tools and prompt.ids == model.read(messages=messages, chat_template_kwargs=options).ids:
                raise RequestError("tools: the chat template of this model takes none; leave them out", param="tools")
        except UsageError as error:
            raise unread(error, param) from None
        tokenizer = model.tokenizer
        thinks = tokenizer.token_id(THOUGHT) is not None or tokenizer.templates.mentions(THOUGHT)
        end = tokenizer.decode(prompt.ids[-LOOK_BACK:]).rstrip()
        names = tuple(tool["function"]["name"] for tool in tools)
        return cls(prompt, names, thinks, thinks and end.endswith(THINK))

    @property
    def after(self) -> str:
        """Text that comes before a form that is asked for: the end of reasoning that the prompt has begun."""
        return THOUGHT if self.thinking else ""

    def splitter(self) -> Splitter:
        """For one answer."""
        return Splitter(self.thinks, self.thinking, self.functions)


@dataclass(frozen=True)
class Talk(Asked):
    """A request for the next message of a conversation, see `Asked`."""

    conversation: Conversation


def read_messages(body: Body, name: str) -> list[dict[str, Any]]:
    """Messages whose contents are text.

    Raises:
        RequestError: there is none, or one is of another kind.
    """
    messages = body.objects(name)
    if not messages:
        body.refuse(name, 'give at least one, {"role": "user", "content": "..."}')
    return [_message(Body(message, f"{name}[{i}].")) for i, message in enumerate(messages)]


def _message(message: Body) -> dict[str, Any]:
    role = message.text("role")
    if not role:
        message.refuse("role", "give one: system, user, assistant or tool")
    found = {**message.values, "role": "system" if role == "developer" else role}
    content = message.get("content")
    if content is not None:
        found["content"] = text_of(message, "content")
    elif not message.has("tool_calls"):
        message.refuse("content", "give text")
    if "tool_calls" in found:
        found["tool_calls"] = [_parsed(Body(call, "tool_calls.")) for call in message.objects("tool_calls")]
    return found


def _parsed(call: Body) -> dict[str, Any]:
    """A call whose arguments are an object, as templates want them: clients send them as JSON text."""
    function = dict(call.mapping("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            call.refuse("function.arguments", "it is not JSON")
    return {**call.values, "function": function}


def text_of(body: Body, name: str) -> str:
    """Text, or the texts of a list of parts.

    Raises:
        RequestError: a part is something else.
    """
    value = body.get(name)
    if isinstance(value, str):
        return value
    texts = []
    for i, part in enumerate(body.objects(name)):
        kind = part.get("type")
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            body.refuse(f"{name}[{i}]", f"is of type {kind!r}; this model reads text")
        texts.append(part["text"])
    return "".join(texts)


def read_tools(body: Body) -> list[dict[str, Any]]:
    """The functions that may be called; none where `tool_choice` says so.

    Raises:
        RequestError: one has no name.
    """
    tools = body.objects("tools")
    for i, tool in enumerate(tools):
        function = tool.get("function")
        if (
            tool.get("type", "function") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            body.refuse(f"tools[{i}]", 'give {"type": "function", "function": {"name": ..., "parameters": {...}}}')
    return [] if body.get("tool_choice") == "none" else tools
