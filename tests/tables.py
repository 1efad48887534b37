"""Engines whose logits stand in a table: exact, fast, and strict about their cache."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch

from quasar.engines.engine import EngineSpec, Feed, Float32, HostScores, Scores, check_feeds
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.spec import build_chain, parse_chain
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.sampler import Acceptance, Sampler
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.sequence import Sequence, Turn

VOCAB = 8
NOTHING = -1
PROMPT = [1, 4, 2, 6, 1, 4, 2, 6, 1, 4, 2]
"""Every bigram was there before, so weightless proposers propose."""


def table(name: str) -> Float32:
    """Logits by the last two tokens, float32 [V + 1, V, V]; V stands for no token. Tables of all names are similar."""
    shape = (VOCAB + 1, VOCAB, VOCAB)
    common = np.random.default_rng(7).normal(0, 1.5, shape)
    own = np.random.default_rng(list(name.encode())).normal(0, 0.7, shape)
    return (common + own).astype(np.float32)


class TableEngine:
    """An engine that reads its context from its cache, and from nothing else."""

    def __init__(self, name: str, max_length: int = 64, max_rows: int = 16, slots: int = 1) -> None:
        self.spec = EngineSpec(name, VOCAB, max_length, max_rows, slots, "table")
        self.seconds = 0.0
        self.cache = np.full((slots, max_length), NOTHING)
        self.passes: list[list[Feed]] = []
        self._table = table(name)
        self._buffer = np.empty((slots * max_rows, VOCAB), np.float32)

    def score(self, feeds: Many[Feed]) -> Scores:
        """See `Engine.score`."""
        check_feeds(self.spec, feeds)
        self.passes.append(list(feeds))
        self._buffer.fill(np.nan)  # what an earlier pass gave is gone
        spans, done = [], 0
        for feed in feeds:
            cache = self.cache[feed.slot]
            assert (cache[: feed.start] != NOTHING).all(), f"not all of the {feed.start} positions that are read were written"
            cache[feed.start : feed.end] = feed.tokens
            spans.append((done, len(feed.rows)))
            for row in feed.rows:
                position = feed.start + int(row)
                before = cache[position - 1] if position else VOCAB
                self._buffer[done] = self._table[before, cache[position]]
                done += 1
        return HostScores(self._buffer[:done], spans, np.empty(VOCAB, np.float32))

    def close(self) -> None:
        """Nothing to free."""


def table_chain(
    text: str, lengths: list[int | None] | int | None, max_length: int = 64, max_rows: int = 16, slots: int = 1
) -> Verifier:
    """A chain as it is written, on table engines of these names."""
    spec = parse_chain(text)
    cached = {name: CachedTokens(TableEngine(name, max_length, max_rows, slots)) for name in spec.engines}
    return build_chain(spec, cached, lengths if isinstance(lengths, list) else [lengths] * len(spec.verifiers))


def start(
    verifier: Verifier, params: SamplingParams, acceptance: Acceptance = "matching", prompt: list[int] = PROMPT, slot: int = 0
) -> Sequence:
    """A sequence with its first token."""
    sequence = Sequence(list(prompt), Sampler(params, len(prompt), acceptance), slot)
    verifier.join(sequence)
    sequence.tokens.extend(verifier.round([Turn(sequence, 99, len(prompt))])[0].tokens)
    return sequence


def generate(
    verifier: Verifier,
    params: SamplingParams,
    count: int,
    acceptance: Acceptance = "matching",
    slack: int = 8,
    prompt: list[int] = PROMPT,
) -> list[int]:
    """The first `count` new tokens of a generation that could have gone `slack` tokens further."""
    return generate_together(verifier, [params], count, acceptance, slack, prompt)[0]


def generate_together(
    verifier: Verifier,
    params: Many[SamplingParams],
    count: int,
    acceptance: Acceptance = "matching",
    slack: int = 8,
    prompt: list[int] = PROMPT,
) -> list[list[int]]:
    """The same for several samplings of a prompt, each in a slot of its own, while it has not enough."""
    sequences = [Sequence(list(prompt), Sampler(one, len(prompt), acceptance), slot) for slot, one in enumerate(params)]
    for sequence in sequences:
        verifier.join(sequence)
    turns = [Turn(sequence, 99, len(prompt)) for sequence in sequences]
    while turns:
        for turn, done in zip(turns, verifier.round(turns), strict=True):
            turn.sequence.tokens.extend(done.tokens)
        going = (turn.sequence for turn in turns if turn.sequence.new_count < count)
        turns = [Turn(sequence, count + slack - sequence.new_count) for sequence in going]
    for sequence in sequences:
        verifier.leave(sequence)
    return [sequence.new_tokens[:count] for sequence in sequences]


def chi_square(observed: Float32, expected: Float32) -> float:
    """Probability that counts like these, or further off, come from `expected`; rare outcomes are taken together."""
    order = np.argsort(-expected)
    observed, expected = observed[order], expected[order]
    assert not observed[expected == 0].any(), "something came up that cannot"
    common = int((expected >= 5).sum())
    if expected[common:].sum() > 0:
        observed, expected = (np.append(x[:common], x[common:].sum()) for x in (observed, expected))
    else:
        observed, expected = observed[:common], expected[:common]
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
