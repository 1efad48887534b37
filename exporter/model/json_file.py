"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint; `advice` says what to do when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a JSON object; {advice}")
    return value
