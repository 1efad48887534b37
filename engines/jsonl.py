"""JSON lines from a file that the user named: what is wrong is said with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError

TEXT_KEYS = ("text", "prompt", "inputs_pretokenized", "question")
"""Under these a row has its text."""


def read_text(file: Path, option: str, advice: str) -> str:
    """The text of a file.

    Args:
        option: the option that named it, for errors.
        advice: what to give instead.

    Raises:
        UsageError: it cannot be read, or there is nothing in it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"{option} {file}: cannot be read ({reason}); {advice}") from None
    if not text.strip():
        raise UsageError(f"{option} {file}: the file is empty; {advice}")
    return text


def json_rows(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, for errors; the value) of each row of JSON lines; blank lines are skipped.

    Raises:
        UsageError: a row is not JSON.
    """
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at U+2028 inside a string
        if not line.strip():
            continue
        here = f"{where}, line {number}"
        try:
            yield here, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{here}: not JSON ({error}); correct or remove the row") from None


def text_rows(text: str, where: str) -> Iterator[str | list[dict[str, str]]]:
    """What each row of JSON lines says: a text, or the messages of a chat.

    A row is an object with its text under one of `TEXT_KEYS`, or a chat under `messages` or, of the user alone, `turns`.

    Raises:
        UsageError: a row is not JSON, or has neither.
    """
    for here, row in json_rows(text, where):
        messages = _messages(row) if isinstance(row, dict) else None
        values = [row[key] for key in TEXT_KEYS if isinstance(row, dict) and isinstance(row.get(key), str)]
        if messages is not None:
            yield messages
        elif values:
            yield values[0]
        else:
            raise UsageError(f"{here}: no text; a row needs one of {', '.join(TEXT_KEYS)}, turns, messages")


def _messages(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """Chat messages of a row. `turns` are the user's; `reference` answers stand between them where there are any."""
    messages = row.get("messages")
    if isinstance(messages, list) and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        return messages or None
    turns, answers = row.get("turns"), row.get("reference")
    if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
        return None
    if not (isinstance(answers, list) and len(answers) == len(turns) and all(isinstance(a, str) for a in answers)):
        return [{"role": "user", "content": turns[0]}]
    roles = ("user", "assistant")
    pairs = zip(turns, answers, strict=True)
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
