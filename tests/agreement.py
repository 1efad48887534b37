"""Two engines that should say the same, compared token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from models import forward
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


def parting_gap(prompt: list[int], answer: list[int], expected: list[int], reference: Engine) -> float:
    """How near a tie two answers part at, in nats of the reference's logits; 0 where they are the same.

    What follows is not compared: it answers another text. An answer that only ends earlier is infinitely far.
    """
    for place, (token, other) in enumerate(zip(answer, expected, strict=False)):
        if token != other:
            row = teacher_forced(reference, prompt + expected[:place])[-1]
            # of an exact tie, too: 0 is for those that do not part
            return max(abs(float(row[token] - row[other])), float(np.finfo(np.float32).tiny))
    return 0.0 if len(answer) == len(expected) else float("inf")


def teacher_forced(engine: Engine, ids: list[int]) -> np.ndarray:
    """Logits after each token of a text, float32 [S, V]."""
    pieces = []
    for begin in range(0, len(ids), engine.spec.max_rows):
        pieces.append(forward(engine, ids[begin : begin + engine.spec.max_rows], begin))
    return np.concatenate(pieces)
