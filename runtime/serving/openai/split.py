"""A growing text split into what it is: reasoning, calls of functions, and the answer itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from quasar.runtime.serving.openai.tools import Call, read_calls
from quasar.runtime.text import overlap

Kind = Literal["content", "reasoning", "call"]
THINK, THOUGHT = "<think>", "</think>"
CALL, CALLED = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Delta:
    """What was added to an answer: text of a kind, or a call."""

    kind: Kind
    text: str = ""
    call: Call | None = None


class Splitter:
    """Takes an answer's text as it comes. What may be the beginning of a marker is held back until it is clear.

    Args:
        thinks: whether the model writes its reasoning between `<think>` and `</think>`.
        thinking: whether the prompt ends within such a text.
        functions: names of those that may be called.
    """

    def __init__(self, thinks: bool = False, thinking: bool = False, functions: Collection[str] = ()) -> None:
        self._thinks = thinks
        self._functions = functions
        self._inside: Kind = "reasoning" if thinking else "content"
        self._held = ""
        self._begun = False  # whether the part that runs now has shown anything

    def push(self, text: str, last: bool = False) -> list[Delta]:
        """What can be told apart now.

        Args:
            last: whether this is the end of the text.
        """
        self._held += text
        found: list[Delta] = []
        while (cut := self._cut(last)) is not None:
            shown, rest, following = cut
            found += self._show(shown, following is None)
            self._held = rest
            if following is None:
                break
            self._inside, self._begun = following, False
        return found

    def _cut(self, last: bool) -> tuple[str, str, Kind | None] | None:
        """(text of the part that runs, the rest, the part that follows; None where this one goes on); None for nothing yet."""
        text = self._held
        if self._inside == "call":
            place = text.find(CALLED)
            if place >= 0:
                return text[:place], text[place + len(CALLED) :], "content"
            return (text, "", None) if last and text else None
        places = [(place, marker, following) for marker, following in self._markers() if (place := text.find(marker)) >= 0]
        if places:
            place, marker, following = min(places)
            if marker != THINK or not text[:place].strip():
                return text[:place], text[place + len(marker) :], following
        if last:
            return (text, "", None) if text else None
        if self._inside == "content" and not self._begun and self._may_be_call(text.lstrip()):
            return None
        keep = max((overlap(text, marker) for marker, _ in self._markers()), default=0)
        if self._begun or text[: len(text) - keep].strip():
            return (text[: len(text) - keep], text[len(text) - keep :], None) if len(text) > keep else None
        return None  # spaces alone may stand before a marker

    def _markers(self) -> list[tuple[str, Kind]]:
        if self._inside == "reasoning":
            return [(THOUGHT, "content")]
        thought: list[tuple[str, Kind]] = [(THINK, "reasoning")] if self._thinks and not self._begun else []
        return [*thought, (CALL, "call")] if self._functions else thought

    def _may_be_call(self, text: str) -> bool:
        """Whether an answer that begins so may be a call without a marker."""
        if not self._functions or not text:
            return False
        return text[0] in "{[" or any(name.startswith(text) or text.startswith(name) for name in self._functions)

    def _show(self, text: str, ended: bool) -> list[Delta]:
        if self._inside == "call":
            return self._call(text, CALL + text + ("" if ended else CALLED))
        if not self._begun:
            text = text.lstrip() if self._thinks or self._functions else text
            if self._inside == "content" and self._may_be_call(text):
                return self._call(text, text)
        if not text:
            return []
        self._begun = True
        return [Delta(self._inside, text)]

    def _call(self, text: str, otherwise: str) -> list[Delta]:
        """Calls, or what they would be as text."""
        calls = read_calls(text, self._functions)
        if calls:
            return [Delta("call", call=call) for call in calls]
        self._begun = True
        return [Delta("content", otherwise)] if otherwise else []
