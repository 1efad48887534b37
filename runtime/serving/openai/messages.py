"""`/v1/messages`, the API of Anthropic"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

from quasar.runtime.model import Model
from quasar.runtime.serving.openai.asked import sampling, speculation
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.conversation import Conversation, Talk, text_of
from quasar.runtime.serving.openai.form import demanded_call
from quasar.runtime.serving.openai.reply import Reply, report
from quasar.runtime.serving.openai.split import Delta
from quasar.runtime.serving.openai.tools import Call
from quasar.runtime.serving.openai.words import Words
from quasar.runtime.serving.request import Order, Part

FIELDS = (
    "model", "messages", "system", "max_tokens", "stop_sequences", "stream", "temperature", "top_k", "top_p", "tools",
    "tool_choice", "thinking", "metadata", "speculation", "seed", "chat_template_kwargs",
)  # fmt: skip
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def read_request(values: dict[str, Any], model: Model) -> Talk:
    """Understand a request.

    Raises:
        RequestError: it cannot be answered, with the field that is to blame.
    """
    body = Body(values)
    body.check_names(FIELDS)
    if not body.has("max_tokens"):
        body.refuse("max_tokens", "give the most tokens of the answer")
    tools = _tools(body)
    conversation = Conversation.of(model, _messages(body), tools, _options(body), "messages")
    stops = body.texts("stop_sequences", 16)
    limit = body.integer("max_tokens", None, 1)
    form = demanded_call(_choice(body), tools, model, conversation.after)
    params = sampling(body, model, max_new_tokens=limit, stop=stops or None, guide=form)
    how, statistics = speculation(body, model)
    stream = body.flag("stream")
    order = Order(conversation.prompt, params, stream=stream, speculation=how)
    return Talk([order], 1, stream, True, statistics, body.text("model"), conversation)


def _options(body: Body) -> dict[str, Any] | None:
    """Variables of the template; `thinking` says whether the model shall reason first."""
    given, thinking = body.mapping("chat_template_kwargs"), body.mapping("thinking")
    if thinking is None:
        return given
    return {"enable_thinking": thinking.get("type") != "disabled", **(given or {})}


def _tools(body: Body) -> list[dict[str, Any]]:
    """Functions, as chat templates want them."""
    found = []
    for i, tool in enumerate(body.objects("tools")):
        one = Body(tool, f"tools[{i}].")
        name = one.text("name")
        if not name:
            one.refuse("name", "give one")
        function = {"name": name, "description": one.text("description"), "parameters": one.mapping("input_schema") or {}}
        found.append({"type": "function", "function": function})
    return [] if (body.mapping("tool_choice") or {}).get("type") == "none" else found


def _choice(body: Body) -> Body:
    """`tool_choice`, as OpenAI writes it."""
    choice = body.mapping("tool_choice") or {}
    kinds: dict[Any, Any] = {"any": "required", "tool": {"name": choice.get("name")}}
    return Body({"tool_choice": kinds.get(choice.get("type"), choice.get("type"))})


def _messages(body: Body) -> list[dict[str, Any]]:
    found = [{"role": "system", "content": text_of(body, "system")}] if body.has("system") else []
    messages = body.objects("messages")
    if not messages:
        body.refuse("messages", 'give at least one, {"role": "user", "content": "..."}')
    for i, message in enumerate(messages):
        found += _message(Body(message, f"messages[{i}]."))
    return found


def _message(message: Body) -> list[dict[str, Any]]:
    """Messages of the template's kind: results of tools are messages of their own there."""
    role = message.choice("role", ("user", "assistant", "system"), "")
    if not role:
        message.refuse("role", "give user or assistant")
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(message.objects("content")):
        part = Body(block, f"messages.content[{i}].")
        kind = part.text("type")
        if kind == "text":
            texts.append(part.text("text"))
        elif kind == "tool_use":
            function = {"name": part.text("name"), "arguments": part.mapping("input") or {}}
            calls.append({"id": part.text("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            result = text_of(part, "content") if part.has("content") else ""
            found.append({"role": "tool", "tool_call_id": part.text("tool_use_id"), "content": result})
        elif kind not in ("thinking", "redacted_thinking"):
            part.refuse("type", f"is {kind!r}; this model reads text")
    if texts or calls:
        found.append({"role": role, "content": "".join(texts), **({"tool_calls": calls} if calls else {})})
    return found


class MessagesAnswer:
    """Writes a message, whole or as events."""

    def __init__(self, asked: Talk, words: Words, name: str) -> None:
        self._asked = asked
        self._id = f"msg_{uuid.uuid4().hex}"
        self._model = asked.model or name
        self._reply = Reply(asked.conversation.splitter())
        self.replies = [self._reply]
        self._block = -1
        self._kind: str | None = None

    def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """Events that a part of the answer makes."""
        if not self._reply.ids:
            yield {"type": "message_start", "message": self._message([], None, 0)}
        for delta in self._reply.take(part):
            yield from self._write(delta)
        if self._reply.reason is not None:
            yield from self._close()

    def end(self) -> Iterator[dict[str, Any]]:
        """The last events."""
        delta = {"stop_reason": REASONS[self._reply.finish_reason], "stop_sequence": None}
        last = {"type": "message_delta", "delta": delta, "usage": self._usage()}
        yield {**last, "speculation": report(self._reply)} if self._asked.statistics else last
        yield {"type": "message_stop"}

    def whole(self) -> dict[str, Any]:
        """Everything at once."""
        reply = self._reply
        blocks: list[dict[str, Any]] = []
        if reply.reasoning:
            blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
        if reply.content or not reply.calls:
            blocks.append({"type": "text", "text": reply.content})
        blocks += [_use(call) for call in reply.calls]
        found = self._message(blocks, REASONS[reply.finish_reason], len(reply.ids))
        return {**found, "speculation": report(reply)} if self._asked.statistics else found

    def _message(self, content: list[dict[str, Any]], reason: str | None, tokens: int) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, int]:
        cached = self._reply.statistics.get("cached_tokens", 0)
        prompt = len(self._asked.conversation.prompt.ids)
        return {"input_tokens": prompt - cached, "output_tokens": len(self._reply.ids), "cache_read_input_tokens": cached}

    def _write(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if delta.kind != self._kind or delta.call is not None:
            yield from self._close()
            yield from self._open(delta)
        if delta.call is not None:
            change: dict[str, Any] = {"type": "input_json_delta", "partial_json": delta.call.arguments}
        elif delta.kind == "reasoning":
            change = {"type": "thinking_delta", "thinking": delta.text}
        else:
            change = {"type": "text_delta", "text": delta.text}
        yield {"type": "content_block_delta", "index": self._block, "delta": change}

    def _open(self, delta: Delta) -> Iterator[dict[str, Any]]:
        self._block, self._kind = self._block + 1, delta.kind
        if delta.call is not None:
            block: dict[str, Any] = {**_use(delta.call), "input": {}}
        elif delta.kind == "reasoning":
            block = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            block = {"type": "text", "text": ""}
        yield {"type": "content_block_start", "index": self._block, "content_block": block}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._kind is not None:
            yield {"type": "content_block_stop", "index": self._block}
        self._kind = None


def _use(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
