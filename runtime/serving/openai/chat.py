"""`/v1/chat/completions`"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quasar.runtime.answer import Logprob
from quasar.runtime.model import Model
from quasar.runtime.serving.openai.asked import COMMON, MOST_CHOICES, sampling, several, speculation, stream_options
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.conversation import Conversation, Talk, read_messages, read_tools
from quasar.runtime.serving.openai.form import FIELDS as FORMS
from quasar.runtime.serving.openai.form import demanded_call, read_form
from quasar.runtime.serving.openai.reply import Reply, report, usage
from quasar.runtime.serving.openai.split import Delta
from quasar.runtime.serving.openai.words import Words
from quasar.runtime.serving.request import Order, Part

MOST_LOGPROBS = 20
FIELDS = (
    *COMMON, "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
    "chat_template_kwargs", "parallel_tool_calls", *FORMS,
)  # fmt: skip


@dataclass(frozen=True)
class ChatAsked(Talk):
    """A chat request.

    Attributes:
        logprobs: whether they are wanted.
    """

    logprobs: bool


def read_chat(values: dict[str, Any], model: Model) -> ChatAsked:
    """Understand a request.

    Raises:
        RequestError: it cannot be answered, with the field that is to blame.
    """
    body = Body(values)
    body.check_names(FIELDS)
    body.only("modalities", ["text"], instead="this model writes text; leave it out")
    body.only("functions", [], instead="it was replaced by tools; give those")
    tools = read_tools(body)
    conversation = Conversation.of(
        model, read_messages(body, "messages"), tools, body.mapping("chat_template_kwargs"), "messages"
    )
    form = demanded_call(body, tools, model, conversation.after) or read_form(body, model, conversation.after)
    logprobs = body.flag("logprobs")
    top = body.integer("top_logprobs", 0, 0, MOST_LOGPROBS)
    if top and not logprobs:
        body.refuse("top_logprobs", "it goes with logprobs: true")
    limit = body.integer("max_completion_tokens", body.integer("max_tokens", model.max_length, 1), 1)
    params = sampling(body, model, max_new_tokens=limit, logprobs=top if logprobs else None, guide=form)
    choices = body.integer("n", 1, 1, MOST_CHOICES)
    how, statistics = speculation(body, model)
    stream, with_usage = stream_options(body)
    orders = [Order(conversation.prompt, one, stream=stream, speculation=how) for one in several(params, choices)]
    return ChatAsked(orders, choices, stream, with_usage, statistics, body.text("model"), conversation, logprobs)


class ChatAnswer:
    """Writes the answer of a chat request, whole or as chunks."""

    def __init__(self, asked: ChatAsked, words: Words, name: str) -> None:
        self._asked = asked
        self._words = words
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model or name}
        self.replies = [Reply(asked.conversation.splitter()) for _ in asked.orders]

    def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """Chunks that a part of an answer makes."""
        reply = self.replies[number]
        first = not reply.ids
        deltas = [_delta(reply, delta) for delta in reply.take(part)]
        if first:
            deltas.insert(0, {"role": "assistant", "content": ""})
        elif not deltas and part.ids:  # its text is held back, and what goes with the tokens is not
            deltas.append({})
        for place, delta in enumerate(deltas, start=1):
            last = place == len(deltas)
            chunk = self._chunk(number, delta, self._logprobs(part.logprobs) if last else None)
            yield {**chunk, "speculation": self._words.drafted(part)} if last and self._asked.statistics else chunk
        if reply.reason is not None:
            chunk = self._chunk(number, {}, reason=reply.finish_reason)
            yield {**chunk, "speculation": report(reply)} if self._asked.statistics else chunk

    def end(self) -> Iterator[dict[str, Any]]:
        """What follows the last chunk."""
        if self._asked.usage:
            yield {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": usage(self.replies, self._asked.choices),
            }

    def whole(self) -> dict[str, Any]:
        """Everything at once."""
        found = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(number, reply) for number, reply in enumerate(self.replies)],
            "usage": usage(self.replies, self._asked.choices),
        }
        return {**found, "speculation": [report(reply) for reply in self.replies]} if self._asked.statistics else found

    def _choice(self, number: int, reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["tool_calls"] = [_call(call) for call in reply.calls]
        logprobs = self._logprobs(reply.logprobs)
        return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason}

    def _chunk(self, number: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, logprobs: Sequence[Logprob]) -> dict[str, Any] | None:
        if not self._asked.logprobs:
            return None
        return {"content": [self._words.logprob(one) for one in logprobs], "refusal": None}


def _call(call: Any) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _delta(reply: Reply, delta: Delta) -> dict[str, Any]:
    if delta.call is not None:
        return {"tool_calls": [{"index": reply.calls.index(delta.call), **_call(delta.call)}]}
    return {"reasoning_content" if delta.kind == "reasoning" else "content": delta.text}
