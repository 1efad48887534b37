"""Generated ids to pieces of text, as they come."""

from __future__ import annotations

from collections.abc import Sequence

from quasar.runtime.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
KEPT = 4
"""Tokens that decodings begin with: as many as a character has bytes, so that one that is not complete is among them."""
MOST = 8
"""Tokens that are decoded together before older ones are left out."""


class StreamDecoder:
    """Turns a growing sequence of ids into pieces of text whose concatenation is the text of the whole.

    A token may read differently alone than after its neighbours, so the last few are decoded together. Held back is what
    later tokens can still change: the bytes of a character that is not complete, and a run of byte tokens (`<0xE6>`), which
    as a whole is characters or, where it is not UTF-8, as many U+FFFD.

    Args:
        context: ids of the text that this one continues. Some tokenizers drop the space before a text's first word, which
            is wanted when the text goes on.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = _end(tokenizer, context)
        self._given = len(tokenizer.decode(self._ids))  # characters of their text that were given out

    def push(self, token: int) -> str:
        """The text that `token` completes; may be empty."""
        if not self._tokenizer.has_text(token):
            return ""
        self._ids.append(token)
        if self._tokenizer.is_byte(token):
            return ""
        text = self._tokenizer.decode(self._ids)
        piece = self._give(text, len(text) - text.endswith(REPLACEMENT))
        if len(self._ids) >= MOST:
            self._forget(len(text) - self._given)
        return piece

    def flush(self) -> str:
        """What is left: a character that was never completed, or a run of bytes."""
        text = self._tokenizer.decode(self._ids)
        return self._give(text, len(text))

    def _give(self, text: str, end: int) -> str:
        """What was not given out of `text` before `end`, which counts as given from now on."""
        piece = text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _forget(self, held: int) -> None:
        """Leave out all but the last tokens; `held` characters at their end were not given out.

        They must have a text of their own: what is special about a text's beginning then lies before what comes.
        """
        kept = self._ids[-KEPT:]
        if text := self._tokenizer.decode(kept):
            self._ids, self._given = kept, len(text) - held


def _end(tokenizer: Tokenizer, context: Sequence[int]) -> list[int]:
    """The last tokens of a text, a whole run of bytes at its beginning, or all where those have no text."""
    ids: list[int] = []
    for token in reversed(context):
        if tokenizer.has_text(token):
            ids.append(token)
            if len(ids) >= KEPT and not tokenizer.is_byte(token) and tokenizer.decode(ids[::-1]):
                break
    return ids[::-1]
