"""JSON lines from a file that the user named: what is wrong is said with its line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError


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
