"""What this machine or this ONNX Runtime cannot run is refused in one line, before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.errors import UsageError
from quasar.engines.onnxruntime import caches
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.runtime.cli import main as generate_main

SLOT = 2 * 6 * 2 * 4096 * 64 * 4
"""Bytes of a slot of the demo model's cache."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets the memory that the machine says is free."""
    return lambda count: monkeypatch.setattr(caches, "_available_bytes", lambda: count)


def load(bundle: Path, slots: int | None = None, **changes: str) -> OnnxEngine:
    opened = open_bundle(bundle)
    entry: EngineEntry = dataclasses.replace(opened.engine("int8"), **changes)
    return OnnxEngine(opened.path(entry.graph), entry, slots=slots)


def test_slots_whose_caches_do_not_fit_memory_are_refused(demo_bundle: Path, free: Callable[[int | None], None]) -> None:
    free(8 * SLOT - 1)
    with pytest.raises(UsageError) as caught:
        load(demo_bundle)
    assert str(caught.value) == (
        f"engine int8: caches of 8 x 4096 positions take {8 * SLOT} bytes (0.2 GB), and 0.2 GB are free; take fewer "
        "--sequences or a bundle exported with a smaller --max-length"
    )
    load(demo_bundle, slots=7).close()
    free(8 * SLOT)
    load(demo_bundle).close()
    free(SLOT - 1)
    with pytest.raises(UsageError, match=r"caches of 1 x 4096 .* free; take a bundle exported with a smaller --max-length$"):
        load(demo_bundle, slots=1)


def test_where_free_memory_cannot_be_told_nothing_is_refused(demo_bundle: Path, free: Callable[[int | None], None]) -> None:
    free(None)
    load(demo_bundle).close()


def test_this_machine_says_how_much_is_free() -> None:
    free = caches._available_bytes()
    assert free is None or 1 << 24 < free < 1 << 50


def test_the_command_says_it_in_one_line(
    demo_bundle: Path, free: Callable[[int | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    free(10**6)
    assert generate_main([str(demo_bundle), "hi", "--chain", "int8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"quasar-generate: engine int8: caches of 1 x 4096 positions take {SLOT} bytes")


@pytest.mark.parametrize("version", ["1.31.1", "1.9.0", "1.31.0.dev20260101"])
def test_shared_passes_need_a_newer_onnxruntime(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    with pytest.raises(UsageError) as caught:
        load(demo_bundle)
    assert str(caught.value) == (
        f"engine int8: sequences share passes from onnxruntime 1.32 on, and this is {version}; "
        "pip install 'onnxruntime>=1.32', or export the bundle with --max-sequences 1"
    )


@pytest.mark.parametrize("version", ["1.32.0", "1.40.2", "2.0.0", "unknown"])
def test_a_newer_one_is_taken(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    load(demo_bundle).close()


def test_graphs_for_cpus_are_not_loaded_on_a_gpu(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is not here; that it is said to be there is all that is not real."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    opened = open_bundle(demo_bundle)
    for name in ("float", "int8", "int4"):
        entry = opened.engine(name)
        with pytest.raises(
            UsageError, match=f"engine {name}: it was exported for CPUs; export it for GPUs \\(--provider cuda\\)$"
        ):
            OnnxEngine(opened.path(entry.graph), entry, "cuda")
