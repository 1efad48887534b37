"""Two engines that should say the same, compared token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from plans import greedy

from quasar.engines.engine import Engine


@dataclass(frozen=True)
class Difference:
    """A token that the reference would not have chosen; `gap` is by how much, in nats of its logits."""

    prompt: int
    position: int
    gap: float


def differences(engine: Engine, reference: Engine, prompts: list[list[int]], count: int) -> list[Difference]:
    """Where the greedy answers of `engine`, `count` tokens to each prompt, are not what `reference` says of the same text."""
    found = []
    for number, prompt in enumerate(prompts):
        answer = greedy(engine, prompt, count)
        logits = teacher_forced(reference, prompt + answer[:-1])[len(prompt) - 1 :]
        for position, (token, row) in enumerate(zip(answer, logits, strict=True)):
            if row.argmax() != token:
                found.append(Difference(number, position, float(row.max() - row[token])))
    return found


def teacher_forced(engine: Engine, ids: list[int]) -> np.ndarray:
    """Logits after each token of a text, float32 [S, V]."""
    pieces = []
    for begin in range(0, len(ids), engine.spec.max_rows):
        chunk = np.array([ids[begin : begin + engine.spec.max_rows]])
        pieces.append(engine.forward(chunk, np.array([begin]), np.arange(chunk.shape[1])[None])[0].copy())
    return np.concatenate(pieces)
