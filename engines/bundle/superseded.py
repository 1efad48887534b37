"""Bundles of format version 1: the command that writes such a bundle again, from what its manifest says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

VERSION = 1
EXPORTED = ("float", "int8", "int4", "int4-a16")
FOR_CUDA = {"float": "float16", "int4": "w4a16"}
PRUNED = "pruned-"
LONGEST = 200
"""Characters of an argument; a manifest with a longer one is not one that an export wrote."""


def export_command(manifest: Mapping[str, Any], output: str) -> str | None:
    """The command line that exports the bundle at `output` again; None where the manifest does not say how.

    A model that was a folder, and calibration text, are known by their names alone.
    """
    try:
        arguments = list(_arguments(manifest))
    except (AttributeError, LookupError, TypeError, ValueError):  # not what an export wrote
        return None
    if not all(text.isprintable() and 0 < len(text) <= LONGEST for text in arguments):
        return None
    return f"quasar-export {shlex.join([*arguments, '--output', output])}"


def listed_files(text: str) -> list[str]:
    """Paths of the files of a bundle of this format, by the text of its manifest; none where it is not such a text."""
    try:
        manifest = json.loads(text)
        if manifest["format_version"] == VERSION and export_command(manifest, "") is not None:
            return [str(file["path"]) for file in manifest["files"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    return []


def _arguments(manifest: Mapping[str, Any]) -> Iterator[str]:
    model, engines, calibration = manifest["model"], manifest["engines"], manifest["calibration"]["prompts"]
    first: Mapping[str, Any] = next(iter(engines.values()), {})
    yield from ("--model", _value(model["id"]))
    if model["revision"] is not None:
        yield from ("--revision", _value(model["revision"]))
    yield from ("--engines", ",".join(name for name in engines if name in EXPORTED))
    if drafts := [_draft(name, entry["model"]) for name, entry in engines.items() if name not in EXPORTED]:
        yield from ("--draft", ",".join(drafts))
    if calibration != "built-in":
        yield from ("--calibration", _value(calibration))
    yield from ("--max-length", str(int(first["max_length"])))
    if first["max_batch"] > 1:
        yield from ("--max-sequences", str(int(first["max_batch"])))
    if plan := first.get("plan"):
        yield from ("--backend", _value(plan["library"]))
    elif any(entry["precision"] == FOR_CUDA.get(name) for name, entry in engines.items()):
        yield from ("--provider", "cuda")


def _draft(name: str, model: str) -> str:
    """What `--draft` calls an engine."""
    return f"pruned:{float(name.removeprefix(PRUNED)) / 100:g}" if name.startswith(PRUNED) else f"model:{_value(model)}"


def _value(text: Any) -> str:
    """A value of an option, which must not look like another option."""
    if not isinstance(text, str) or text.startswith("-"):
        raise TypeError
    return text
