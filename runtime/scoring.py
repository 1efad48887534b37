"""Scoring texts: how likely each of their tokens is after those before it, to the chain's last engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import zip_longest

from quasar.engines.engine import Float32
from quasar.engines.errors import UsageError
from quasar.runtime.answer import Logprob, logprob_of
from quasar.runtime.chain.cached import Wanted
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.prompt import ContextLengthError, token_ids
from quasar.runtime.sampling import MAX_LOGPROBS

# rows of logits of a pass: with a large vocabulary, each is more than half a megabyte
MOST_ROWS = 64
INTERRUPTED = "the pass that scored the text was interrupted; score it again"


@dataclass(frozen=True)
class Text:
    """Token ids, of which those from `start` on are scored.

    Attributes:
        start: at least 1, since nothing says how likely a first token is.

    Raises:
        UsageError: these are no ids, or that is no place among them.
    """

    ids: Many[int]
    start: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.ids, (str, bytes)):
            raise UsageError(f"the text is {type(self.ids).__name__}; give token ids")
        if not 1 <= self.start <= len(self.ids):
            raise UsageError(f"start is {self.start} in a text of {len(self.ids)} tokens; give 1 to {len(self.ids)}")


class Scoring:
    """A text that is being scored. It waits for a slot as an answer does, and has it until all is read.

    Args:
        top: how many of the likeliest tokens to note at each place.

    Raises:
        UsageError: too many.
    """

    def __init__(self, text: Text, top: int) -> None:
        if not 0 <= top <= MAX_LOGPROBS:
            raise UsageError(f"top is {top}; give 0 to {MAX_LOGPROBS}")
        self.tokens = list(text.ids)
        self.start = text.start
        self.slot = -1
        self.logprobs: list[Logprob] = []
        self.error: Exception | None = None
        self._top = top
        self._cancelled = False

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self._cancelled or self.error is not None or len(self.logprobs) == len(self.tokens) - self.start

    def cancel(self) -> None:
        """End it; any thread may."""
        self._cancelled = True

    def fail(self, error: Exception) -> None:
        """End it, because something went wrong."""
        if not self.done:
            self.error = error

    def take(self, logits: Float32) -> None:
        """Note the next tokens.

        Args:
            logits: float32 [R, V], each row that of the token before.
        """
        for row in logits:
            token = self.tokens[self.start + len(self.logprobs)]
            self.logprobs.append(logprob_of(row, token, self._top))


class Scorer:
    """Reads texts that have a slot, in passes of the chain's last engine. The engines before it see nothing of them."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._cached = verifier.cached
        self._open: list[Scoring] = []

    @property
    def open(self) -> int:
        """Texts that have a slot."""
        return len(self._open)

    def join(self, text: Scoring, slot: int) -> None:
        """Let a text have a slot. What the slot holds of its beginning is kept; what is to be scored is read in any case."""
        text.slot = slot
        # also of the others: an engine may write into the cache of the last one, and would find this text in it
        for level in self._verifier.levels():
            level.cached.truncate(slot, min(level.cached.shared(slot, text.tokens), text.start - 1))
        self._open.append(text)

    def step(self, budget: int) -> None:
        """One pass.

        Args:
            budget: the most tokens of it.
        """
        parts = list(self._parts(budget))
        if not parts:
            return
        scores = self._cached.score([wanted for _, wanted in parts])
        for feed, (text, wanted) in enumerate(parts):
            if wanted.rows:
                text.take(scores.logits(feed))

    def end(self) -> list[int]:
        """Let go of texts that are done; their slots."""
        done = [text.slot for text in self._open if text.done]
        self._open = [text for text in self._open if not text.done]
        return done

    def fail(self, error: Exception) -> None:
        """End the texts with an error."""
        for text in self._open:
            text.fail(error)

    def _parts(self, tokens: int) -> Iterator[tuple[Scoring, Wanted]]:
        """What a pass reads of each text, in order of arrival."""
        rows = MOST_ROWS
        for text in self._open:
            begin, scored = self._cached.filled(text.slot), text.start - 1 + len(text.logprobs)
            end = min(begin + tokens, scored + rows, len(text.tokens) - 1)  # nothing follows the last token
            if end > begin:
                wanted = max(end - scored, 0)
                tokens, rows = tokens - (end - begin), rows - wanted
                yield text, Wanted(text.slot, text.tokens, end, [], wanted)


def score_all(
    texts: Many[Scoring], slots: int, add: Callable[[Scoring], None], until: Callable[[Callable[[], bool]], None]
) -> list[list[Logprob]]:
    """Let texts wait for slots, until all are scored.

    Args:
        add: lets one wait.
        until: runs steps until something holds.

    Raises:
        Exception: that went wrong with one of them.
    """
    try:
        for one in in_runs(texts, slots):
            add(one)
        until(lambda: all(one.done for one in texts))
    finally:
        for one in texts:
            one.cancel()
    for error in (one.error for one in texts if one.error is not None):
        raise error
    return [one.logprobs for one in texts]


def in_runs(texts: Many[Scoring], slots: int) -> list[Scoring]:
    """The texts in an order in which those that begin alike come to the same slot, one after the other."""
    order = sorted(texts, key=lambda text: text.tokens)
    length = -(-len(order) // slots)
    runs = [order[slot * length : (slot + 1) * length] for slot in range(slots)]
    return [text for column in zip_longest(*runs) for text in column if text is not None]


def check_text(text: Text, vocab_size: int, max_length: int) -> Text:
    """The text as plain ids.

    Raises:
        UsageError: it does not fit the context, or holds ids outside the vocabulary.
    """
    ids = token_ids(text.ids, vocab_size)
    if len(ids) - 1 > max_length:  # the last one is not read
        raise ContextLengthError(
            f"the text has {len(ids)} tokens and the bundle a context of {max_length}; shorten it, or export with a larger "
            "--max-length"
        )
    return Text(ids, text.start)
