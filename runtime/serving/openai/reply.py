"""An answer as far as it has come, and what is said of it in every API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quasar.runtime.answer import Logprob
from quasar.runtime.serving.openai.split import Delta, Splitter
from quasar.runtime.serving.openai.tools import Call
from quasar.runtime.serving.request import Part


class Reply:
    """Takes an answer's parts.

    Args:
        splitter: tells reasoning and calls from text.

    Attributes:
        content, reasoning: texts.
        calls: of functions.
        tokens: how many were generated.
        logprobs: of them, where they were asked for.
        reason: why it ended; None where it goes on.
        statistics: once it has ended.
    """

    def __init__(self, splitter: Splitter) -> None:
        self._splitter = splitter
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self.calls: list[Call] = []
        self.ids: list[int] = []
        self.logprobs: list[Logprob] = []
        self.reason: str | None = None
        self.statistics: dict[str, Any] = {}

    @property
    def content(self) -> str:
        """The answer itself."""
        return "".join(self._texts["content"])

    @property
    def reasoning(self) -> str:
        """What the model thought before."""
        return "".join(self._texts["reasoning"])

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words."""
        return "tool_calls" if self.calls and self.reason == "stop" else str(self.reason)

    def take(self, part: Part) -> list[Delta]:
        """What a part adds."""
        self.ids.extend(part.ids)
        self.logprobs.extend(part.logprobs)
        self.reason = part.finish_reason
        self.statistics = part.statistics or {}
        deltas = self._splitter.push(part.text, last=self.reason is not None)
        for delta in deltas:
            if delta.call is not None:
                self.calls.append(delta.call)
            else:
                self._texts[delta.kind].append(delta.text)
        return deltas


def usage(replies: Sequence[Reply], choices: int) -> dict[str, Any]:
    """Tokens of prompts and answers; a prompt counts once, however many answers it has."""
    asked = [reply.statistics for reply in replies]
    prompt = sum(one.get("prompt_tokens", 0) for one in asked[::choices])
    answer = sum(len(reply.ids) for reply in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(one.get("cached_tokens", 0) for one in asked[::choices])},
    }


def report(reply: Reply) -> dict[str, Any]:
    """What speculation did for an answer, where that was asked for."""
    names = (
        "rounds", "proposed", "accepted", "acceptance_rate", "tokens_per_round", "tokens_per_second", "queued_seconds",
        "prefill_seconds", "decode_seconds", "engine_seconds", "levels",
    )  # fmt: skip
    drafted = reply.statistics.get("drafted_by", {})
    by_origin = {"": len(reply.ids) - sum(drafted.values()), **drafted}
    return {"tokens_by_origin": by_origin, **{name: reply.statistics.get(name) for name in names}}
