"""Bundles with something else in them, whose manifests know it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_template(bundle: Path, text: str) -> None:
    """Another chat template, with a manifest that knows its size."""
    (bundle / "tokenizer" / "chat_template.jinja").write_text(text)

    def resize(manifest: dict[str, Any]) -> None:
        next(f for f in manifest["files"] if f["path"].endswith(".jinja"))["bytes"] = len(text)

    edit_manifest(bundle, resize)


def add_template(bundle: Path, name: str, text: str) -> None:
    """One more chat template, with a manifest that lists it."""
    path = f"tokenizer/additional_chat_templates/{name}.jinja"
    (bundle / path).parent.mkdir(exist_ok=True)
    (bundle / path).write_text(text)

    def enter(manifest: dict[str, Any]) -> None:
        manifest["files"].append({"path": path, "bytes": len(text), "sha256": "0" * 64})
        manifest["tokenizer"].append(path)

    edit_manifest(bundle, enter)
