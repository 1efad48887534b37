"""The plots of a report, as inline SVG. Each is None where there is nothing to draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quasar.runtime.bench.report import values
from quasar.runtime.bench.report.svg import HEAT, INK, MUTED, PAPER, SERIES, draw, legend, plain, short
from quasar.runtime.bench.report.values import Spread, at, fixed, name, number, rows, significant

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR, CELL, PANEL, LEGEND_LINE = 22, 21, 150, 16  # in units of a figure: height of a bar, of a row of cells, of a panel, of a line
MOST_NUMBERED_POSITIONS = 20  # with more columns the numbers would touch
MARKERS = "osD^vPX*"
COLOURS = {"exact": SERIES[0], "lossy": SERIES[1], values.UNKNOWN: SERIES[7]}
MEANINGS = {"exact": "exact relative to float", "lossy": "lossy relative to float", values.UNKNOWN: "not known whether lossy"}
PALE = 0.45  # opacity of a chain that was measured only as a denominator


def decode_bars(results: Mapping[str, Any]) -> Markup | None:
    """Decode speed of every chain with its low and high, the fastest on top."""
    chains = [chain for chain in values.chains(results, fastest_first=True) if values.speed(chain) is not None]
    if not chains:
        return None

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Patch

        axes = figure.subplots()
        spreads = [Spread.of(at(chain, "decode")) for chain in chains]
        ends = [max(end for end in (spread.middle, spread.high) if end is not None) for spread in spreads]
        for place, (chain, spread, end) in enumerate(zip(chains, spreads, ends, strict=True)):
            asked = at(chain, "asked") is not False
            axes.barh(place, spread.middle or 0, height=0.66, color=COLOURS[values.loss(chain)], alpha=1 if asked else PALE)
            if spread.low is not None and spread.high is not None:
                for colour, width in ((PAPER, 3.4), (INK, 1.4)):  # a rim keeps it visible on the bar
                    axes.hlines(place, spread.low, spread.high, color=colour, linewidth=width)
                    axes.vlines([spread.low, spread.high], place - 0.18, place + 0.18, color=colour, linewidth=width)
            axes.annotate(significant(spread.middle), (end, place), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(chains)), [short(name(at(chain, "chain"))) for chain in chains], color=INK)
        axes.set_ylim(len(chains) - 0.5, -0.5)
        axes.set_xlim(0, max(ends) * 1.12 or 1)
        axes.set_xlabel("tokens/s after the first token")
        axes.spines["bottom"].set_visible(False)
        plain(axes, grid="x")
        found = {values.loss(chain) for chain in chains}
        entries = {words: Patch(color=COLOURS[kind]) for kind, words in MEANINGS.items() if kind in found}
        if any(at(chain, "asked") is False for chain in chains):
            entries["pale: only a denominator"] = Patch(color=MUTED, alpha=PALE)
        legend(figure, entries, 3)

    return draw("decode", "Decode speed of each chain in tokens per second", BAR * len(chains) + 80, paint)


def acceptance_map(results: Mapping[str, Any]) -> Markup | None:
    """How often each position of a proposal was accepted, one row per chain and accepting engine."""
    lines = _acceptances(results)
    if not lines:
        return None
    positions = max(len(shares) for _, shares in lines)

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for line, (_, shares) in enumerate(lines):
            for position, share in enumerate(shares):
                if share is None:
                    continue
                corner = (position - 0.5, line - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=HEAT, alpha=min(max(share, 0.04), 1), linewidth=0))
                axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=PAPER, linewidth=1.5))
                if positions <= MOST_NUMBERED_POSITIONS:
                    axes.text(position, line, fixed(100 * share, 0), ha="center", va="center")
        axes.set_yticks(range(len(lines)), [label for label, _ in lines], color=INK)
        axes.set_xticks(range(positions), [str(position + 1) for position in range(positions)])
        axes.set_xlim(-0.5, max(positions, 5) - 0.5)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel("position in the proposal")
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return draw("acceptance", "Percent of rounds that accepted each proposed position", CELL * len(lines) + 60, paint)


def _acceptances(results: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Label and shares of every engine that accepted anything from a proposer."""
    found = []
    for chain in values.chains(results, fastest_first=True):
        levels = [level for level in rows(chain, "levels") if at(level, "acceptance_per_position")]
        for level in levels:
            label = short(name(at(chain, "chain")), 40 if len(levels) == 1 else 32)
            if len(levels) > 1:  # which engine of the chain did the accepting
                label += f": {short(name(at(level, 'engine')), 12)}"
            shares = level["acceptance_per_position"]
            if isinstance(shares, (list, tuple)) and any(number(share) is not None for share in shares):
                found.append((label, [number(share) for share in shares]))
    return found


def step_times(results: Mapping[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Milliseconds of a pass by engine and number of rows: one value for each chain that the engine was measured in."""
    found: dict[str, dict[int, list[float]]] = {}
    for chain in values.chains(results):
        for level in rows(chain, "levels"):
            for count, value in (at(level, "step_ms") or {}).items():
                milliseconds = number(value)
                if milliseconds is not None and str(count).isdecimal():
                    found.setdefault(name(at(level, "engine")), {}).setdefault(int(count), []).append(milliseconds)
    return {engine: dict(sorted(times.items())) for engine, times in found.items()}


def step_lines(results: Mapping[str, Any]) -> Markup | None:
    """What a pass costs by its number of rows: a line through the medians of each engine, a dot for each chain."""
    times = step_times(results)
    if not times:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        entries = {}
        for index, (engine, by_rows) in enumerate(times.items()):
            colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            middles = [statistics.median(found) for found in by_rows.values()]
            entries[short(engine)] = axes.plot(list(by_rows), middles, color=colour, marker=marker)[0]
            dots = [(count, value) for count, found in by_rows.items() for value in found if len(found) > 1]
            if dots:
                across, up = zip(*dots, strict=True)
                axes.scatter(across, up, s=12, color=colour, alpha=0.45, linewidths=0)
        axes.set_xlabel("rows in one pass")
        axes.set_ylabel("milliseconds")
        axes.set_ylim(0, None)
        _whole_numbers(axes)
        plain(axes, grid="y")
        legend(figure, entries)

    return draw("step", "Milliseconds of one pass by its number of rows, for each engine", 260, paint)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single value
        axes.set_xlim(round(low) - 1, round(high) + 1)


def load_lines(results: Mapping[str, Any]) -> Markup | None:
    """Tokens a second of all answers together over how many are in flight: a line for each chain, with low and high."""
    points = [point for point in rows(results, "load", "points") if number(at(point, "concurrency")) is not None]
    points = [point for point in points if Spread.of(at(point, "tokens_per_second")).middle is not None]
    chains = list(dict.fromkeys(name(at(point, "chain")) for point in points))
    if not chains:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        entries: dict[str, Any] = {}
        for index, chain in enumerate(chains):
            own = sorted((point for point in points if name(at(point, "chain")) == chain), key=lambda p: float(p["concurrency"]))
            across = [float(point["concurrency"]) for point in own]
            spreads = [Spread.of(at(point, "tokens_per_second")) for point in own]
            style: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "alpha": PALE if at(own[0], "asked") is False else 1}
            for place, spread in zip(across, spreads, strict=True):
                if spread.low is not None and spread.high is not None:
                    axes.vlines(place, spread.low, spread.high, linewidth=1.2, **style)
            middles = [spread.middle or 0.0 for spread in spreads]
            line = axes.plot(across, middles, marker=MARKERS[index % len(MARKERS)], **style)[0]
            if index >= len(SERIES):
                line.set_linestyle((0, (4, 2)))
            entries[short(chain, 36)] = line
        axes.set_xscale("log", base=2)
        axes.set_xticks(_distinct(points, "concurrency"), [f"{value:g}" for value in _distinct(points, "concurrency")])
        axes.minorticks_off()
        axes.set_xlabel("answers at once")
        axes.set_ylabel("tokens/s of all together")
        axes.set_ylim(0, None)
        plain(axes, grid="y")
        legend(figure, entries, 2)

    title = "Tokens per second of all answers together by how many are in flight, for each chain"
    return draw("load", title, 250 + LEGEND_LINE * math.ceil(len(chains) / 2), paint)


def sweep_panels(results: Mapping[str, Any]) -> Markup | None:
    """Speed against draft length, one panel per chain, one line per temperature; the axes swap if only temperature was swept."""
    points = rows(results, "sweep", "points")
    across, other = ("k", "temperature") if len(_distinct(points, "k")) > 1 else ("temperature", "k")
    up = "ratio" if any(number(at(point, "ratio")) is not None for point in points) else "decode"
    points = [point for point in points if number(at(point, across)) is not None and number(at(point, up)) is not None]
    chains = list(dict.fromkeys(name(at(point, "chain")) for point in points))
    if not chains:
        return None
    series: list[float | None] = [*_distinct(points, other)]
    if any(number(at(point, other)) is None for point in points):
        series.append(None)
    columns = min(3, len(chains))
    lines = math.ceil(len(chains) / columns)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        entries: dict[str, Any] = {}
        for panel, chain in zip(panels, chains, strict=False):
            own = [point for point in points if name(at(point, "chain")) == chain]
            for index, value in enumerate(series):
                line = sorted((point[across], point[up]) for point in own if number(at(point, other)) == value)
                style: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
                handle = panel.plot(*(list(axis) for axis in zip(*line, strict=True)), **style)[0] if line else None
                if handle is not None:
                    entries.setdefault(f"{other} {significant(value) if value is None else f'{value:g}'}", handle)
            if up == "ratio":
                panel.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            panel.set_title(_panel_title(chain, own if up == "ratio" else []), fontsize=10, loc="left")
            panel.tick_params(labelbottom=True)
            plain(panel, grid="y")
        if across == "k":
            _whole_numbers(figure.axes[0])
        for spare in figure.axes[len(chains) :]:
            spare.set_visible(False)
        figure.supxlabel("draft length k, tokens" if across == "k" else "temperature", color=MUTED, fontsize=11)
        figure.supylabel("times the denominator" if up == "ratio" else "tokens/s", color=MUTED, fontsize=11)
        legend(figure, entries, 5)

    words = "draft length" if across == "k" else "temperature"
    return draw("sweep", f"Speed of each chain by {words}", PANEL * lines + 80 + (40 if lines == 1 else 0), paint)


def _distinct(points: list[Mapping[str, Any]], key: str) -> list[float]:
    return sorted({value for point in points if (value := number(at(point, key))) is not None})


def _panel_title(chain: str, points: list[Mapping[str, Any]]) -> str:
    """The chain, and what it is divided by where that is one and the same."""
    below = {name(at(point, "denominator")) for point in points} - {values.UNKNOWN}
    return short(chain, 28) + (f"\nover {short(below.pop(), 25)}" if len(below) == 1 else "")
