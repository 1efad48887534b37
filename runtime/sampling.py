"""What a caller may ask of generation, and what it does to logits: penalties and truncation as pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from quasar.engines.engine import Float32, Int64
from quasar.engines.errors import UsageError
from quasar.runtime.arrays import is_array, plain
from quasar.runtime.guided.guide import Guide

MAX_LOGPROBS = 50


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Attributes:
        max_new_tokens: tokens to generate at the most.
        temperature: 0 takes the most likely token each time.
        top_k: sample from the k most likely tokens; 0 for all.
        top_p: sample from the smallest set of tokens with at least this probability together, above 0 and at most 1.
        min_p: sample from tokens with at least this share of the most likely one's probability, 0 to 1.
        repetition_penalty: divides (negative: multiplies) the logits of tokens of the prompt and the output; 1 for none.
        presence_penalty: taken off the logits of tokens of the output, -2 to 2.
        frequency_penalty: the same, once per occurrence.
        seed: of the random numbers; None for others each time.
        stop: strings that end the answer, or one of them; the text is cut before them. None for none.
        stop_token_ids: ids that end the answer, besides the model's own. None for none.
        ignore_eos: go on past the model's own end tokens.
        min_tokens: tokens before which no end token is chosen; a stop string still ends the answer.
        logit_bias: added to the logits of tokens, -100 to 100, as a mapping of ids to numbers.
        logprobs: report the log-probability of each new token, and of this many most likely ones; None for neither.
        guide: the form that the answer has to have; None for any.

    Applied in the order of transformers: logit_bias, penalties, guide, temperature, top_k, top_p, min_p. Numbers of numpy and
    torch become Python's own.

    Raises:
        UsageError: a value that has no meaning.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    min_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    guide: Guide | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, plain(getattr(self, one.name)))
        _make_tuple(self, "stop", "give strings")
        _make_tuple(self, "stop_token_ids", "give token ids")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise UsageError("stop holds an empty string, which is everywhere; leave it out")
        if any(not _is_integer(token) for token in self.stop_token_ids):
            raise UsageError(f"stop_token_ids is {self.stop_token_ids!r}; give token ids")
        _check(self, "max_new_tokens", _is_integer, lambda n: n >= 1, "give an integer of at least 1")
        _check(self, "temperature", _is_number, lambda t: 0 <= t < math.inf, "it must be 0 (greedy) or more")
        _check(self, "top_k", _is_integer, lambda k: k >= 0, "give an integer, 0 for all tokens")
        _check(self, "top_p", _is_number, lambda p: 0 < p <= 1, "it must be above 0 and at most 1 (1 keeps all tokens)")
        _check(self, "min_p", _is_number, lambda p: 0 <= p <= 1, "it must lie in 0 to 1 (0 keeps all tokens)")
        _check(self, "repetition_penalty", _is_number, lambda r: 0 < r < math.inf, "it must be above 0 (1 is none)")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(self, name, _is_number, lambda p: -2 <= p <= 2, "it must lie in -2 to 2 (0 is none)")
        if self.seed is not None:
            _check(self, "seed", _is_integer, lambda s: 0 <= s < 1 << 64, "give an integer of 0 to 2^64 - 1, or None")
        _check(self, "min_tokens", _is_integer, lambda n: n >= 0, "give an integer of 0 or more")
        _check(self, "logit_bias", _is_bias, lambda _: True, "give numbers of -100 to 100 by token id: {50256: -100}")
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        if self.guide is not None and not isinstance(self.guide, Guide):
            raise UsageError(f"guide is {type(self.guide).__name__}; give a Guide, such as Guide.json_schema({{...}})")
        if self.logprobs is not None:
            _check(self, "logprobs", _is_integer, lambda n: 0 <= n <= MAX_LOGPROBS, f"give 0 to {MAX_LOGPROBS}, or None")

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias)


def _make_tuple(params: SamplingParams, name: str, advice: str) -> None:
    """Make a field a tuple of plain values."""
    given = getattr(params, name)
    value = given.tolist() if is_array(given) else given
    parts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(parts, (tuple, list)):
        raise UsageError(f"{name} is {given!r}; {advice}")
    object.__setattr__(params, name, tuple(map(plain, parts)))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_integer(token) and token >= 0 and _is_number(bias) and -100 <= bias <= 100 for token, bias in value.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(params: SamplingParams, name: str, kind: Any, allowed: Any, advice: str) -> None:
    value = getattr(params, name)
    if not kind(value) or not allowed(value):
        raise UsageError(f"{name} is {value!r}; {advice}")


def penalize(logits: Float32, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Float32:
    """Logits after bias and penalties, float32 [V]; the array that was given stays as it is.

    repetition_penalty is CTRL's (Keskar 2019) and sees the prompt; the other two are OpenAI's and see the output only.
    """
    result: Float32 = logits.copy()
    for token, bias in params.logit_bias.items():
        result[token] += np.float32(bias)
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array([*prompt, *output], dtype=np.int64))
        values = result[seen]
        result[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        seen, counts = np.unique(np.array(output, dtype=np.int64), return_counts=True)
        result[seen] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts.astype(np.float32)
    return result


def candidates(logits: Float32, params: SamplingParams) -> tuple[Int64, Float32]:
    """What may be sampled: (token ids, ascending, and their probabilities, float32, which sum to 1).

    Args:
        logits: float32 [V], after the penalties. The temperature must be above 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a temperature near 0 makes -inf of all but the best
        scaled = (logits - logits.max()) / np.float32(max(params.temperature, 1e-30))
    scaled[np.isnan(scaled)] = 0.0  # 0 / 0: the best itself
    ids = np.flatnonzero(scaled > -np.inf)  # of a guide's answer, few may be left
    if 0 < params.top_k < len(ids):
        left = scaled[ids]
        ids = ids[left >= np.partition(left, -params.top_k)[-params.top_k]]
    p = _normalized(np.exp(scaled[ids]))
    if params.top_p < 1:
        kept = _nucleus(p, params.top_p)
        ids, p = ids[kept], _normalized(p[kept])
    if params.min_p > 0:
        kept = np.flatnonzero(p >= params.min_p * p.max())
        ids, p = ids[kept], _normalized(p[kept])
    return ids, p


def _normalized(weights: Float32) -> Float32:
    total = weights.sum(dtype=np.float64)
    result: Float32 = (weights / total).astype(np.float32)
    return result


def _nucleus(p: Float32, top_p: float) -> Int64:
    """Indices, ascending, of the smallest set of tokens that has `top_p` of the probability."""
    # what is below this holds less than 1 - top_p together, so only the rest needs sorting
    likely = np.flatnonzero(p >= (1 - top_p) / len(p))
    order = likely[np.argsort(-p[likely], kind="stable")]
    count = int(np.searchsorted(np.cumsum(p[order], dtype=np.float64), top_p)) + 1
    return np.sort(order[:count])
