"""Bundles of format version 1 are refused with the command that writes them again."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from quasar.engines.bundle.bundle import MANIFEST, check_output, open_bundle
from quasar.engines.bundle.superseded import export_command
from quasar.engines.errors import BundleError, UsageError
from quasar.exporter.cli import _options, parser
from quasar.exporter.cli import main as export_main
from quasar.exporter.draft import ModelDraft, PrunedDraft


def engine(name: str, precision: str, model: str = "Qwen/Qwen3-0.6B", **more: Any) -> dict[str, Any]:
    sizes = {"vocab_size": 151936, "max_length": 2048, "max_batch": 1, "num_hidden_layers": 28, "num_key_value_heads": 8}
    return {"name": name, "precision": precision, "attention": "fused", **sizes, "head_dim": 128, "model": model, **more}


OLD: dict[str, Any] = {
    "model": {"id": "Qwen/Qwen3-0.6B", "revision": "c1899de"},
    "engines": {"int8": engine("int8", "w8a8"), "int4": engine("int4", "w4a8")},
    "files": [],
    "calibration": {"prompts": "built-in"},
    "format_version": 1,
}


def old(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(OLD), **changes}


def options_of(manifest: dict[str, Any]) -> Any:
    """What quasar-export makes of the command."""
    command = export_command(manifest, "out of it")
    assert command is not None
    program, *arguments = shlex.split(command)
    assert program == "quasar-export"
    options = _options(parser().parse_args(arguments))
    assert options.output == Path("out of it")
    return options


def test_model_engines_and_length_are_those_of_the_bundle() -> None:
    options = options_of(OLD)
    assert (options.model, options.revision) == ("Qwen/Qwen3-0.6B", "c1899de")
    assert (options.engines, options.drafts) == (("int8", "int4"), ())
    assert (options.max_length, options.slots, options.calibration) == (2048, 8, None)
    assert (options.provider, options.build) == ("cpu", None)


def test_drafts_are_asked_for_as_they_were() -> None:
    pruned, draft = engine("pruned-50", "w4a8"), engine("draft", "w4a8", "Qwen/Qwen3-0.1B")
    options = options_of(old(engines={**OLD["engines"], "pruned-50": pruned, "draft": draft}))
    assert options.engines == ("int8", "int4")
    assert options.drafts == (PrunedDraft(0.5), ModelDraft("Qwen/Qwen3-0.1B"))


def test_what_a_bundle_was_for_stays() -> None:
    for_cuda = options_of(old(engines={"float": engine("float", "float16", max_batch=1), "int4": engine("int4", "w4a16")}))
    assert (for_cuda.provider, for_cuda.slots) == ("cuda", 1)
    planned = options_of(old(engines={"int8": engine("int8", "w8a8", max_batch=4, plan={"library": "tensorrt-rtx"})}))
    assert planned.build.library == "tensorrt-rtx"
    assert planned.slots == 4
    own_text = options_of(old(model={"id": "my model", "revision": None}, calibration={"prompts": "chats of mine.jsonl"}))
    assert (own_text.model, own_text.revision, own_text.calibration) == ("my model", None, Path("chats of mine.jsonl"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"id": "--force", "revision": None}},
        {"model": {"id": "two\nlines", "revision": None}},
        {"model": {"id": "", "revision": None}},
        {"model": {"id": "x" * 500, "revision": None}},
        {"model": {"id": "x"}},
        {"model": None},
        {"engines": {}},
        {"engines": []},
        {"engines": {"pruned-half": engine("pruned-half", "w4a8")}},
        {"engines": {"int8": engine("int8", "w8a8", max_length="long")}},
        {"engines": {"int8": {}}},
        {"calibration": {"prompts": 3}},
    ],
    ids=str,
)
def test_a_manifest_that_no_export_wrote_gives_no_command(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(old(**changes)))
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / MANIFEST}: format version 1, this release reads 2; export the bundle again with this release"
    )
    with pytest.raises(UsageError, match="not a bundle"):
        check_output(tmp_path)


def test_the_command_that_is_printed_replaces_the_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "it's a demo"
    bundle.mkdir()
    (bundle / "float.onnx").write_bytes(b"")
    files = [{"path": "float.onnx", "bytes": 0, "sha256": ""}]
    demo = engine("float", "float32", "demo", max_length=64)
    (bundle / MANIFEST).write_text(json.dumps(old(model={"id": "demo", "revision": None}, engines={"float": demo}, files=files)))
    with pytest.raises(BundleError, match="reads 2; export the bundle again: ") as caught:
        open_bundle(bundle)
    assert export_main(shlex.split(str(caught.value).rpartition("quasar-export ")[2])) == 0
    assert open_bundle(bundle).engine("float").max_length == 64


def test_a_bundle_with_a_file_of_the_users_stays(tmp_path: Path) -> None:
    files = [{"path": "float.onnx", "bytes": 0, "sha256": ""}]
    (tmp_path / MANIFEST).write_text(json.dumps(old(files=files)))
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        check_output(tmp_path)
