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
from quasar.runtime.scoring import Text
from quasar.runtime.serving.openai.asked import COMMON, MOST_CHOICES, Asked, sampling, several, speculation, stream_options
from quasar.runtime.serving.openai.body import Body
from quasar.runtime.serving.openai.errors import unread
from quasar.runtime.serving.openai.form import FIELDS as FORMS
from quasar.runtime.serving.openai.form import read_form
from quasar.runtime.serving.openai.reply import Reply, report, usage
from quasar.runtime.serving.openai.split import Splitter
from quasar.runtime.serving.openai.words import Words
from quasar.runtime.serving.request import Order, Part

USUAL_TOKENS = 16
MOST_LOGPROBS = 20
MOST_PROMPTS = 256
FIELDS = (*COMMON, "prompt", "max_tokens", "logprobs", "echo", "suffix", "best_of", *FORMS)


@dataclass(frozen=True)
class CompletionAsked(Asked):
    """A completion request.

    Attributes:
        echo: the text of each prompt, where it is wanted before the answer.
        logprobs: how many alternatives are wanted at each token; None for no log-probabilities.
        prompts: tokens of each prompt.
        scored: of each prompt, its tokens but the first, where echo and logprobs are wanted; else nothing.
    """

    echo: list[str]
    logprobs: int | None
    prompts: list[ReadPrompt]
    scored: list[list[Logprob]]


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
    stream, with_usage = stream_options(body)
    limit = body.integer("max_tokens", USUAL_TOKENS, 0)
    if not limit and (stream or not echo):
        body.refuse("max_tokens", "0 goes with echo: true and no stream")
    params = sampling(body, model, max_new_tokens=max(limit, 1), logprobs=logprobs, guide=read_form(body, model, ""))
    how, statistics = speculation(body, model)
    scored = _score(model, prompts, logprobs) if echo and logprobs is not None else [[] for _ in prompts]
    asked = [(prompt, one) for prompt in prompts for one in several(params, choices)] if limit else []
    orders = [Order(prompt, one, stream=stream, speculation=how) for prompt, one in asked]
    texts = [model.tokenizer.decode(prompt.ids) if echo else "" for prompt in prompts]
    return CompletionAsked(orders, choices, stream, with_usage, statistics, body.text("model"), texts, logprobs, prompts, scored)


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
        raise unread(error, "prompt") from None


def _score(model: Model, prompts: list[ReadPrompt], top: int) -> list[list[Logprob]]:
    """Of each prompt, its tokens but the first."""
    found = iter(model.score([Text(prompt.ids) for prompt in prompts if len(prompt.ids) > 1], top))
    return [next(found) if len(prompt.ids) > 1 else [] for prompt in prompts]


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
        self.replies = [Reply(Splitter()) for _ in range(len(asked.prompts) * asked.choices)]
        self._offsets = [0] * len(self.replies)
        if not asked.orders:
            for number, reply in enumerate(self.replies):
                reply.take(Part("", [], "length", {"prompt_tokens": len(self._prompt(number).ids)}))

    def take(self, number: int, part: Part) -> Iterator[dict[str, Any]]:
        """Chunks that a part of an answer makes."""
        reply = self.replies[number]
        begins = not reply.ids
        reply.take(part)
        chunk = {**self._head, "choices": [self._choice(number, begins, part.text, part.logprobs)]}
        if self._asked.statistics and reply.reason is not None:
            chunk["speculation"] = report(reply)
        yield chunk

    def end(self) -> Iterator[dict[str, Any]]:
        """What follows the last chunk."""
        if self._asked.usage:
            yield {**self._head, "choices": [], "usage": usage(self.replies, self._asked.choices)}

    def whole(self) -> dict[str, Any]:
        """Everything at once."""
        self._offsets = [0] * len(self.replies)
        choices = [self._choice(number, True, reply.content, reply.logprobs) for number, reply in enumerate(self.replies)]
        found = {**self._head, "choices": choices, "usage": usage(self.replies, self._asked.choices)}
        return {**found, "speculation": [report(reply) for reply in self.replies]} if self._asked.statistics else found

    def _prompt(self, number: int) -> ReadPrompt:
        return self._asked.prompts[number // self._asked.choices]

    def _choice(self, number: int, begins: bool, text: str, logprobs: list[Logprob]) -> dict[str, Any]:
        """An answer or a part of it; before what `begins` it, the prompt may be wanted."""
        echo = self._asked.echo[number // self._asked.choices] if begins else ""
        return {
            "index": number,
            "text": echo + text,
            "logprobs": None if self._asked.logprobs is None else self._logprobs(number, echo, logprobs),
            "finish_reason": self.replies[number].reason,
        }

    def _logprobs(self, number: int, echo: str, logprobs: list[Logprob]) -> dict[str, Any]:
        texts: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        if echo:  # nothing says how likely its first token is
            texts, values, tops = [self._words.of(self._prompt(number).ids[0])], [None], [None]
            logprobs = [*self._asked.scored[number // self._asked.choices], *logprobs]
        texts += [self._words.of(one.token) for one in logprobs]
        values += [one.logprob for one in logprobs]
        tops += [{self._words.of(token): value for token, value in one.top} for one in logprobs]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[number])
            self._offsets[number] += len(text)
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
