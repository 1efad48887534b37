"""Benchmark prompts: the rows of MT-bench and Spec-Bench."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError
from quasar.engines.rows import json_rows, read_text
from quasar.runtime.generate import Model

ADVICE = 'give rows {"question_id": 1, "category": "...", "turns": ["..."]}'


@dataclass(frozen=True)
class Prompts:
    """Questions of one or several turns each.

    Attributes:
        name: of the file.
        sha256: hex digest of the turns.
        turns: of each question.
    """

    name: str
    turns: tuple[tuple[str, ...], ...]

    @property
    def sha256(self) -> str:
        """Hex digest of the turns."""
        return hashlib.sha256(repr(self.turns).encode()).hexdigest()

    @property
    def count(self) -> int:
        """Turns of all questions: so many answers are generated."""
        return sum(map(len, self.turns))


def read_prompts(file: Path, limit: int | None) -> Prompts:
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
    return Prompts(file.name, tuple(questions[:limit]))


def opening(model: Model, turns: tuple[str, ...]) -> list[int]:
    """Token ids of a question's first turn, through the chat template where there is one."""
    return model.tokenize(_messages(model, [turns[0]], []))


def following(model: Model, turns: tuple[str, ...], answers: list[str]) -> list[int]:
    """Token ids of the turn after those that were answered."""
    return model.tokenize(_messages(model, list(turns[: len(answers) + 1]), answers))


def _messages(model: Model, turns: list[str], answers: list[str]) -> Any:
    if not model.tokenizer.has_chat_template:
        parts = [part for pair in zip(turns, [*answers, ""], strict=True) for part in pair]
        return "\n\n".join(parts).strip()
    messages = []
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        if number < len(answers):
            messages.append({"role": "assistant", "content": answers[number]})
    return messages
