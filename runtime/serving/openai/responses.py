"""`/v1/responses`, without a memory: nothing is stored, so every request brings the whole conversation"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from quasar.runtime.model import Model
from quasar.runtime.serving.openai.asked import sampling, speculation
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.conversation import Conversation, Talk, read_messages, text_of
from quasar.runtime.serving.openai.form import demanded_call, read_form
from quasar.runtime.serving.openai.reply import Reply, report, usage
from quasar.runtime.serving.openai.split import Delta
from quasar.runtime.serving.openai.tools import Call
from quasar.runtime.serving.openai.words import Words
from quasar.runtime.serving.request import Order, Part

FIELDS = (
    "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "stream", "tools", "tool_choice", "text",
    "store", "previous_response_id", "reasoning", "include", "metadata", "parallel_tool_calls", "truncation", "user",
    "speculation", "chat_template_kwargs", "background", "conversation",
)  # fmt: skip


def read_request(values: dict[str, Any], model: Model) -> Talk:
    """Understand a request.

    Raises:
        RequestError: it cannot be answered, with the field that is to blame.
    """
    body = Body(values)
    body.check_names(FIELDS)
    for name in ("previous_response_id", "conversation"):
        body.only(name, instead="nothing is stored here; send the whole conversation as input")
    body.only("background", False, instead="answers are not kept; leave it out")
    tools = _tools(body)
    conversation = Conversation.of(model, _messages(body), tools, body.mapping("chat_template_kwargs"), "input")
    limit = body.integer("max_output_tokens", model.max_length, 1)
    text = Body(body.mapping("text") or {}, "text.")
    form = demanded_call(body, tools, model, conversation.after) or read_form(text, model, conversation.after, "format")
    params = sampling(body, model, max_new_tokens=limit, guide=form)
    how, statistics = speculation(body, model)
    stream = body.flag("stream")
    order = Order(conversation.prompt, params, stream=stream, speculation=how)
    return Talk([order], 1, stream, True, statistics, body.text("model"), conversation)


def _messages(body: Body) -> list[dict[str, Any]]:
    found = [{"role": "system", "content": body.text("instructions")}] if body.has("instructions") else []
    if isinstance(body.get("input"), str):
        return [*found, {"role": "user", "content": body.text("input")}]
    for i, item in enumerate(body.objects("input")):
        found += _item(Body(item, f"input[{i}]."))
    return read_messages(Body({"input": found}), "input")


def _item(item: Body) -> list[dict[str, Any]]:
    kind = item.text("type", "message")
    if kind == "message":
        return [{"role": item.text("role"), "content": text_of(item, "content")}]
    if kind == "function_call":
        function = {"name": item.text("name"), "arguments": item.text("arguments", "{}")}
        return [{"role": "assistant", "tool_calls": [{"id": item.text("call_id"), "type": "function", "function": function}]}]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": item.text("call_id"), "content": text_of(item, "output")}]
    if kind != "reasoning":
        item.refuse("type", f"is {kind!r}; this model reads text and calls of functions")
    return []


def _tools(body: Body) -> list[dict[str, Any]]:
    """Functions, as chat templates want them."""
    found = []
    for i, tool in enumerate(body.objects("tools")):
        one = Body(tool, f"tools[{i}].")
        one.only("type", "function", instead="only functions may be called here")
        if not one.text("name"):
            one.refuse("name", "give one")
        names = ("name", "description", "parameters")
        found.append({"type": "function", "function": {name: tool[name] for name in names if one.has(name)}})
    return [] if body.get("tool_choice") == "none" else found


class ResponsesAnswer:
    """Writes a response, whole or as events."""

    def __init__(self, asked: Talk, words: Words, name: str) -> None:
        self._asked = asked
        self._reply = Reply(asked.conversation.splitter())
        self.replies = [self._reply]
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model or name,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "store": False,
        }
        self._items: list[dict[str, Any]] = []
        self._kind: str | None = None
        self._number = 0

    def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """Events that a part of the answer makes."""
        if not self._reply.ids:
            for kind in ("response.created", "response.in_progress"):
                yield self._event(kind, response=self._response("in_progress"))
        for delta in self._reply.take(part):
            if delta.kind != self._kind or delta.call is not None:
                yield from self._close()
                yield from self._open(delta)
            yield from self._add(delta)
        if self._reply.reason is not None:
            yield from self._close()

    def end(self) -> Iterator[dict[str, Any]]:
        """The last event."""
        status = self._status()
        yield self._event(f"response.{status}", response=self._response(status))

    def whole(self) -> dict[str, Any]:
        """Everything at once."""
        return self._response(self._status())

    def _status(self) -> str:
        return "incomplete" if self._reply.reason == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        counted = usage(self.replies, 1)
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        found = {**self._head, "status": status, "error": None, "incomplete_details": incomplete, "output": list(self._items)}
        if status != "in_progress":
            found["usage"] = {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": counted["prompt_tokens_details"],
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            }
            if self._asked.statistics:
                found["speculation"] = report(self._reply)
        return found

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return event

    def _open(self, delta: Delta) -> Iterator[dict[str, Any]]:
        self._kind = delta.kind
        item = _call(delta.call) if delta.call is not None else _item_of(delta.kind, "")
        empty = {**item, "status": "in_progress", **({"content": []} if delta.kind == "content" else {})}
        self._items.append(item)
        at = len(self._items) - 1
        yield self._event("response.output_item.added", output_index=at, item=empty)
        if delta.kind == "content":
            yield self._event("response.content_part.added", **self._place(), part=_text(""))

    def _add(self, delta: Delta) -> Iterator[dict[str, Any]]:
        item = self._items[-1]
        if delta.call is not None:
            place = {"item_id": item["id"], "output_index": len(self._items) - 1}
            yield self._event("response.function_call_arguments.delta", **place, delta=delta.call.arguments)
            yield self._event("response.function_call_arguments.done", **place, arguments=delta.call.arguments)
        elif delta.kind == "content":
            item["content"][0]["text"] += delta.text
            yield self._event("response.output_text.delta", **self._place(), delta=delta.text, logprobs=[])
        else:
            item["content"][0]["text"] += delta.text
            yield self._event("response.reasoning_text.delta", **self._place(), delta=delta.text)

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._kind is None:
            return
        item = self._items[-1]
        if self._kind == "content":
            text = item["content"][0]["text"]
            yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
            yield self._event("response.content_part.done", **self._place(), part=_text(text))
        elif self._kind == "reasoning":
            yield self._event("response.reasoning_text.done", **self._place(), text=item["content"][0]["text"])
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)
        self._kind = None

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _item_of(kind: str, text: str) -> dict[str, Any]:
    if kind == "reasoning":
        content = [{"type": "reasoning_text", "text": text}]
        return {"id": f"rs_{uuid.uuid4().hex}", "type": "reasoning", "summary": [], "content": content}
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [_text(text)],
    }


def _call(call: Call) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }
