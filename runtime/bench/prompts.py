"""Benchmark prompts: the rows of MT-bench and Spec-Bench."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError
from quasar.engines.jsonl import json_rows, read_text
from quasar.runtime.chat import Chat
from quasar.runtime.model import Model

ADVICE = 'give rows {"question_id": 1, "category": "...", "turns": ["..."]}'


@dataclass(frozen=True)
class Prompts:
    """Questions of one or several turns each.

    Attributes:
        name: of the file.
        sha256: hex digest of the turns.
        turns: of each question.
        template_options: variables of the chat template.
    """

    name: str
    turns: tuple[tuple[str, ...], ...]
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hex digest of the turns."""
        return hashlib.sha256(repr(self.turns).encode()).hexdigest()

    @property
    def count(self) -> int:
        """Turns of all questions: so many answers are generated."""
        return sum(map(len, self.turns))

    def tokens(self, model: Model, turns: Sequence[str], answers: Sequence[str] = ()) -> list[int]:
        """Token ids of the turn after those that were answered, through the chat template where there is one.

        Raises:
            UsageError: it does not fit the context, or there are template options and no template.
        """
        asked = turns[: len(answers) + 1]
        if not model.tokenizer.has_chat_template:
            if self.template_options:
                name = next(iter(self.template_options))
                raise UsageError(f"--template-option {name}: this model has no chat template; leave it out")
            return model.tokenize("\n\n".join(part for pair in zip(asked, [*answers, ""], strict=True) for part in pair).strip())
        messages = []
        for number, turn in enumerate(asked):
            messages.append({"role": "user", "content": turn})
            if number < len(answers):
                messages.append({"role": "assistant", "content": answers[number]})
        return model.tokenize(Chat(messages, options=self.template_options))


def read_prompts(file: Path, limit: int | None, template_options: Mapping[str, Any] | None = None) -> Prompts:
    """The first `limit` rows of a file, or all.

    Raises:
        UsageError: the file cannot be read, or a row is broken (named by line).
    """
    questions = []
    for here, row in json_rows(read_text(file, "--prompts", ADVICE), f"--prompts {file}"):
        turns = row.get("turns") if isinstance(row, dict) else None
        if not isinstance(turns, list) or not turns or any(not isinstance(turn, str) or not turn.strip() for turn in turns):
            raise UsageError(f"{here}: no turns; {ADVICE}")
        questions.append(tuple(turns))
    return Prompts(file.name, tuple(questions[:limit]), template_options or {})
