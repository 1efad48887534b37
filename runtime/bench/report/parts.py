"""What a section of a report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from markupsafe import Markup

from quasar.runtime.bench.report import values


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place: a value, and in small what it ranges over or divides by."""

    text: str | Markup = values.UNKNOWN
    small: str | Markup = ""
    kind: str = ""


@dataclass(frozen=True)
class Head:
    """A column: its name, and in small what it divides by or counts."""

    text: str
    small: str | Markup = ""


@dataclass(frozen=True)
class Table:
    """Heads and rows; the first `left` columns are text. A folded table is opened by a click on its name."""

    heads: list[Head]
    rows: list[list[Cell]]
    left: int = 1
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with a plot, tables, and what they mean."""

    title: str
    text: str | Markup = ""
    figure: Markup | None = None
    tables: list[Table] = field(default_factory=list)
