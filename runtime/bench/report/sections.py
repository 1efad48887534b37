"""The sections of a report: headings, tables and plots, in reading order. A section without data is not made."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from quasar.runtime.bench.report import plots, values
from quasar.runtime.bench.report.load import load_section
from quasar.runtime.bench.report.parts import Cell, Head, Section, Table
from quasar.runtime.bench.report.summary import code
from quasar.runtime.bench.report.values import Spread, at, fixed, number, percent, rows, significant


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Every section that has data."""
    made = (_speed(results), load_section(results), _acceptance(results), _steps(results), _sweep(results), _fidelity(results))
    return [section for section in made if section is not None]


def _spread(data: object, places: int | None = None, *, share: bool = False) -> Cell:
    return Cell(*Spread.of(data).texts(places, share=share))


def _chain(chain: Mapping[str, Any]) -> Cell:
    return Cell(code(at(chain, "chain")), "only a denominator" if at(chain, "asked") is False else "")


def _speed(results: Mapping[str, Any]) -> Section | None:
    chains = values.chains(results, fastest_first=True)
    if not chains:
        return None
    text = (
        "Each ratio is one chain's speed over that of the denominator named in its column; grey where the range contains 1. "
        "In small: low to high over the repeats. "
        "Every chain is exact to an engine, whose distribution its output follows; it is lossy if that is not the float model."
    )
    tables = [_speed_table(results, chains, "decode", "after the first token")]
    if any(at(chain, "overall") for chain in chains):
        tables.append(_speed_table(results, chains, "overall", "with the prefill"))
    return Section("Speed", text, plots.decode_bars(results), tables)


def _speed_table(results: Mapping[str, Any], chains: list[Mapping[str, Any]], key: str, what: str) -> Table:
    heads = [Head("Chain"), Head("vs float", "exact to"), Head("Tokens/s", what)]
    heads += [Head(title, _over(results, ratio)) for ratio, title in _RATIO_HEADS.items()]
    lines = [
        [_chain(chain), Cell(values.loss(chain), code(at(chain, "target")), values.loss(chain)), _spread(at(chain, key))]
        + [_ratio(results, chain, ratio, key) for ratio in _RATIO_HEADS]
        for chain in chains
    ]
    return Table(heads, lines, left=2)


_RATIO_HEADS = {
    "float": "\N{MULTIPLICATION SIGN} float",
    "own_precision": "\N{MULTIPLICATION SIGN} own precision",
    "float_same_proposer": "\N{MULTIPLICATION SIGN} float, same proposer",
}


def _over(results: Mapping[str, Any], ratio: str) -> Markup:
    below = list(values.denominators(results, ratio))
    if not below:
        return Markup("no denominator")
    return Markup("over ") + (Markup(", ").join(map(code, below)) if len(below) <= 3 else Markup("the chain in each cell"))


def _ratio(results: Mapping[str, Any], chain: Mapping[str, Any], ratio: str, key: str) -> Cell:
    spread = Spread.of(at(chain, "ratios", ratio, key))
    middle, ends = spread.texts(2)
    several = len(values.denominators(results, ratio)) > 1 and spread.middle is not None
    over = Markup('<span class="over">over {}</span>').format(code(at(chain, "ratios", ratio, "chain"))) if several else ""
    return Cell(middle, Markup("{}{}").format(ends, over), kind="level" if spread.spans_one else "")


def _acceptance(results: Mapping[str, Any]) -> Section | None:
    chains = values.chains(results, fastest_first=True)
    keys = ("tokens_per_round", "acceptance_rate", "outside_share", "peak_memory_mb")
    if all(at(chain, key) is None for chain in chains for key in keys):
        return None
    text = (
        "A round is one pass of the chain's last engine; tokens per round counts its own token: 1 means that none was accepted. "
        "The plot shows, of the drafts that had a first token, a second and so on, what percentage was accepted up to it. "
        "Outside is the share of the decode time spent outside engine calls."
    )
    heads = [
        Head("Chain"),
        Head("Tokens/round"),
        Head("Accepted", "of proposed"),
        Head("Outside"),
        Head("Peak memory", "MB"),
    ]
    lines = [
        [
            _chain(chain),
            Cell(fixed(at(chain, "tokens_per_round"), 2)),
            Cell(percent(at(chain, "acceptance_rate"))),
            Cell(percent(at(chain, "outside_share"))),
            Cell(fixed(at(chain, "peak_memory_mb"), 0)),
        ]
        for chain in chains
    ]
    return Section("Acceptance", text, plots.acceptance_map(results), [Table(heads, lines), *_levels(chains)])


def _levels(chains: list[Mapping[str, Any]]) -> Iterator[Table]:
    lines = [
        [
            Cell(code(at(chain, "chain"))),
            Cell(code(at(level, "engine"))),
            *(Cell(fixed(at(level, key), 0)) for key in ("rounds", "proposed", "accepted")),
        ]
        for chain in chains
        for level in rows(chain, "levels")
    ]
    if lines:
        heads = [Head("Chain"), Head("Engine"), Head("Rounds"), Head("Proposed", "tokens"), Head("Accepted", "tokens")]
        yield Table(heads, lines, left=2, folded="Rounds and tokens of every engine")


def _steps(results: Mapping[str, Any]) -> Section | None:
    times = plots.step_times(results)
    if not times:
        return None
    counts = sorted({count for by_rows in times.values() for count in by_rows})
    heads = [Head("Engine"), *(Head(f"{count} row{'s' if count > 1 else ''}", "ms") for count in counts)]
    lines = [[Cell(code(engine)), *(_step(by_rows.get(count, [])) for count in counts)] for engine, by_rows in times.items()]
    text = (
        "What checking a proposal costs: a pass over one row generates, a pass over several rows checks. "
        "A line goes through the medians of an engine, a dot is the median in one chain."
    )
    return Section("Cost of a pass", text, plots.step_lines(results), [Table(heads, lines)])


def _step(found: list[float]) -> Cell:
    if not found:
        return Cell()
    ends = (min(found), max(found)) if len(found) > 1 else (None, None)
    return Cell(*Spread(statistics.median(found), *ends).texts())


def _sweep(results: Mapping[str, Any]) -> Section | None:
    points = rows(results, "sweep", "points")
    if not points:
        return None
    heads = [
        Head("Chain"),
        Head("k"),
        Head("Temperature"),
        Head("Tokens/s"),
        Head("Ratio"),
        Head("Tokens/round"),
        Head("Accepted"),
    ]
    lines = [
        [
            Cell(code(at(point, "chain"))),
            Cell(_plain(at(point, "k"))),
            Cell(_plain(at(point, "temperature"))),
            Cell(significant(at(point, "decode"))),
            Cell(fixed(at(point, "ratio"), 2), Markup("over {}").format(code(at(point, "denominator")))),
            Cell(fixed(at(point, "tokens_per_round"), 2)),
            Cell(percent(at(point, "acceptance_rate"))),
        ]
        for point in points
    ]
    text = "Decode speed over that of the denominator named with it. Above the dashed line the chain is the faster of the two."
    return Section("Sweep", text, plots.sweep_panels(results), [Table(heads, lines, folded=f"All {len(points)} points")])


def _plain(value: object) -> str:
    found = number(value)
    return values.UNKNOWN if found is None else f"{found:g}"


def _fidelity(results: Mapping[str, Any]) -> Section | None:
    tables = [*_agreement(results), *_engines(results)]
    if not tables:
        return None
    parts = []
    if any(at(chain, "agreement") for chain in values.chains(results)):
        parts.append(Markup("Chains: their answers beside the greedy answers of {}, prompt by prompt.").format(code("float")))
    if rows(results, "fidelity", "engines"):
        found = at(results, "fidelity")
        prompts, tokens = (fixed(at(found, key), 0) for key in ("prompts", "tokens"))
        said = Markup("Engines: against {}, {} prompts, {} tokens; small: the {} interval.")
        parts.append(said.format(code(at(found, "reference")), prompts, tokens, percent(at(found, "confidence"), 0)))
    return Section("Fidelity", Markup(" ").join(parts), None, tables)


def _agreement(results: Mapping[str, Any]) -> Iterator[Table]:
    lines = [
        [
            _chain(chain),
            Cell(values.count(at(chain, "agreement", "identical"), at(chain, "agreement", "prompts"))),
            Cell(percent(at(chain, "agreement", "tokens"))),
            Cell(significant(at(chain, "agreement", "first_difference"))),
        ]
        for chain in values.chains(results, fastest_first=True)
        if at(chain, "agreement")
    ]
    if lines:
        where = "token, of those that differ"
        yield Table([Head("Chain"), Head("Same answer", "prompts"), Head("Same tokens"), Head("First difference", where)], lines)


def _engines(results: Mapping[str, Any]) -> Iterator[Table]:
    lines = [
        [
            Cell(code(at(engine, "engine"))),
            _spread(at(engine, "perplexity")),
            _spread(at(engine, "perplexity_ratio"), 4),
            _spread(at(engine, "mean_kl")),
            _spread(at(engine, "top1_agreement"), 2, share=True),
            _spread(at(engine, "flip_rate"), 1, share=True),
            _spread(at(engine, "first_difference")),
        ]
        for engine in rows(results, "fidelity", "engines")
    ]
    if lines:
        heads = [
            *(Head("Engine"), Head("Perplexity"), Head("Perplexity ratio"), Head("Mean KL", "nats"), Head("Top-1 agreement")),
            *(Head("Flip rate", "prompts answered otherwise"), Head("First difference", "token")),
        ]
        yield Table(heads, lines)
