"""Chains under load: a plot, tables for the page, lines for the terminal, and a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from quasar.runtime.bench.report import plots, values
from quasar.runtime.bench.report.parts import Cell, Head, Section, Table
from quasar.runtime.bench.report.summary import code
from quasar.runtime.bench.report.values import Spread, at, fixed, name, number, percent, rows, significant

TEXT = (
    "All prompts, with so many answers in flight: a new one begins as soon as one ends. Tokens/s are the new tokens of all "
    "answers together over the time of the whole batch, prefills included, and its end, where fewer are open; in small: how many "
    "were open on average. Each ratio is of one repeat; grey where the range contains 1. "
    "Between tokens is the time between rounds that gave an answer tokens: several that came at once count once."
)
TERMINAL_HEADS = (
    ("at once:", "chain"),
    ("", "N"),
    ("all", "tok/s"),
    ("", "low..high"),
    ("x same,", "N=1"),
    ("x target,", "same N"),
    ("first ms", "(p95)"),
    ("between ms", "(p95)"),
    ("tokens", "/round"),
    ("draft", "length"),
    ("skipped", ""),
    ("out-", "side"),
)
LEGEND = """\
N: answers at once; all tok/s: new tokens over the time of all prompts; first: to the first token; between: between rounds
x same, N=1: over the same chain with one answer at a time; x target, same N: over its last engine alone, with as many answers
draft length: tokens proposed a round, of each verifier; skipped: rounds of the next verifier that did without it"""


def load_section(results: Mapping[str, Any]) -> Section | None:
    """The section of the page."""
    points = rows(results, "load", "points")
    if not points:
        return None
    speeds = [
        [
            Cell(code(at(point, "chain")), "only a denominator" if at(point, "asked") is False else ""),
            Cell(fixed(at(point, "concurrency"), 0), f"{significant(at(point, 'in_flight'), 2)} open"),
            Cell(*Spread.of(at(point, "tokens_per_second")).texts()),
            _ratio(at(point, "ratios", "one_at_a_time")),
            _ratio(at(point, "ratios", "target_alone"), named=True),
            _times(at(point, "first_token_ms")),
            _times(at(point, "between_tokens_ms")),
        ]
        for point in points
    ]
    heads = [
        Head("Chain"),
        Head("At once", "answers"),
        Head("Tokens/s", "all together"),
        Head("\N{MULTIPLICATION SIGN} one at a time", "over the same chain, 1 at once"),
        Head("\N{MULTIPLICATION SIGN} last engine alone"),
        Head("First token", "ms, median"),
        Head("Between tokens", "ms, median"),
    ]
    return Section("Load", TEXT, plots.load_lines(results), [Table(heads, speeds), _rounds(points)])


def _ratio(data: object, *, named: bool = False) -> Cell:
    """A ratio and its range; its denominator, too, where the column does not name it."""
    spread = Spread.of(data)
    middle, ends = spread.texts(2)
    if spread.middle is None:
        return Cell()
    words = Markup('<span class="over">over {}, {} at once</span>')
    over = words.format(code(at(data, "chain")), fixed(at(data, "concurrency"), 0)) if named else ""
    return Cell(middle, Markup("{}{}").format(ends, over), kind="level" if spread.spans_one else "")


def _times(data: object) -> Cell:
    high = number(at(data, "p95"))
    return Cell(significant(at(data, "median")), "" if high is None else f"p95 {significant(high)}")


def _rounds(points: list[Mapping[str, Any]]) -> Table:
    """Of every point and verifier: what speculation did there."""
    heads = [
        Head("Chain"),
        Head("Engine"),
        Head("At once", "answers"),
        Head("Tokens/round"),
        Head("Draft length", "tokens a round"),
        Head("Accepted", "of proposed"),
        Head("Skipped", "rounds of the next engine without it"),
        Head("Outside"),
    ]
    lines = [line for point in points for line in _levels(point)]
    return Table(heads, lines, left=2, folded="Rounds, drafts and skipped engines by load")


def _levels(point: Mapping[str, Any]) -> Iterator[list[Cell]]:
    """A line for each verifier; what is of the whole chain stands with the last."""
    levels = rows(point, "levels")
    for place, level in enumerate(levels, start=1):
        last = place == len(levels)
        yield [
            Cell(code(at(point, "chain"))),
            Cell(code(at(level, "engine"))),
            Cell(fixed(at(point, "concurrency"), 0)),
            Cell(fixed(at(point, "tokens_per_round"), 2) if last else ""),
            Cell(fixed(at(level, "draft_length"), 2)),
            Cell(percent(at(level, "acceptance_rate"))),
            Cell(percent(at(level, "skipped_share"))),
            Cell(percent(at(point, "outside_share")) if last else ""),
        ]


def load_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A line for each point, for the terminal."""
    return [_cells(point) for point in rows(results, "load", "points")]


def _cells(point: Mapping[str, Any]) -> list[str]:
    speed, span = Spread.of(at(point, "tokens_per_second")).texts()
    levels = rows(point, "levels")
    return [
        name(at(point, "chain")) + (" *" if at(point, "asked") is False else ""),
        fixed(at(point, "concurrency"), 0),
        speed,
        span.replace(" to ", "..") or values.UNKNOWN,
        fixed(at(point, "ratios", "one_at_a_time", "median"), 2),
        fixed(at(point, "ratios", "target_alone", "median"), 2),
        *(_both(at(point, key)) for key in ("first_token_ms", "between_tokens_ms")),
        fixed(at(point, "tokens_per_round"), 2),
        ", ".join(fixed(at(level, "draft_length"), 1) for level in levels) or values.UNKNOWN,
        ", ".join(percent(at(level, "skipped_share"), 0) for level in levels[:-1]) or values.UNKNOWN,
        percent(at(point, "outside_share")),
    ]


def _both(data: object) -> str:
    if number(at(data, "median")) is None:
        return values.UNKNOWN
    return f"{significant(at(data, 'median'))} ({significant(at(data, 'p95'))})"


def _speed(point: Mapping[str, Any]) -> float:
    return Spread.of(at(point, "tokens_per_second")).middle or 0.0


def load_sentence(results: Mapping[str, Any]) -> Markup | None:
    """The fastest of the chains that were asked for, at the highest load."""
    points = [point for point in rows(results, "load", "points") if Spread.of(at(point, "tokens_per_second")).middle is not None]
    points = [point for point in points if number(at(point, "concurrency")) is not None and at(point, "asked") is not False]
    most = max((point["concurrency"] for point in points), default=1)
    if most < 2:
        return None
    best = max((point for point in points if point["concurrency"] == most), key=_speed)
    said = Markup("With {} answers at once, {} is the fastest: {} tokens/s together").format(
        fixed(most, 0), code(at(best, "chain")), Spread.of(at(best, "tokens_per_second")).texts()[0]
    )
    for ratio, words in (("one_at_a_time", "{} times {} with one at a time"), ("target_alone", "{} times {} with as many")):
        found = at(best, "ratios", ratio)
        times = Spread.of(found).texts(2)[0]
        if times != values.UNKNOWN:
            said += Markup(", ") + Markup(words).format(times, code(at(found, "chain")))
    return said + "."
