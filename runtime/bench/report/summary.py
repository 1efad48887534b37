"""The first lines of a report: which chain is best, over what, and at what price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from quasar.runtime.bench.report import values
from quasar.runtime.bench.report.values import Spread, at, name, number, percent

DENOMINATORS = {
    "float": "",
    "own_precision": ", the same precision without a proposer",
    "float_same_proposer": ", the same proposer over float",
}
UNEVEN = 0.2  # bandwidths that differ by more than this share say that the machine was not ours alone


def code(value: object) -> Markup:
    """A chain or an engine, as the reader would type it."""
    return Markup("<code>{}</code>").format(name(value))


def best_chain(results: Mapping[str, Any], *, exact: bool = False) -> Mapping[str, Any] | None:
    """The fastest of the chains that were asked for, or of those that lose nothing against float; None if none has a speed."""
    measured = [chain for chain in values.chains(results, fastest_first=True) if values.speed(chain) is not None]
    measured = [chain for chain in measured if not exact or at(chain, "lossy") is False]
    asked = [chain for chain in measured if at(chain, "asked") is not False]
    return next(iter(asked or measured), None)


def paragraphs(results: Mapping[str, Any]) -> list[Markup]:
    """What came out, in words: how fast and over what, then at what price."""
    best = best_chain(results)
    if best is None:
        return [Markup("No chain has a speed.")]
    price = _faithfulness(best)
    if at(best, "lossy") is not False:
        price += Markup(" ") + _best_exact(results)
    return [_speed(results, best) + _comparisons(results, best) + _rivals(results, best), price]


def _speed(results: Mapping[str, Any], best: Mapping[str, Any]) -> Markup:
    middle, ends = Spread.of(at(best, "decode")).texts()
    repeats = number(at(best, "repeats"))
    span = f" ({ends}{f' over {repeats:.0f} repeats' if repeats else ''})" if ends else ""
    others = sum(at(chain, "asked") is not False for chain in values.chains(results)) > 1
    is_best = "is the fastest chain, with" if others else "makes"
    return Markup("{} {} {} tokens/s after the first token{}.").format(code(at(best, "chain")), is_best, middle, span)


def _rivals(results: Mapping[str, Any], best: Mapping[str, Any]) -> Markup:
    """Chains whose range reaches that of the best one."""
    spread = Spread.of(at(best, "decode"))
    close = [
        code(at(chain, "chain"))
        for chain in values.chains(results, fastest_first=True)
        if chain is not best and at(chain, "asked") is not False and _overlap(spread, Spread.of(at(chain, "decode")))
    ]
    more = f" and {len(close) - 3} more" if len(close) > 3 else ""
    return Markup(" Not clearly slower: {}{}.").format(Markup(", ").join(close[:3]), more) if close else Markup()


def _overlap(best: Spread, other: Spread) -> bool:
    return best.low is not None and other.high is not None and other.high >= best.low


def _comparisons(results: Mapping[str, Any], best: Mapping[str, Any]) -> Markup:
    """Over each denominator, once; and whether the proposers were worth it."""
    parts, seen = [], set()
    for ratio, role in DENOMINATORS.items():
        below = at(best, "ratios", ratio, "chain")
        spread = Spread.of(at(best, "ratios", ratio, "decode"))
        middle, ends = spread.texts(2)
        if spread.middle is None or below in seen:
            continue
        seen.add(below)
        doubt = "; no clear difference" if spread.spans_one else ""
        parts.append(Markup("{} times as fast as {}{}{}").format(middle, code(below), role, f" ({ends}{doubt})" if ends else ""))
    said = Markup(" It decodes {}.").format(Markup("; ").join(parts)) if parts else Markup()
    plain = at(best, "chain")
    if any(at(chain, "ratios", "own_precision", "chain") == plain is not None for chain in values.chains(results)):
        said += Markup(" No proposer made {} faster.").format(code(plain))
    return said


def _faithfulness(best: Mapping[str, Any]) -> Markup:
    target, lossy = at(best, "target"), at(best, "lossy")
    if target is None:
        return Markup("Which engine's distribution its output follows is not known.")
    said = Markup("Its output follows the distribution of {} exactly").format(code(target))
    if lossy is False:
        return said + ", and loses nothing against float."
    if lossy is not True:
        return said + "; whether that loses anything against float is not known."
    same = values.count(at(best, "agreement", "identical"), at(best, "agreement", "prompts"))
    tokens = percent(at(best, "agreement", "tokens"))
    if same == values.UNKNOWN:
        return said + ", which is lossy relative to float; by how much was not measured here."
    equal = "" if tokens == values.UNKNOWN else f", and {tokens} of all tokens are equal"
    return said + f", which is lossy relative to float: {same} prompts got the same tokens as from greedy float{equal}."


def _best_exact(results: Mapping[str, Any]) -> Markup:
    exact = best_chain(results, exact=True)
    if exact is None:
        return Markup("No chain that is exact relative to float was measured.")
    middle, _ = Spread.of(at(exact, "decode")).texts()
    times = Spread.of(at(exact, "ratios", "float", "decode")).texts(2)[0]
    below = at(exact, "ratios", "float", "chain")
    over = Markup(", {} times {}").format(times, code(below)) if times != values.UNKNOWN and below else ""
    return Markup("The fastest that is exact relative to float is {}: {} tokens/s{}.").format(
        code(at(exact, "chain")), middle, over
    )


def tiles(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """A few large figures of the best chain, each with what it is."""
    best = best_chain(results)
    if best is None:
        return []
    found = [(Spread.of(at(best, "decode")).texts()[0], Markup("tokens/s, {}").format(code(at(best, "chain"))))]
    seen = set()
    for ratio in values.RATIOS:
        below = at(best, "ratios", ratio, "chain")
        times = Spread.of(at(best, "ratios", ratio, "decode")).texts(2)[0]
        if times != values.UNKNOWN and below not in seen:
            seen.add(below)
            found.append((f"{times}\N{MULTIPLICATION SIGN}", Markup("over {}").format(code(below))))
    same = values.count(at(best, "agreement", "identical"), at(best, "agreement", "prompts"))
    if same != values.UNKNOWN:
        found.append((same, Markup("prompts with greedy float's tokens")))
    return found


def warnings(results: Mapping[str, Any]) -> list[str]:
    """What the reader should know before believing the figures."""
    found = []
    if at(results, "interrupted") is True:
        found.append("Interrupted: what is here was measured, the rest is missing.")
    bandwidths = at(results, "machine", "read_gb_per_s")
    known = [speed for speed in map(number, bandwidths) if speed] if isinstance(bandwidths, (list, tuple)) else []
    if known and min(known) < (1 - UNEVEN) * max(known):
        found.append(
            f"The machine's memory bandwidth went from {known[0]:.1f} to {known[-1]:.1f} GB/s during the run: something else "
            "used the machine, and ratios of chains that were measured far apart may be off."
        )
    notes = at(results, "notes")
    return found + ([name(note) for note in notes] if isinstance(notes, (list, tuple)) else [])
