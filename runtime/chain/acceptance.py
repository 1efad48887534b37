"""Which part of a proposal is kept: pure functions.

Two rules. *Matching* compares the draft with what the verifier chooses itself. Greedily that is the greedy rule. With sampling,
the verifier's choice at a position is a function of its distribution p and of random numbers that belong to the position
(`quasar.runtime.sampler`): the output is then the same for every draft, and follows p because each choice does. For a
deterministic draft x this accepts with probability p(x) and else continues as p without x: it is rejection sampling.
*Rejection* is the rule of Leviathan et al. (arXiv 2211.17192) and Chen et al. (arXiv 2302.01318) for drafts sampled from q. It
accepts the most drafts that any rule can, but the output depends on where rounds begin, though its distribution does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]
"""float32 [V], non-negative; sums to 1."""


def accept_matching(choices: Iterable[int], draft: Sequence[int]) -> tuple[int, int]:
    """Keep the draft while it is what the verifier chooses.

    Args:
        choices: the verifier's token after the sequence and after each draft token, k + 1 of them. Only those up to the
            first difference are asked for.
        draft: k proposed tokens.

    Returns:
        (tokens accepted, the token that follows them: the correction at the first difference, or the bonus token).
    """
    accepted = 0
    for token in choices:
        if accepted == len(draft) or draft[accepted] != token:
            return accepted, int(token)
        accepted += 1
    raise ValueError(f"{accepted} choices do not verify a draft of {len(draft)}; one more is needed")


def accept_rejection(
    verified: Iterable[Probabilities],
    draft: Sequence[int],
    drafted: Sequence[Probabilities | None],
    uniform: Callable[[], float],
) -> tuple[int, int]:
    """Keep a draft token x with probability min(1, p(x)/q(x)), else sample from norm(max(p - q, 0)).

    Args:
        verified: p after the sequence and after each draft token, k + 1 of them. Only those up to the first rejection are
            asked for.
        draft: k proposed tokens.
        drafted: q that each was drawn from; None for a deterministic one, whose q is one-hot.
        uniform: gives a random number of [0, 1).

    Returns:
        See `accept_matching`.
    """
    accepted = 0
    for p in verified:
        if accepted == len(draft):
            return accepted, sample(p, uniform())
        token, q = draft[accepted], drafted[accepted]
        if uniform() * (1.0 if q is None else float(q[token])) < float(p[token]):
            accepted += 1
            continue
        return accepted, sample(_residual(p, token, q), uniform())
    raise ValueError(f"{accepted} distributions do not verify a draft of {len(draft)}; one more is needed")


def _residual(p: Probabilities, token: int, q: Probabilities | None) -> Probabilities:
    """What is left of p after the draft had its chance, not normalized."""
    if q is None:
        left = p.copy()
        left[token] = 0
    else:
        left = np.maximum(p - q, 0)
    # p == q up to rounding: then a rejection is itself rounding, and p is as good
    return left if left.any() else p


def sample(weights: Probabilities, u: float) -> int:
    """The token at quantile `u` of weights that need not sum to 1."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    # u below 1 can still round up to the total
    return index if index < len(weights) else int(np.flatnonzero(weights)[-1])
