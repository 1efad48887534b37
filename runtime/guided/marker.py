"""A text after which something begins, looked for in the bytes of tokens."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


class Marker:
    """Finds a text in tokens as they come, however it is cut into them.

    A token that has more of the answer behind the marker than white space would take it past what is checked, so it is not
    chosen; neither is a token that ends the answer before the marker.

    Args:
        text: not empty.
        tokens: the bytes of each token.
        ends: tokens that end an answer.
    """

    def __init__(self, text: bytes, tokens: Many[bytes], ends: Collection[int]) -> None:
        self._text = text
        self._tokens = tokens
        self._ends = np.array(sorted(ends), np.int64)
        last = text[-1:]
        self._completing = [token for token, content in enumerate(tokens) if last in content]
        self._allowed: dict[int, Bools] = {}

    def follow(self, matched: int, token: int) -> int | None:
        """How many bytes of the text are matched after a token, where `matched` were before; None where it is complete."""
        window = self._text[:matched] + self._tokens[token]
        if self._text in window:
            return None
        return next(n for n in range(min(len(self._text) - 1, len(window)), -1, -1) if window.endswith(self._text[:n]))

    def ends(self, tokens: Many[int]) -> bool:
        """Whether the text of tokens ends with it, white space behind it left out."""
        content = b"".join(self._tokens[token] for token in tokens[-2 * len(self._text) :])
        return content.rstrip().endswith(self._text)

    def allowed(self, matched: int) -> Bools:
        """Tokens that may come where so many bytes are matched, bool [V]."""
        if matched not in self._allowed:
            allowed = np.ones(len(self._tokens), np.bool_)
            allowed[self._ends] = False
            allowed[[token for token in self._completing if self._passes(matched, token)]] = False
            self._allowed[matched] = allowed
        return self._allowed[matched]

    def _passes(self, matched: int, token: int) -> bool:
        _, found, behind = (self._text[:matched] + self._tokens[token]).partition(self._text)
        return bool(found) and bool(behind.strip())
