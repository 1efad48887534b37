"""Fields of a JSON body, each read with its type and its bounds; what is wrong names its field."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast

from quasar.runtime.serving.openai.errors import RequestError

T = TypeVar("T")

NEAR = 0.8
"""How alike an unknown name must be to a known one to be taken for a slip of the pen."""


class Body:
    """A JSON object of a request. Null is as good as absent, which is what clients mean by it.

    Args:
        where: the path of the object in the request, as a prefix of its fields' names.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    @property
    def values(self) -> Mapping[str, Any]:
        """All fields."""
        return self._values

    def refuse(self, name: str, message: str) -> NoReturn:
        """Blame a field.

        Raises:
            RequestError: always.
        """
        param = self._where + name
        raise RequestError(f"{param}: {message}", param=param)

    def check_names(self, known: Collection[str]) -> None:
        """Refuse what is nearly a known name; other unknown names are taken for those of a newer API."""
        for name in self._values:
            if name not in known and (near := difflib.get_close_matches(name, known, 1, NEAR)):
                self.refuse(name, f"there is no such field; did you mean {near[0]}?")

    def has(self, name: str) -> bool:
        """Whether there is a value."""
        return self._values.get(name) is not None

    def get(self, name: str) -> Any:
        """Whatever there is; None where there is nothing."""
        return self._values.get(name)

    def text(self, name: str, default: str = "") -> str:
        """Text."""
        return self._of(name, default, lambda value: isinstance(value, str), "give text")

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self._of(name, default, lambda value: isinstance(value, bool), "give true or false")

    def integer(self, name: str, default: Any, least: int = 0, most: int | None = None) -> Any:
        """A whole number; some clients write it as 16.0."""
        limits = f"of at least {least}" if most is None else f"of {least} to {most}"
        value = self._of(name, default, _is_whole, f"give a whole number {limits}")
        if self.has(name) and not least <= value <= (value if most is None else most):
            self.refuse(name, f"is {_short(value)}; give a whole number {limits}")
        return value if value is None else int(value)

    def number(self, name: str, default: Any, least: float, most: float) -> Any:
        """A number."""
        value = self._of(name, default, _is_number, f"give a number of {least:g} to {most:g}")
        if self.has(name) and not least <= value <= most:
            self.refuse(name, f"is {_short(value)}; give a number of {least:g} to {most:g}")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of some words."""
        return self._of(name, default, lambda value: value in choices, f"give {', '.join(choices)}")

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A list of objects; empty where there is none."""
        return self._of(name, list[dict[str, Any]](), lambda value: _all(value, dict), "give a list of objects")

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        nothing: dict[str, Any] | None = None
        return self._of(name, nothing, lambda value: isinstance(value, dict), "give an object")

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Text, or a list of texts."""
        value: Any = self._of(name, [], lambda found: isinstance(found, str) or _all(found, str), "give text, or a list of texts")
        found = (value,) if isinstance(value, str) else tuple(value)
        if len(found) > most:
            self.refuse(name, f"has {len(found)} entries; give {most} at the most")
        return found

    def only(self, name: str, *values: Any, instead: str) -> None:
        """Refuse every value that is not one of these: what cannot be done is not left out in silence."""
        if self.has(name) and self._values[name] not in values:
            self.refuse(name, instead)

    def _of(self, name: str, default: T, fits: Callable[[Any], bool], advice: str) -> T:
        value = self._values.get(name)
        if value is not None and not fits(value):
            self.refuse(name, f"is {_short(value)}; {advice}")
        return default if value is None else cast(T, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value)


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(one, kind) for one in value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestError: it is none.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {_short(value)}; give a JSON object")
    return value
