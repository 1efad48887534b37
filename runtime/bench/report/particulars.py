"""What is needed to measure again: bundle, settings, machine and versions as names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quasar.runtime.bench.report import values
from quasar.runtime.bench.report.values import at, name


def particulars(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups with their names and values; unknown groups are left out."""
    groups = {
        "Bundle": at(results, "bundle"),
        "Settings": at(results, "settings"),
        "Machine": at(results, "machine"),
        "Versions": at(results, "versions"),
    }
    return [(title, list(_flat(group))) for title, group in groups.items() if isinstance(group, Mapping) and group]


def _flat(group: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        label = name(key).replace("_", " ").replace("gb per s", "GB/s")
        if isinstance(value, Mapping):
            yield label, ", ".join(f"{name(part)} {_word(inner)}" for part, inner in value.items()) or values.UNKNOWN
        elif isinstance(value, (list, tuple)):
            yield label, ", ".join(map(_word, value)) or values.UNKNOWN
        else:
            yield label, _word(value)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return name(value)
