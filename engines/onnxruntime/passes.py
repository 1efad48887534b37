"""Feeds as runs of a session: the inputs of each, and the slots whose caches are bound to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quasar.engines.engine import Feed, Int64, Spans

SMALLEST_TILE = 32
"""Fewest queries that ONNX Runtime's attention takes at a time: twice the width of a head, less where L2 is small."""
LAYOUTS = 64
"""Layouts of passes that are kept: while sequences are generated, one pass is much like the last."""
Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Pass:
    """One run of the session.

    Attributes:
        inputs: by name, beside the caches.
        slot: the first slot whose cache is bound.
        slots: how many are, one behind the other.
        rows: rows of logits that come out.
    """

    inputs: Inputs
    slot: int
    slots: int
    rows: int


def packed_passes(feeds: Sequence[Feed], capacity: int) -> tuple[list[Pass], Spans]:
    """Runs of a packed graph: (as few as possible, each feed's rows among those of all runs).

    The attention operator pads every slot to the longest feed, and refuses a slot whose padded end lies beyond its cache
    though nothing is written there. Such feeds go into a run of their own.

    Args:
        capacity: positions of a slot.
    """
    passes: list[Pass] = []
    spans: list[tuple[int, int]] = [(0, 0)] * len(feeds)
    left = sorted(range(len(feeds)), key=lambda i: -len(feeds[i].tokens))
    done = 0
    while left:
        width = len(feeds[left[0]].tokens)
        together = [i for i in left if feeds[i].start + width <= capacity]
        left = [i for i in left if feeds[i].start + width > capacity]
        one = _ragged(feeds, together, done, spans)
        passes.append(_in_rectangle(one, width))
        done += one.rows
    return passes, spans


def ragged_passes(feeds: Sequence[Feed]) -> tuple[list[Pass], Spans]:
    """The run of a graph whose attention is ours, and each feed's rows among those of it."""
    spans: list[tuple[int, int]] = [(0, 0)] * len(feeds)
    return [_ragged(feeds, range(len(feeds)), 0, spans)], spans


def without_lone_row(feed: Feed) -> Feed:
    """The same feed, its last token twice where attention would compute that one by itself.

    A slot's queries are taken in tiles, which have an even number of rows; a tile of one row goes through another kernel.
    """
    count = len(feed.tokens)
    lone = count == 1 or (count > SMALLEST_TILE and count % 2)
    return replace(feed, tokens=np.append(feed.tokens, feed.tokens[-1:])) if lone else feed


def _in_rectangle(one: Pass, width: int) -> Pass:
    """The same run for attention that sees a rectangle of slots."""
    places = tuple((place, int(count)) for place, count in enumerate(one.inputs["lengths"]) if count)
    return replace(one, inputs={**one.inputs, **_layout(places, one.slots, width)})


def _ragged(feeds: Sequence[Feed], chosen: Sequence[int], done: int, spans: list[tuple[int, int]]) -> Pass:
    """A run of the chosen feeds: rows side by side in the order of slots, and how many of them are each slot's.

    Args:
        done: rows of logits of earlier runs.
        spans: gets the place of each chosen feed's rows.
    """
    order = sorted(chosen, key=lambda i: feeds[i].slot)
    for i in order:
        spans[i] = (done, len(feeds[i].rows))
        done += len(feeds[i].rows)
    feeds = [feeds[i] for i in order]
    slot, slots = feeds[0].slot, feeds[-1].slot - feeds[0].slot + 1
    lengths, last = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
    rows, positions, first = [], [], 0
    for feed in feeds:
        lengths[feed.slot - slot] = len(feed.tokens)
        last[feed.slot - slot] = feed.end - 1
        rows.append(feed.rows + first)
        positions.append(np.arange(feed.start, feed.end))
        first += len(feed.tokens)
    inputs = {
        "input_ids": np.concatenate([feed.tokens for feed in feeds])[None],
        "lengths": lengths,
        "last": last,
        "positions": np.concatenate(positions)[None],
        "rows": _some(np.concatenate(rows))[None],
    }
    return Pass(inputs, slot, slots, len(inputs["rows"][0]))


@lru_cache(LAYOUTS)
def _layout(feeds: tuple[tuple[int, int], ...], slots: int, width: int) -> Inputs:
    """Where the rows of a pass stand in the rectangle of slots; the inputs that depend on nothing else.

    Args:
        feeds: place among the slots, and tokens.
    """
    # (0, row of the pass) of each place of the rectangle; places that no row fills copy row 0
    to_slots = np.zeros((slots, width, 2), np.int64)
    # (slot, place) of each row of the pass
    to_rows = np.empty((1, sum(count for _, count in feeds), 2), np.int64)
    first = 0
    for place, count in feeds:
        to_slots[place, :count, 1] = np.arange(first, first + count)
        to_rows[0, first : first + count, 0] = place
        to_rows[0, first : first + count, 1] = np.arange(count)
        first += count
    return {"to_slots": to_slots, "to_rows": to_rows}


def single_passes(feeds: Sequence[Feed], context: Int64) -> tuple[list[Pass], Spans]:
    """Runs of a graph that takes one sequence: one for each feed, and each feed's rows among those of all runs.

    Args:
        context: 0, 1, 2, ... to the end of a slot, of which the graph gets as much as is filled.
    """
    passes, spans, done = [], [], 0
    for feed in feeds:
        inputs = {
            "input_ids": feed.tokens[None],
            "start": np.array([feed.start]),
            "rows": _some(feed.rows)[None],
            "context": context[: feed.end],
        }
        rows = len(inputs["rows"][0])
        passes.append(Pass(inputs, feed.slot, 1, rows))
        spans.append((done, len(feed.rows)))
        done += rows
    return passes, spans


def _some(rows: Int64) -> Int64:
    """The wanted rows; one that nobody asked for where there is none, for shapes that no operator stumbles over."""
    return rows if len(rows) else np.zeros(1, np.int64)
