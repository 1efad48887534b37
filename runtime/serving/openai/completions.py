"""`/v1/completions`"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.answer import Logprob
from quasar.runtime.model import Model
from quasar.runtime.prompt import ReadPrompt
from quasar.runtime.serving.openai.asked import COMMON, MOST_CHOICES, Asked, sampling, several, speculation, stream_options
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.errors import RequestError
from quasar.runtime.serving.openai.reply import Reply, report, usage
from quasar.runtime.serving.openai.split import Splitter
from quasar.runtime.serving.openai.words import Words
from quasar.runtime.serving.request import Order, Part

USUAL_TOKENS = 16
MOST_LOGPROBS = 20
MOST_PROMPTS = 256
FIELDS = (*COMMON, "prompt", "max_tokens", "logprobs", "echo", "suffix", "best_of")


@dataclass(frozen=True)
class CompletionAsked(Asked):
    """A completion request.

    Attributes:
        echo: the text of each prompt, where it is wanted before the answer.
        logprobs: how many alternatives are wanted at each token; None for no log-probabilities.
    """

    echo: list[str]
    logprobs: int | None


def read_completion(values: dict[str, Any], model: Model) -> CompletionAsked:
    """Understand a request.

    Raises:
        RequestError: it cannot be answered, with the field that is to blame.
    """
    body = Body(values)
    body.check_names(FIELDS)
    body.only("suffix", "", instead="text is not filled in here; leave it out")
    choices = body.integer("n", 1, 1, MOST_CHOICES)
    body.only("best_of", choices, instead="all answers are given; leave it out, or give as many as n")
    prompts = [_read(model, prompt, body) for prompt in _prompts(body)]
    logprobs = body.integer("logprobs", None, 0, MOST_LOGPROBS)
    echo = body.flag("echo")
    if echo and logprobs is not None:
        body.refuse("echo", "log-probabilities of the prompt are not given; leave out one of the two")
    params = sampling(body, model, max_new_tokens=body.integer("max_tokens", USUAL_TOKENS, 1), logprobs=logprobs)
    how, statistics = speculation(body, model)
    stream, with_usage = stream_options(body)
    orders = [Order(prompt, one, stream=stream, speculation=how) for prompt in prompts for one in several(params, choices)]
    texts = [model.tokenizer.decode(prompt.ids) if echo else "" for prompt in prompts]
    return CompletionAsked(orders, choices, stream, with_usage, statistics, body.text("model"), texts, logprobs)


def _prompts(body: Body) -> list[Any]:
    """Text, a list of texts, ids, or a list of lists of ids."""
    value = body.get("prompt")
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(one) is int for one in value)):
        return [value]
    if not isinstance(value, list) or not value:
        body.refuse("prompt", "give text, token ids, or a list of either")
    if len(value) > MOST_PROMPTS:
        body.refuse("prompt", f"has {len(value)} prompts; give {MOST_PROMPTS} at the most")
    return value


def _read(model: Model, prompt: Any, body: Body) -> ReadPrompt:
    if not isinstance(prompt, (str, list)):
        body.refuse("prompt", "give text, token ids, or a list of either")
    try:
        return model.read(prompt)
    except UsageError as error:
        code = "context_length_exceeded" if "a context of" in str(error) else None
        raise RequestError(f"prompt: {error}", param="prompt", code=code) from None


class CompletionAnswer:
    """Writes the answer of a completion request, whole or as chunks."""

    def __init__(self, asked: CompletionAsked, words: Words, name: str) -> None:
        self._asked = asked
        self._words = words
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model or name,
        }
        self.replies = [Reply(Splitter()) for _ in asked.orders]
        self._offsets = [len(self._echo(number)) for number in range(len(self.replies))]

    def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """Chunks that a part of an answer makes."""
        reply = self.replies[number]
        echo = "" if reply.ids else self._echo(number)
        reply.take(part)
        chunk = self._chunk(number, echo + part.text, part.logprobs, reply.reason)
        if self._asked.statistics and reply.reason is not None:
            chunk["speculation"] = report(reply)
        yield chunk

    def end(self) -> Iterator[dict[str, Any]]:
        """What follows the last chunk."""
        if self._asked.usage:
            yield {**self._head, "choices": [], "usage": usage(self.replies, self._asked.choices)}

    def whole(self) -> dict[str, Any]:
        """Everything at once."""
        choices = [
            self._choice(number, self._echo(number) + reply.content, reply.logprobs, reply.reason)
            for number, reply in enumerate(self.replies)
        ]
        found = {**self._head, "choices": choices, "usage": usage(self.replies, self._asked.choices)}
        return {**found, "speculation": [report(reply) for reply in self.replies]} if self._asked.statistics else found

    def _echo(self, number: int) -> str:
        return self._asked.echo[number // self._asked.choices]

    def _chunk(self, number: int, text: str, logprobs: list[Logprob], reason: str | None) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(number, text, logprobs, reason)]}

    def _choice(self, number: int, text: str, logprobs: list[Logprob], reason: str | None) -> dict[str, Any]:
        found = self._logprobs(number, logprobs)
        return {"index": number, "text": text, "logprobs": found, "finish_reason": reason}

    def _logprobs(self, number: int, logprobs: list[Logprob]) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        texts, offsets = [self._words.of(one.token) for one in logprobs], []
        for text in texts:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{self._words.of(token): value for token, value in one.top} for one in logprobs],
            "text_offset": offsets,
        }
