"""Bench results as a table for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from quasar.engines.columns import aligned
from quasar.runtime.bench.report import load, values
from quasar.runtime.bench.report.load import load_rows
from quasar.runtime.bench.report.values import Spread, at, fixed, name, percent

CHAIN_WIDTH = 36  # characters; longer chains go on in the next line
HEADS = (
    ("", "chain"),
    ("exact", "to"),
    ("vs", "float"),
    ("decode", "tok/s"),
    ("", "low..high"),
    ("x", "float"),
    ("x own", "prec."),
    ("x float,", "same p."),
    ("tokens", "/round"),
    ("accep-", "tance"),
    ("out-", "side"),
    ("peak", "MB"),
    ("same as", "float"),
)
GLUED = "\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}"  # a chain in a list is not broken across lines
LEFT = 3  # so many columns are text
LEGEND = """\
exact to: the engine whose distribution the output follows; vs float: lossy if that is not the float model's
decode: tokens/s after the first token; outside: share of the decode time outside engines
same as float: prompts with the tokens of greedy float"""
RATIO_WORDS = {"float": "x float", "own_precision": "x own precision", "float_same_proposer": "x float, same proposer"}


def text_table(results: Mapping[str, Any]) -> str:
    """One line per chain, then what the columns mean and which chain each ratio divides by."""
    chains = values.chains(results)
    if not chains:
        return "\n".join(["no chain was measured", *_remarks(results)])
    lines = _table(HEADS, [row for chain in chains for row in _rows(chain)], LEFT)
    loaded = [row for point in load_rows(results) for row in _wrapped(point)]
    under_load = ["", *_table(load.TERMINAL_HEADS, loaded, 1), "", *load.LEGEND.splitlines()] if loaded else []
    return "\n".join([*lines, "", *_footnotes(results), *under_load, *_remarks(results)])


def _rows(chain: Mapping[str, Any]) -> list[list[str]]:
    """The line of a chain, and lines for what is left of a long name."""
    decode, span = Spread.of(at(chain, "decode")).texts()
    agreement = at(chain, "agreement")
    cells = [
        name(at(chain, "chain")) + (" *" if at(chain, "asked") is False else ""),
        name(at(chain, "target")),
        values.loss(chain),
        decode,
        span.replace(" to ", "..") or values.UNKNOWN,
        *(fixed(at(chain, "ratios", ratio, "decode", "median"), 2) for ratio in values.RATIOS),
        fixed(at(chain, "tokens_per_round"), 2),
        percent(at(chain, "acceptance_rate")),
        percent(at(chain, "outside_share")),
        fixed(at(chain, "peak_memory_mb"), 0),
        values.count(at(agreement, "identical"), at(agreement, "prompts")).replace(" of ", "/"),
    ]
    return _wrapped(cells)


def _wrapped(cells: list[str]) -> list[list[str]]:
    """A line whose first cell is a chain, and lines for what is left of a long one."""
    first, *rest = textwrap.wrap(cells[0], CHAIN_WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]
    return [[first, *cells[1:]], *([part] + [""] * (len(cells) - 1) for part in rest)]


def _table(heads: Sequence[tuple[str, str]], rows: list[list[str]], left: int) -> list[str]:
    """Aligned lines under two lines of heads; the first `left` columns are text."""
    lines = aligned([*map(list, zip(*heads, strict=True)), *rows], left)
    return [*lines[:2], "-" * max(map(len, lines)), *lines[2:]]


def _footnotes(results: Mapping[str, Any]) -> list[str]:
    """Every denominator by name, and what the columns mean."""
    lines = [line for ratio, words in RATIO_WORDS.items() for line in _denominators(words, values.denominators(results, ratio))]
    if any(at(chain, "asked") is False for chain in values.chains(results)):
        lines.append("*: not asked for, measured as a denominator")
    return [*lines, *LEGEND.splitlines()]


def _denominators(words: str, found: dict[str, list[str]]) -> list[str]:
    """One line per denominator. Chains are listed where the reader could not tell; the largest group is `the others`."""
    largest = max(found, key=lambda below: len(found[below]), default=None)
    lines = []
    for below, above in sorted(found.items(), key=lambda pair: pair[0] == largest):
        if len(found) == 1:
            lines.append(f"{words}: over {below}")
        elif below == largest and len(above) > 1:
            lines.append(f"{words}: over {below} for the others")
        else:
            text = f"{words}: over {below} for {', '.join(above)}"
            kept = textwrap.wrap(text.replace(" > ", GLUED), 130, subsequent_indent="  ", break_on_hyphens=False)
            lines += [line.replace(GLUED, " > ") for line in kept]
    return lines


def _remarks(results: Mapping[str, Any]) -> list[str]:
    """What the reader should know before believing the figures."""
    notes = at(results, "notes")
    lines = [f"note: {name(note)}" for note in notes] if isinstance(notes, (list, tuple)) else []
    if at(results, "interrupted") is True:
        lines.append("interrupted: what is here was measured, the rest is missing")
    return lines
