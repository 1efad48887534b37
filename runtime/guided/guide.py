"""What an answer has to look like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from quasar.engines.errors import UsageError

Kind = Literal["json_object", "json_schema", "regex", "lark"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MOST_CHARACTERS = 1 << 17
"""Of a schema, an expression or a grammar."""


@dataclass(frozen=True)
class Guide:
    """The form of an answer: only tokens that keep to it are chosen, by every engine of the chain.

    Attributes:
        kind: what `text` is.
        text: a JSON schema as JSON, a regular expression, or a grammar in Lark's notation or llama.cpp's (GBNF); empty for
            `json_object`.
        after: text that comes before the form, such as the `</think>` of a model that reasons first. Until it was generated
            the answer is free and cannot end. A prompt that ends with it has it already. Empty where the form holds from the
            first token.

    Raises:
        UsageError: a value that has no meaning. Whether a form can be followed is seen when it is first used.
    """

    kind: Kind
    text: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"guide: kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        for name in ("text", "after"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{self.kind}: {name} is {type(getattr(self, name)).__name__}; give text")
            try:
                getattr(self, name).encode()
            except UnicodeEncodeError as error:
                raise UsageError(f"{self.kind}: {name} is not Unicode at character {error.start}; give UTF-8") from None
        if bool(self.text) == (self.kind == "json_object"):
            raise UsageError(f"{self.kind}: {'it takes no text' if self.text else 'it is empty'}; give what describes the answer")
        if len(self.text) > MOST_CHARACTERS:
            raise UsageError(f"{self.kind}: {len(self.text)} characters; give at most {MOST_CHARACTERS}")
        if self.kind == "json_schema":
            _check_schema(self.text)

    @classmethod
    def json_object(cls, after: str = "") -> Guide:
        """Any JSON object."""
        return cls("json_object", after=after)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, after: str = "") -> Guide:
        """JSON that a schema describes; its properties come in the schema's order."""
        if isinstance(schema, str):
            return cls("json_schema", schema, after)
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False, allow_nan=False), after)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"json_schema: it is no JSON ({error}); give an object") from None

    @classmethod
    def regex(cls, pattern: str, after: str = "") -> Guide:
        """Text that a regular expression matches as a whole."""
        return cls("regex", pattern, after)

    @classmethod
    def lark(cls, grammar: str, after: str = "") -> Guide:
        """Text of a grammar."""
        return cls("lark", grammar, after)


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"json_schema: it is no JSON ({error}); give an object") from None
    if not isinstance(schema, dict):
        raise UsageError(f"json_schema: it is {type(schema).__name__}; give an object: {{'type': 'object', 'properties': ...}}")
