"""Which part of a proposal is kept: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def accept_greedy(best: Iterable[int], draft: Sequence[int]) -> tuple[int, int]:
    """The greedy rule: keep the draft while it is what the verifier would have said.

    Args:
        best: the verifier's most likely token after the sequence and after each draft token, k + 1 of them. Only those up
            to the first difference are asked for.
        draft: k proposed tokens.

    Returns:
        (tokens accepted, the token that follows them: the correction at the first difference, or the bonus token).
    """
    accepted = 0
    for token in best:
        if accepted == len(draft) or draft[accepted] != token:
            return accepted, int(token)
        accepted += 1
    raise ValueError(f"{accepted} choices do not verify a draft of {len(draft)}; one more is needed")
