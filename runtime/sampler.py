"""Choosing tokens for one sequence: greedy, or sampled with random numbers that belong to positions."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from quasar.engines.engine import Float32, Int64
from quasar.runtime.chain.acceptance import Probabilities
from quasar.runtime.sampling import SamplingParams, candidates, penalize

if TYPE_CHECKING:
    from quasar.runtime.guided.matcher import Matcher

Acceptance = Literal["matching", "rejection"]
ACCEPTANCES: tuple[Acceptance, ...] = ("matching", "rejection")

UInt64 = NDArray[np.uint64]
# SplitMix64 (Steele, Lea, Flood 2014)
GOLDEN, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Sampler:
    """Makes choices from logits as `params` say.

    Under matching, the random numbers of a position depend on the seed and the position alone. Every engine of a chain that
    chooses a token for that position uses the same ones, so engines that agree in distribution mostly agree in choice
    (the Gumbel coupling of Daliri et al., arXiv 2408.07978), and nothing depends on how drafts were cut.

    Args:
        prompt_length: tokens before the output.
        acceptance: see `quasar.runtime.chain.acceptance`.
        ends: tokens that `params.min_tokens` keeps from being chosen too early.
        guide: says which tokens may be chosen; None for all.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_length: int,
        acceptance: Acceptance = "matching",
        ends: Collection[int] = (),
        guide: Matcher | None = None,
    ) -> None:
        self._params = params
        self._prompt_length = prompt_length
        seed = secrets.randbits(64) if params.seed is None else params.seed
        self._key = _mix(np.array([seed], dtype=np.uint64))[0]
        self._stream = np.random.Generator(np.random.PCG64(seed))
        self.rejects = acceptance == "rejection" and not params.greedy
        # a token's logit is then compared with nothing but those of its row: no need to see them all
        self.takes_best = params.greedy and not params.penalizes and not params.min_tokens and guide is None
        self.guide = guide
        self._first_end = prompt_length + params.min_tokens
        self._ends = np.array(sorted(ends), np.int64)

    def choose(self, logits: Float32, tokens: Sequence[int]) -> int:
        """The token after `tokens`, under matching.

        Args:
            logits: float32 [V].
            tokens: prompt, output and drafted prefix.
        """
        logits = self._penalized(logits, tokens)
        if self._params.greedy:
            return int(logits.argmax())
        ids, p = candidates(logits, self._params)
        # Gumbel-max: argmax of log p + G is a draw from p; in this form, the first of exponential clocks to ring
        with np.errstate(divide="ignore"):
            return int(ids[np.argmin(self._exponentials(len(tokens), ids) / p)])

    def distribution(self, logits: Float32, tokens: Sequence[int]) -> Probabilities:
        """p of the token after `tokens`, float32 [V]."""
        p = np.zeros(len(logits), dtype=np.float32)
        ids, values = candidates(self._penalized(logits, tokens), self._params)
        p[ids] = values
        return p

    def uniform(self) -> float:
        """The next random number of [0, 1) of the sequence, for rejection."""
        return float(self._stream.random())

    def _penalized(self, logits: Float32, tokens: Sequence[int]) -> Float32:
        if self._params.penalizes:
            logits = penalize(logits, self._params, tokens[: self._prompt_length], tokens[self._prompt_length :])
        early = len(tokens) < self._first_end
        if self.guide is not None:
            allowed = self.guide.allowed(tokens)
            if early:  # an end stays where nothing else may come
                others = allowed.copy()
                others[self._ends] = False
                allowed = others if others.any() else allowed
            logits = np.where(allowed, logits, np.float32(-np.inf))
        elif early:
            logits = logits.copy()
            logits[self._ends] = -np.inf
        return logits

    def _exponentials(self, position: int, ids: Int64) -> NDArray[np.float64]:
        """A draw of Exp(1) for each token id at a position."""
        key = _mix(np.array([position], dtype=np.uint64) * GOLDEN + self._key)[0]
        bits = _mix(ids.astype(np.uint64) * GOLDEN + key)
        bits >>= np.uint64(11)
        uniform = bits.astype(np.float64)
        uniform += 0.5  # never 0
        uniform *= 2.0**-53
        np.log(uniform, out=uniform)
        return np.negative(uniform, out=uniform)


def _mix(x: UInt64) -> UInt64:
    """SplitMix64's output function, in place."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        x ^= x >> np.uint64(shift)
        x *= factor
    x ^= x >> np.uint64(31)
    return x


def log_softmax(logits: Float32) -> Float32:
    """float32 [V]."""
    shifted = logits - logits.max()
    result: Float32 = shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)
    return result
