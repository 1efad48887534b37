"""Single tokens as text, for log-probabilities."""

from __future__ import annotations

from typing import Any

from quasar.runtime.answer import Logprob
from quasar.runtime.serving.request import Part
from quasar.runtime.tokenizer import Tokenizer


class Words:
    """Texts of tokens, each as it stands within a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, token: int) -> str:
        """The text of a token; of a special one its name."""
        return self._tokenizer.token_text(token)

    def logprob(self, one: Logprob) -> dict[str, Any]:
        """In the form of chat completions."""
        top = [self._entry(token, value) for token, value in one.top]
        return {**self._entry(one.token, one.logprob), "top_logprobs": top}

    def drafted(self, part: Part) -> dict[str, Any]:
        """Tokens of a part, and who drafted each; empty for one that nobody did."""
        return {"tokens": [self.of(token) for token in part.ids], "origins": part.origins}

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self.of(token)
        return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}
