"""Which tokens an answer may go on with."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Many
from itertools import takewhile

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from quasar.engines.errors import UsageError
from quasar.runtime.guided.marker import Bools, Marker


class Form:
    """A compiled guide.

    Args:
        matcher: of llguidance, at its beginning.
        tokenizer: of llguidance.
        vocab_size: of the model's logits.
        ends: tokens that end an answer.
        marker: what comes before the form; None where it holds from the first token.
    """

    def __init__(
        self, matcher: LLMatcher, tokenizer: LLTokenizer, vocab_size: int, ends: Many[int], marker: Marker | None
    ) -> None:
        self._matcher = matcher
        self._lock = threading.Lock()
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.marker = marker
        self.ends = frozenset(ends)
        self.only_ends: Bools = np.zeros(vocab_size, np.bool_)
        self.only_ends[list(ends)] = True

    def begin(self) -> LLMatcher:
        """A matcher of llguidance that has seen nothing."""
        with self._lock:
            return self._matcher.deep_copy()


class Matcher:
    """Follows one answer, and says what may come next.

    It may be asked about any text that begins with the prompt, as it is or as it would be with a draft, in any order: it goes
    back to where that text leaves the one that it knows, and on from there. What it says depends on the text alone, so every
    engine of a chain is told the same.

    Args:
        prompt: its tokens.
        ignore_eos: no end token while anything else may come.
    """

    def __init__(self, form: Form, prompt: Many[int], ignore_eos: bool = False) -> None:
        self._form = form
        self._prompt_length = len(prompt)
        self._ignore_eos = ignore_eos
        self._matcher = form.begin()
        self._bits = allocate_token_bitmask(1, form.tokenizer.vocab_size)
        # what was followed: free text up to `_first`, then tokens of the form, and from `_end` on end tokens
        self._held: list[int] = []
        self._first: int | None = 0 if form.marker is None or form.marker.ends(prompt) else None
        self._end: int | None = None
        self._matched = [0]  # bytes of the marker, after so many tokens of free text
        self._always = self._first == 0
        self._mask: Bools | None = None
        self._problem = ""

    def allowed(self, tokens: Many[int]) -> Bools:
        """The tokens that may follow, bool [V], not to be written to.

        Where none may, end tokens: `ended` then says what is wrong with them.

        Args:
            tokens: prompt, output and drafted prefix.
        """
        if not self._follow(tokens):
            return self._form.only_ends
        if self._mask is None:
            self._mask = self._compute()
        return self._mask

    def forced(self, tokens: Many[int]) -> tuple[list[int], list[int]]:
        """(tokens that follow because nothing else may, likely ones behind them: the usual ones for text that follows)."""
        if not self._follow(tokens) or self._first is None or self._end is not None:
            return [], []
        certain = self._matcher.compute_ff_tokens()
        usual = self._form.tokenizer.tokenize_bytes(self._matcher.compute_ff_bytes())
        if usual[: len(certain)] != certain:
            usual = certain
        usual = list(takewhile(lambda token: token < self._form.vocab_size, usual))
        return usual[: len(certain)], usual[len(certain) :]

    def kept(self, tokens: Many[int], draft: Many[int]) -> int:
        """How much of a draft may follow, at the most; of free text all of it."""
        if not self._follow(tokens) or self._end is not None:
            return 0
        return len(draft) if self._first is None else self._matcher.validate_tokens(list(draft))

    def ended(self, tokens: Many[int]) -> bool:
        """Whether the form is complete and nothing may follow.

        Raises:
            UsageError: the last token does not keep to the form, because none does.
        """
        if not self._follow(tokens):
            text = self._form.tokenizer.decode_str(self._held[-16:])
            reason = self._problem or "no token of the model can come next"
            raise UsageError(f"the answer cannot keep to its form after {text!r}: {reason}; loosen the form")
        return self._end is not None or (self._first is not None and self._matcher.is_stopped())

    def _follow(self, tokens: Many[int]) -> bool:
        """Go to the end of a text; whether all of it keeps to the form."""
        new = list(tokens[self._prompt_length :])
        held = self._held
        if new[: len(held)] != held:
            pairs = enumerate(zip(held, new, strict=False))
            self._rewind(next((i for i, (mine, theirs) in pairs if mine != theirs), len(new)))
        return all(self._push(token) for token in new[len(held) :])

    def _push(self, token: int) -> bool:
        """One token further, if it keeps to the form."""
        form = self._form
        if self._first is None:
            assert form.marker is not None
            if token in form.ends:
                return False
            matched = form.marker.follow(self._matched[-1], token)
            if matched is None:
                self._first = len(self._held) + 1
            else:
                self._matched.append(matched)
        elif token in form.ends and (self._end is not None or self._matcher.is_accepting()):
            self._end = len(self._held) if self._end is None else self._end
        elif self._end is not None or self._matcher.try_consume_tokens([token]) != 1:
            self._recover()
            return False
        self._held.append(token)
        self._mask = None
        return True

    def _rewind(self, length: int) -> None:
        """Forget what was followed from `length` on."""
        if length >= len(self._held):
            return
        before = self._consumed
        del self._held[length:]
        if self._end is not None and length <= self._end:
            self._end = None
        if not self._always and (self._first is None or length < self._first):
            self._first = None
            del self._matched[length + 1 :]
        self._mask = None
        back = before - self._consumed
        if back and not self._matcher.rollback(back):
            self._restart()

    @property
    def _consumed(self) -> int:
        """Tokens that llguidance has seen."""
        if self._first is None:
            return 0
        return (len(self._held) if self._end is None else self._end) - self._first

    def _restart(self) -> None:
        """A matcher at the same place; one that failed stays so."""
        self._matcher = self._form.begin()
        if self._first is not None:
            self._matcher.try_consume_tokens(self._held[self._first : self._end])

    def _recover(self) -> bool:
        """Start again where a limit was hit; whether it was."""
        if not self._matcher.is_error():
            return False
        self._problem = self._matcher.get_error().splitlines()[0]
        self._restart()
        return True

    def _compute(self) -> Bools:
        form = self._form
        if self._first is None:
            assert form.marker is not None
            return form.marker.allowed(self._matched[-1])
        if self._end is not None or self._matcher.is_stopped():
            return form.only_ends
        for _ in range(2):  # limits are of what is new, and some of it is not when it is asked again
            fill_next_token_bitmask(self._matcher, self._bits)
            if not self._recover():
                break
        else:
            return form.only_ends
        bits = self._bits.view(np.uint8).reshape(-1)
        allowed: Bools = np.unpackbits(bits, count=form.vocab_size, bitorder="little").view(np.bool_)
        if self._ignore_eos:
            others = allowed & ~form.only_ends
            allowed = others if others.any() else allowed
        return allowed if allowed.any() else form.only_ends
