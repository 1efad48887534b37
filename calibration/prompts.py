"""Calibration text to token sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from quasar.engines.errors import UsageError
from quasar.engines.jsonl import read_text, text_rows

ADVICE = "give a .jsonl or .txt file with text"
SHORTEST = 2
"""Tokens that a sequence needs to say anything about the next token."""


@dataclass(frozen=True)
class PromptSet:
    """Token sequences, split: engines are calibrated on some and gated on others.

    Attributes:
        name: the file's name, or `built-in`.
        sha256: of the token ids of both parts.
    """

    name: str
    calibration: list[list[int]]
    gate: list[list[int]]

    @property
    def sha256(self) -> str:
        """Hex digest that tells two prompt sets apart."""
        return hashlib.sha256(json.dumps([self.calibration, self.gate]).encode()).hexdigest()


def load_prompts(
    file: Path | None,
    encode: Callable[[str], list[int]],
    encode_messages: Callable[[Sequence[Any]], list[int]],
    samples: int = 32,
    length: int = 256,
) -> PromptSet:
    """Read a calibration file, or the built-in set.

    Args:
        file: `.jsonl` with one object a row (`text`, `prompt`, `inputs_pretokenized`, `question`, or chat as `turns` or
            `messages`), or `.txt`, cut into sequences; None for the built-in set.
        encode: text -> token ids.
        encode_messages: chat messages -> token ids.
        samples: sequences to calibrate on; a quarter as many more are kept for the gate.
        length: tokens of a sequence at the most.

    Raises:
        UsageError: the file cannot be read, a row is broken (named by line), or too little is left.
    """
    if file is None:
        text = (resources.files("quasar.calibration") / "prompts.jsonl").read_text(encoding="utf-8")
        name, sequences = "built-in", _from_rows(text, "built-in prompts", encode, encode_messages)
    else:
        text, name = read_text(file, "--calibration", ADVICE), file.name
        if file.suffix.lower() == ".txt":
            ids = encode(text)
            sequences = iter([ids[i : i + length] for i in range(0, len(ids), length)])
        else:
            sequences = _from_rows(text, str(file), encode, encode_messages)
    wanted = samples + max(1, samples // 4)
    kept: list[list[int]] = []
    for ids in sequences:
        if len(ids) >= SHORTEST:
            kept.append(ids[:length])
        if len(kept) == wanted:
            break
    gate = max(1, len(kept) // 5)
    if len(kept) - gate < 2:
        raise UsageError(f"--calibration {name}: {len(kept)} usable rows; at least 3 are needed (2 to calibrate, 1 for the gate)")
    return PromptSet(name, kept[:-gate], kept[-gate:])


def _from_rows(
    text: str,
    where: str,
    encode: Callable[[str], list[int]],
    encode_messages: Callable[[Sequence[Any]], list[int]],
) -> Iterator[list[int]]:
    for found in text_rows(text, f"--calibration {where}"):
        yield encode(found) if isinstance(found, str) else encode_messages(found)
