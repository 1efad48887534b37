"""A suffix tree of bounded depth with occurrence counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_DEPTH = 64


class Node:
    """A string of tokens that occurs in the texts.

    A string that occurs once needs no children: it goes on as its text does. They are made when it occurs again.

    Attributes:
        count: how often it occurs.
        text, position: one occurrence, which goes on with text[position].
        children: by next token; None where they were not needed yet.
    """

    __slots__ = ("children", "count", "position", "text")

    def __init__(self, text: list[int], position: int) -> None:
        self.text = text
        self.position = position
        self.count = 1
        self.children: dict[int, Node] | None = None


class Match(NamedTuple):
    """A string of `length` tokens that occurs in a tree: the one of `node`, and `ahead` more tokens of the node's text."""

    node: Node
    length: int
    ahead: int = 0

    def follow(self, token: int) -> Match | None:
        """The string with one token more; None where that does not occur."""
        node, length, ahead = self
        if node.children is not None:
            child = node.children.get(token)
            return None if child is None else Match(child, length + 1)
        place = node.position + ahead
        if place < len(node.text) and node.text[place] == token:
            return Match(node, length + 1, ahead + 1)
        return None

    def continuation(self) -> Iterator[tuple[int, float]]:
        """(token, probability of the path up to it) along the most frequent continuation.

        Past the end of a text, the match repeats itself.
        """
        node, ahead, probability = self.node, self.ahead, 1.0
        path: list[int] = []
        while node.children:
            token, child = max(node.children.items(), key=_count)
            probability *= child.count / sum(map(_count, node.children.items()))
            yield token, probability
            path.append(token)
            node, ahead = child, 0
        text, place = node.text, node.position + ahead
        if node.children is None:
            path.extend(text[place:])
            for token in text[place:]:
                yield token, probability
        while path:
            for token in path:
                yield token, probability


def _count(item: tuple[int, Node]) -> int:
    return item[1].count


@dataclass
class _Step:
    """What one token changed: enough to take it back."""

    opened: list[Node]
    visited: list[Node] = field(default_factory=list)
    created: list[dict[int, Node]] = field(default_factory=list)
    split: list[Node] = field(default_factory=list)


class SuffixTree:
    """All strings of up to `depth` tokens of some texts, the last of which may grow and shrink at its end.

    A new token extends every suffix that occurred before, and no other: a few for ordinary text, `depth` in a loop.
    """

    def __init__(self, depth: int = MAX_DEPTH) -> None:
        self._root: dict[int, Node] = {}
        self._depth = depth
        self.begin()

    def begin(self) -> None:
        """Begin another text; the one before stays as it is."""
        self._text: list[int] = []
        # suffixes of the text that also occur elsewhere, longest first
        self._open: list[Node] = []
        self._steps: list[_Step] = []

    @property
    def text(self) -> list[int]:
        """The text that grows."""
        return self._text

    def matches(self) -> Iterator[Match]:
        """The suffixes of the text that also occur elsewhere, longest first."""
        count = len(self._open)
        return (Match(node, count - i) for i, node in enumerate(self._open))

    def root_match(self, token: int) -> Match | None:
        """The string of one token."""
        node = self._root.get(token)
        return None if node is None else Match(node, 1)

    def follow(self, matches: Iterable[Match], token: int) -> list[Match]:
        """The strings that go on with a token, and the token itself; longest first, those beyond the depth left out."""
        found = [longer for one in matches if one.length < self._depth and (longer := one.follow(token)) is not None]
        single = self.root_match(token)
        return found if single is None else [*found, single]

    def clear(self) -> None:
        """Take out all texts."""
        self._root.clear()
        self.begin()

    def append(self, token: int) -> None:
        """Add a token at the end of the text."""
        step = _Step(self._open)
        self._open = []
        places = [self._split(node, step) for node in step.opened]
        self._text.append(token)
        end = len(self._text)
        for children in (*places, self._root):
            node = children.get(token)
            if node is None:
                children[token] = Node(self._text, end)
                step.created.append(children)
            else:
                node.count += 1
                step.visited.append(node)
        self._open = step.visited[max(len(step.visited) - self._depth + 1, 0) :]  # strings of the full depth have no children
        self._steps.append(step)

    def rewind(self, length: int) -> None:
        """Take back the tokens of the text from position `length` on."""
        while len(self._text) > length:
            token, step = self._text.pop(), self._steps.pop()
            for children in step.created:
                del children[token]
            for node in step.visited:
                node.count -= 1
            for node in step.split:
                node.children = None
            self._open = step.opened

    def remove(self, text: list[int]) -> None:
        """Take out an earlier text; it must be the very list."""
        for start in range(len(text)):
            children = self._root
            for token in text[start : start + self._depth]:
                node = children[token]
                node.count -= 1
                if node.count == 0:
                    del children[token]
                    break
                if node.children is None:
                    if node.text is text:  # the occurrences that are left ended with their texts
                        node.children = {}
                    break
                children = node.children

    def _split(self, node: Node, step: _Step) -> dict[int, Node]:
        """The children of a string that occurs again."""
        if node.children is None:
            step.split.append(node)
            node.children = {}
            if node.position < len(node.text):
                node.children[node.text[node.position]] = Node(node.text, node.position + 1)
        return node.children
