"""Command lines that are printed: a shell that gets them finds the folder, spaces and all."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import BuildError, UsageError
from quasar.engines.tensorrt.build import BuildOptions
from quasar.exporter.plans.build import PlanGraph
from quasar.exporter.plans.failure import bisect_commands
from quasar.exporter.summary import print_summary
from quasar.runtime.serving.triton.cli import main as triton_main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spaced = tmp_path / "it's a b"
    spaced.mkdir()
    return spaced


def test_of_a_bundle_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_bundle(folder / "bundle")
    assert shlex.split(str(caught.value).rpartition("quasar-export ")[2]) == ["--output", str(folder / "bundle")]


def test_of_a_server(demo_bundle: Path, folder: Path, capsys: Capture) -> None:
    assert triton_main([str(demo_bundle), "--repository", str(folder)]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("try: ")
    assert shlex.split(command) == ["tritonserver", f"--model-repository={folder}"]


def test_of_an_export_that_is_done(demo_bundle: Path, folder: Path, capsys: Capture) -> None:
    print_summary(folder, open_bundle(demo_bundle).manifest, {}, {}, 1.0)
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("try: ")
    assert shlex.split(command) == ["quasar-generate", str(folder), "..."]


@pytest.mark.parametrize("error", [BuildError("int8.plan: no"), BuildError("")])
def test_of_a_search_for_what_broke_a_build(folder: Path, error: BuildError) -> None:
    graph = PlanGraph("int8", "w8a8", ("int8.tensorrt.onnx",))
    commands = bisect_commands(error, folder, [graph], BuildOptions("tensorrt"))
    assert commands
    for command in commands:
        assert str(folder / "int8.tensorrt.onnx") in shlex.split(command)
