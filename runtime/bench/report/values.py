"""Reading results in which anything may be unknown, and writing numbers for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNKNOWN = "-"
RATIOS = ("float", "own_precision", "float_same_proposer")  # the denominators a chain is compared with


def at(data: object, *keys: str) -> Any:
    """The value under a path of keys; None where anything on the way is unknown."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def rows(data: object, *keys: str) -> list[Mapping[str, Any]]:
    """The objects in the list under a path of keys; none where it is unknown."""
    found = at(data, *keys)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, (list, tuple)) else []


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def name(value: object) -> str:
    """Text of one line; characters that a terminal or a parser would act on are made visible."""
    if value is None or value == "":
        return UNKNOWN
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))


def decimals(value: float, digits: int = 3) -> int:
    """Decimals that show so many significant digits, between 0 and 6."""
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 6) if value else 0


def significant(value: object, digits: int = 3) -> str:
    """A number with so many significant digits, never with an exponent."""
    found = number(value)
    return UNKNOWN if found is None else f"{found:.{decimals(found, digits)}f}"


def fixed(value: object, places: int) -> str:
    """A number with so many decimals."""
    found = number(value)
    return UNKNOWN if found is None else f"{found:.{places}f}"


def percent(value: object, places: int = 1) -> str:
    """A share as percent."""
    found = number(value)
    return UNKNOWN if found is None else f"{100 * found:.{places}f}%"


def count(part: object, whole: object) -> str:
    """`16 of 20`."""
    if number(part) is None or number(whole) is None:
        return UNKNOWN
    return f"{fixed(part, 0)} of {fixed(whole, 0)}"


@dataclass(frozen=True)
class Spread:
    """A value with what it ranges over; each may be unknown."""

    middle: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, data: object) -> Spread:
        """Read `{"median" or "value", "low", "high"}`."""
        middle = number(at(data, "median"))
        return cls(number(at(data, "value")) if middle is None else middle, number(at(data, "low")), number(at(data, "high")))

    def texts(self, places: int | None = None, *, share: bool = False) -> tuple[str, str]:
        """The value and its range, all with the same decimals: three significant digits of the value unless told."""
        if self.middle is None:
            return UNKNOWN, ""
        unit, scale = ("%", 100) if share else ("", 1)
        if places is None:
            places = decimals(scale * self.middle)
        known = [f"{scale * end:.{places}f}" for end in (self.low, self.high) if end is not None]
        return f"{scale * self.middle:.{places}f}{unit}", f"{' to '.join(known)}{unit}" if len(known) == 2 else ""

    @property
    def spans_one(self) -> bool:
        """Whether a ratio may as well be 1."""
        return self.low is not None and self.high is not None and self.low <= 1 <= self.high


def chains(results: Mapping[str, Any], *, fastest_first: bool = False) -> list[Mapping[str, Any]]:
    """The measured chains as they were given, or by decode speed with the unknown ones last."""
    found = rows(results, "chains")
    if not fastest_first:
        return found
    return sorted(found, key=lambda chain: (speed(chain) is None, -(speed(chain) or 0)))


def speed(chain: Mapping[str, Any]) -> float | None:
    """Decode tokens per second."""
    return number(at(chain, "decode", "median"))


def denominators(results: Mapping[str, Any], ratio: str) -> dict[str, list[str]]:
    """Which chains one ratio divides by, each with the chains that it is divided into."""
    found: dict[str, list[str]] = {}
    for chain in chains(results):
        below = at(chain, "ratios", ratio, "chain")
        if below is not None:
            found.setdefault(name(below), []).append(name(at(chain, "chain")))
    return found


def loss(chain: Mapping[str, Any]) -> str:
    """`lossy` or `exact`, relative to the float model."""
    lossy = at(chain, "lossy")
    return UNKNOWN if not isinstance(lossy, bool) else "lossy" if lossy else "exact"
