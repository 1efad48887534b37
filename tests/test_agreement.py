"""The measure by which answers on a GPU are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import parting_gap

from quasar.engines.engine import EngineSpec


class Counter:
    """After token t, t + 1 has the logit 2 and t + 2 has 1.75."""

    spec = EngineSpec("counter", 10, 64, 4, 1, "float32")

    def forward(self, tokens: np.ndarray, start: np.ndarray, rows: np.ndarray) -> np.ndarray:
        logits = np.zeros((*rows.shape, 10), np.float32)
        for row, place in enumerate(rows[0]):
            token = tokens[0, place]
            logits[0, row, (token + 1) % 10], logits[0, row, (token + 2) % 10] = 2, 1.75
        return logits


@pytest.mark.parametrize(
    ("answer", "gap"),
    [
        ([4, 5, 6, 7, 8], 0),
        ([4, 5, 7, 0, 0], 0.25),  # what follows answers another text
        ([5, 5, 6, 7, 8], 0.25),
        ([4, 5, 6, 7, 0], 2),
        ([4, 5, 6], float("inf")),
    ],
)
def test_answers_part_at_the_first_token_that_differs(answer: list[int], gap: float) -> None:
    engine: Any = Counter()
    assert parting_gap([1, 2, 3], answer, [4, 5, 6, 7, 8], engine) == gap


def test_answers_that_part_at_an_exact_tie_are_not_the_same() -> None:
    engine: Any = Counter()
    assert parting_gap([3], [0], [6], engine) > 0
