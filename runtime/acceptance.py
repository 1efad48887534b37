"""Which part of a proposal is kept: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def accept_greedy(best: NDArray[np.int64], draft: Sequence[int]) -> tuple[int, int]:
    """The greedy rule: keep the draft while it is what the verifier would have said.

    Args:
        best: the verifier's most likely token after the sequence and after each draft token, int64 [k + 1].
        draft: k proposed tokens.

    Returns:
        (tokens accepted, the token that follows them: the correction at the first difference, or the bonus token).
    """
    accepted = 0
    while accepted < len(draft) and draft[accepted] == best[accepted]:
        accepted += 1
    return accepted, int(best[accepted])
