"""How far to draft: as far as measured cost and acceptance say that it pays. Pure functions.

All sequences share a pass, so what pays is asked of the pass: its tokens are one for each sequence and, of each drafted token,
the probability that it and all before it are accepted. No draft is a candidate like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quasar.runtime.chain.estimates import Float64

Verify = Callable[[NDArray[np.integer], NDArray[np.integer]], Float64]
"""Seconds of verification passes with so many drafted tokens, so many of them in the longest draft."""


@dataclass(frozen=True)
class Standing:
    """What a pass would give without further drafts.

    Attributes:
        tokens: that are expected of it.
        drafted: tokens in all drafts.
        longest: tokens in the longest of them.
    """

    tokens: float
    drafted: int
    longest: int


def best_cut(survivals: Many[Float64], certain: float, verify: Verify, spent: float = 0.0) -> tuple[list[int], float]:
    """(how much of each draft to verify, tokens a second that this makes).

    Of all drafted tokens the likeliest n are verified, n maximizes (certain + sum of their survivals) / seconds.

    Args:
        survivals: of each sequence's draft, see `Acceptance.survivals`; they fall along a draft, so what is chosen is a
            beginning of it.
        certain: tokens that come without these drafts: one for each sequence that shares the pass, at least.
        spent: seconds that the drafts took already.
    """
    lengths = [len(one) for one in survivals]
    every = np.concatenate([np.zeros(0), *survivals])
    order = np.argsort(-every, kind="stable")
    tokens = certain + np.concatenate([[0.0], np.cumsum(every[order])])
    places = np.concatenate([np.arange(0), *(np.arange(1, length + 1) for length in lengths)])[order]
    longest = np.concatenate([[0], np.maximum.accumulate(places)])
    rates = tokens / (spent + verify(np.arange(len(every) + 1), longest))
    count = int(rates.argmax())
    owners = np.repeat(np.arange(len(lengths)), lengths)[order[:count]]
    return np.bincount(owners, minlength=len(lengths)).tolist(), float(rates[count])


def best_steps(
    survivals: Many[float],
    most: int,
    typical: float,
    standing: Many[Standing],
    step: Callable[[int], float],
    verify: Verify,
    spent: float = 0.0,
    begun: int = 0,
) -> tuple[int, int, float]:
    """(for how many of the likeliest sequences an engine drafts on, by how many tokens each, tokens a second that this makes).

    Args:
        survivals: of each sequence that may be drafted for, the probability that all of its draft is accepted; falling.
        most: tokens that each may get.
        typical: probability that a token of the engine is accepted when all before it were.
        standing: what there is, where the engine drafts for 0, 1, 2, ... of the sequences.
        step: seconds until each of so many sequences has one token more.
        verify: see `Verify`.
        spent: seconds that the drafts took already.
        begun: tokens that the engine has drafted for each.
    """
    none = standing[0]
    best = (0, 0, none.tokens / (spent + float(verify(np.array([none.drafted]), np.array([none.longest]))[0])))
    if most < 1:
        return best
    lengths = np.arange(1, most + 1)
    gains = np.cumsum(typical**lengths)
    for count in range(1, len(survivals) + 1):
        rest = standing[count]
        verified = verify(rest.drafted + count * lengths, np.maximum(rest.longest, begun + lengths))
        rates = (rest.tokens + sum(survivals[:count]) * gains) / (spent + lengths * step(count) + verified)
        length = int(rates.argmax())
        if rates[length] > best[2]:
            best = (count, length + 1, float(rates[length]))
    return best
