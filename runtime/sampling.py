"""What a caller may ask of generation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quasar.engines.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Attributes:
        max_new_tokens: tokens to generate at the most.
        temperature: 0 takes the most likely token each time.
        stop: strings that end the answer; the text is cut before them.
        stop_token_ids: ids that end the answer, besides the model's own.
        ignore_eos: go on past the model's own end tokens.

    This release decodes greedily: any other value of temperature, top_k, top_p, min_p, the penalties and logprobs is
    refused, not ignored. `seed` has no effect on greedy decoding.

    Raises:
        UsageError: a value that has no meaning, or one that this release cannot honour.
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
    logprobs: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            if not isinstance(getattr(self, name), (tuple, list)):
                raise UsageError(f"{name} is {getattr(self, name)!r}; give a tuple")
        if not isinstance(self.max_new_tokens, (int, np.integer)) or self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens!r}; give an integer of at least 1")
        if not isinstance(self.temperature, (int, float)) or not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature is {self.temperature!r}; it must be 0 (greedy) or more")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise UsageError("stop holds an empty string, which is everywhere; leave it out")
        if any(not isinstance(token, int) for token in self.stop_token_ids):
            raise UsageError(f"stop_token_ids is {self.stop_token_ids!r}; give token ids")
        for name, greedy in _GREEDY.items():
            if getattr(self, name) != greedy:
                raise UsageError(
                    f"{name} is {getattr(self, name)}; this release decodes greedily, leave it at {greedy} (its default)"
                )


_GREEDY = {
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "logprobs": 0,
}  # fmt: skip
