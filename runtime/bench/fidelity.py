"""How far engines are from float: teacher-forced distributions, and greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.engines.engine import Engine, Feed, Float32
from quasar.runtime.bench.figures import first_difference
from quasar.runtime.sampler import log_softmax

CONFIDENCE = 0.95
RESAMPLES = 2000

Float64 = NDArray[np.float64]


def log_probabilities(engine: Engine, ids: Sequence[int]) -> Float32:
    """log p of the token after each of `ids`, float32 [n, V]."""
    pieces = []
    for begin in range(0, len(ids), engine.spec.max_rows):
        chunk = np.array(ids[begin : begin + engine.spec.max_rows], dtype=np.int64)
        logits = engine.score([Feed(0, begin, chunk, np.arange(len(chunk)))]).logits(0)
        pieces.append(np.stack([log_softmax(row) for row in logits]))
    return np.concatenate(pieces)


def compare(
    reference: Engine, engine: Engine, prompts: Sequence[list[int]], answers: Sequence[list[int]], advance: Callable[[], object]
) -> dict[str, Float64]:
    """Sums over the tokens of each prompt, by figure; every array is [prompts].

    Args:
        prompts: token ids; the perplexity is that of their own text, which no engine made.
        answers: what float answered greedily; distributions are compared where these tokens were chosen.
    """
    sums: dict[str, list[float]] = {name: [] for name in ("loss", "float_loss", "text_tokens", "kl", "agreed", "answer_tokens")}
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = prompt + answer[:-1]
        p, q = log_probabilities(reference, ids), log_probabilities(engine, ids)
        text = np.array(prompt[1:], dtype=np.int64)
        places = np.arange(len(text))
        p_answer, q_answer = p[len(prompt) - 1 :], q[len(prompt) - 1 :]
        sums["float_loss"].append(-float(p[places, text].sum()))
        sums["loss"].append(-float(q[places, text].sum()))
        sums["text_tokens"].append(len(text))
        sums["kl"].append(float((np.exp(p_answer) * (p_answer - q_answer)).sum()))
        sums["agreed"].append(int((p_answer.argmax(-1) == q_answer.argmax(-1)).sum()))
        sums["answer_tokens"].append(len(p_answer))
        advance()
    return {name: np.array(values, dtype=np.float64) for name, values in sums.items()}


def engine_figures(
    name: str, sums: dict[str, Float64], expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The row of an engine: values with intervals from resampling whole prompts.

    Args:
        expected, found: greedy answers of float and of the engine.
    """
    places = [first_difference(a, b) for a, b in zip(expected, found, strict=True)]
    flipped = np.array([place is not None for place in places], dtype=np.float64)
    first = np.array([np.nan if place is None else place for place in places])

    def mean(values: str, count: str) -> Callable[[NDArray[np.int64]], float]:
        return lambda chosen: float(sums[values][chosen].sum() / max(sums[count][chosen].sum(), 1))

    loss, float_loss = mean("loss", "text_tokens"), mean("float_loss", "text_tokens")
    return {
        "engine": name,
        "perplexity": interval(lambda chosen: float(np.exp(loss(chosen))), len(places)),
        "perplexity_ratio": interval(lambda chosen: float(np.exp(loss(chosen) - float_loss(chosen))), len(places)),
        "mean_kl": interval(mean("kl", "answer_tokens"), len(places)),
        "top1_agreement": interval(mean("agreed", "answer_tokens"), len(places)),
        "flip_rate": interval(lambda chosen: float(flipped[chosen].mean()), len(places)),
        "first_difference": interval(lambda chosen: _median(first[chosen]), len(places)) if flipped.any() else None,
    }


def interval(figure: Callable[[NDArray[np.int64]], float], count: int) -> dict[str, float]:
    """A figure of `count` prompts, and its percentile bootstrap interval over prompts."""
    random = np.random.default_rng(0)
    resampled = [figure(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail])
    return {"value": figure(np.arange(count)), "low": float(low), "high": float(high)}


def _median(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
