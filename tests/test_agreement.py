"""The measure by which answers on a GPU are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from agreement import parting_gap

from quasar.engines.engine import EngineSpec, Feed, HostScores, Scores


class Counter:
    """After token t, t + 1 has the logit 2 and t + 2 has 1.75."""

    spec = EngineSpec("counter", 10, 64, 4, 1, "float32")

    def score(self, feeds: Sequence[Feed]) -> Scores:
        (only,) = feeds
        logits = np.zeros((len(only.rows), 10), np.float32)
        for row, token in enumerate(only.tokens[only.rows]):
            logits[row, (token + 1) % 10], logits[row, (token + 2) % 10] = 2, 1.75
        return HostScores(logits, [(0, len(logits))], np.empty(10, np.float32))


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
