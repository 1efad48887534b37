"""Bench results as files: report.json for programs, report.html for people."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from quasar.engines.errors import UsageError
from quasar.runtime.bench.report import summary
from quasar.runtime.bench.report.load import load_sentence
from quasar.runtime.bench.report.particulars import particulars
from quasar.runtime.bench.report.plots import decode_bars
from quasar.runtime.bench.report.sections import sections
from quasar.runtime.bench.report.svg import standalone
from quasar.runtime.bench.report.values import at, name


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write report.json, report.html and decode.svg, the plot of speeds for use elsewhere.

    Each file appears whole or not at all. The results are on disk before the page is drawn, and no page of older results stays
    beside them.

    Args:
        results: what was measured, format version 2; what is unknown is None.
        folder: made where it is missing.

    Returns:
        The path of the page.

    Raises:
        UsageError: matplotlib is not installed, or the folder is a file. Without matplotlib report.json is written all the same.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; a report is a folder with report.json and report.html")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", json.dumps(_finite(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    page, plot = folder / "report.html", folder / "decode.svg"
    for old in (page, plot):
        old.unlink(missing_ok=True)
    _write(page, page_text(results))
    if (drawing := decode_bars(results)) is not None:
        _write(plot, standalone(drawing))
    return page


def page_text(results: Mapping[str, Any]) -> str:
    """The page: everything that it shows is in it, and it runs no script."""
    resources = files("quasar.runtime.bench.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources / "report.html.j2").read_text(encoding="utf-8"))
    bundle, model = (name(at(results, "bundle", key)) for key in ("name", "model"))
    return template.render(
        style=Markup((resources / "report.css").read_text(encoding="utf-8")),
        bundle=bundle,
        model=model,
        paragraphs=[*summary.paragraphs(results), *filter(None, [load_sentence(results)])],
        tiles=summary.tiles(results),
        warnings=summary.warnings(results),
        sections=sections(results),
        particulars=particulars(results),
        command=name(at(results, "command")),
    )


def _finite(value: Any) -> Any:
    """The same, with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    """Write beside, then rename. A file name that is no UTF-8 text is shown by its bytes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
