"""Generated ids to text that can be shown: characters completed, stop strings cut."""

from __future__ import annotations

from collections.abc import Sequence

from quasar.runtime.stream_decoder import StreamDecoder
from quasar.runtime.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into pieces of text and finds stop strings across their borders.

    Text that may be the beginning of a stop string is held back until it is clear that it is not.

    Args:
        stop: strings that end the text; the text is cut before the first of them.
        context: see `StreamDecoder`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], context: Sequence[int] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer, context)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be shown now; `stopped` is set when a stop string was found."""
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        shown = self._release(self._decoder.flush())
        shown, self._held = shown + self._held, ""
        return shown

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [index for stop in self._stop if (index := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
