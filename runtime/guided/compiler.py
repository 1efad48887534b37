"""Guides for one model: its tokenizer, and what was compiled for it."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.runtime.guided.guide import Guide
from quasar.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from quasar.runtime.guided.matcher import Form, Matcher

EXTRA = "pip install 'quasar-toolchain[guided]'"
MOST_FORMS = 64
"""Compiled forms that are kept, those that cannot be compiled among them."""
LIMITS: dict[str, int | bool] = {
    "max_grammar_size": 20_000,
    "max_lexer_states": 20_000,
    "step_lexer_fuel": 100_000,
    "verbose_errors": False,  # they would hold the whole state
}
"""Of llguidance's parser, beside its own: symbols, states of a kilobyte or two, and steps for a token, 14 000 of which take a
millisecond."""
ADVICE = {
    "json_object": "report this",
    "json_schema": "write the schema without it, or smaller",
    "regex": "give a regular expression without look-around and back-references",
    "lark": "give a grammar in Lark's notation with a rule start, or in llama.cpp's with a rule root",
}


class Guides:
    """Compiles guides when they are first asked for. Any thread may ask.

    Args:
        vocab_size: of the model's logits.
        ends: the model's own end tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = sorted(end for end in ends if end < vocab_size)
        self._forms: OrderedDict[Guide, Form | UsageError] = OrderedDict()  # that was asked for last comes last
        self._read: LLTokenizer | None = None
        self._tokens: list[bytes] = []
        self._looking = threading.Lock()
        self._compiling = threading.Lock()

    def compile(self, guide: Guide) -> Form:
        """A guide for this model's tokens; what was compiled before is at hand.

        Raises:
            UsageError: it cannot be followed, or llguidance is not installed.
        """
        form = self._known(guide)
        if form is None:
            with self._compiling:
                form = self._known(guide) or self._try(guide)
        if isinstance(form, UsageError):
            raise UsageError(str(form))
        return form

    def matcher(self, guide: Guide, prompt: Many[int], ignore_eos: bool = False) -> Matcher:
        """What checks an answer; see `Matcher`."""
        form = self.compile(guide)
        from quasar.runtime.guided.matcher import Matcher

        return Matcher(form, prompt, ignore_eos)

    def _known(self, guide: Guide) -> Form | UsageError | None:
        with self._looking:
            if guide in self._forms:
                self._forms.move_to_end(guide)
            return self._forms.get(guide)

    def _try(self, guide: Guide) -> Form | UsageError:
        form: Form | UsageError
        try:
            form = self._compile(guide)
        except UsageError as error:  # the same again would take as long
            form = error
        with self._looking:
            self._forms[guide] = form
            if len(self._forms) > MOST_FORMS:
                self._forms.popitem(last=False)
        return form

    def _compile(self, guide: Guide) -> Form:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError as error:
            raise UsageError(f"guided answers need llguidance ({first_line(error)}): {EXTRA}") from None
        from quasar.runtime.guided.marker import Marker
        from quasar.runtime.guided.matcher import Form
        from quasar.runtime.guided.trial import compile_apart

        if not self._ends:
            raise UsageError("guided answers need an end token, and the bundle names none; export a model that has one")
        grammar = _grammar(guide)
        reason = compile_apart(grammar, LIMITS)
        if reason is None:
            raise UsageError(f"{guide.kind}: it is too large or too deep to be compiled in time; make it simpler")
        read = self._read = self._read or self._read_tokenizer()
        limits = LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        matcher = LLMatcher(read, grammar, log_level=0, limits=limits)
        if reason := reason or matcher.get_error():
            raise UsageError(f"{guide.kind}: {_explain(guide, reason)}; {ADVICE[guide.kind]}")
        marker = Marker(guide.after.encode(), self._contents(read), self._ends) if guide.after else None
        return Form(matcher, read, self._vocab_size, self._ends, marker)

    def _read_tokenizer(self) -> LLTokenizer:
        """The tokenizer as llguidance knows it."""
        from llguidance import LLTokenizer

        size = max(self._vocab_size, 1 + max(self._tokenizer.vocabulary.values()))
        try:
            return LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=self._ends)
        except Exception as error:  # the binding raises plain Exception
            raise QuasarError(f"guided answers: llguidance cannot read the bundle's tokenizer ({first_line(error)})") from None

    def _contents(self, read: LLTokenizer) -> list[bytes]:
        """The bytes of every token."""
        self._tokens = self._tokens or [read.decode_bytes([token]) for token in range(self._vocab_size)]
        return self._tokens


def _grammar(guide: Guide) -> str:
    """A guide as llguidance takes it."""
    from llguidance import LLMatcher

    if guide.kind == "regex":
        return LLMatcher.grammar_from_regex(guide.text)
    if guide.kind == "lark":
        return LLMatcher.grammar_from_lark(_as_lark(guide.text))
    schema = guide.text or '{"type": "object"}'
    try:
        # without white space between its parts, much of JSON follows from the schema, and no model goes on with spaces for ever
        return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
    except ValueError as error:
        raise UsageError(f"{guide.kind}: {first_line(error)}; {ADVICE[guide.kind]}") from None


def _as_lark(text: str) -> str:
    """A grammar in Lark's notation."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # of its own kind, and what any parser that recurses raises
        raise UsageError(f"lark: {first_line(error)}; {ADVICE['lark']}") from None


def _explain(guide: Guide, reason: str) -> str:
    """One line of what llguidance says: what is wrong, and where."""
    lines = reason.splitlines()
    said = re.search(r"^error: (.*)", reason, re.MULTILINE)
    line = said[1] if said else lines[0]
    if guide.kind == "regex":
        text = guide.text if len(guide.text) <= 60 else f"{guide.text[:57]}..."
        return f"{line.rpartition('(in regex): ')[2]} in {text!r}"
    if guide.kind == "lark":
        where = re.match(r"(?:at )?(\d+)\((\d+)\): ", lines[0])
        return f"line {where[1]}, column {where[2]}: {line.removeprefix(where[0])}" if where else line
    named = {lines[1].strip()} if said else set(re.findall(r"[^\s\"'`,()\[\]]+", line.rpartition(": ")[2]))
    place = next(_places(json.loads(guide.text or "{}"), named), "")
    return f"{line} at {place}" if place else line


def _places(value: object, names: set[str], here: str = "$") -> Iterator[str]:
    """Where a schema has one of these words as a key or a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        place = f"{here}.{key}" if isinstance(value, dict) else f"{here}[{key}]"
        if key in names or (isinstance(part, str) and part in names):
            yield place
        yield from _places(part, names, place)
