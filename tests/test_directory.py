"""Directories that appear whole or not at all: what a killed process leaves, the next one clears away."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.bundle.directory import atomic_directory, recover_directory
from quasar.exporter.cli import main as export_main
from quasar.runtime.serving.triton.cli import main as triton_main

WRITING = """
with atomic_directory(output) as partial:
    (partial / "file").write_text("new")
    wait()
"""
BETWEEN_THE_RENAMES = """
rename = Path.rename
Path.rename = lambda self, target: rename(self, target) if Path(target) != output else wait()
with atomic_directory(output) as partial:
    (partial / "file").write_text("new")
"""
BEFORE_THE_OLD_ONE_IS_REMOVED = """
shutil.rmtree = lambda *a, **b: wait()
with atomic_directory(output) as partial:
    (partial / "file").write_text("new")
"""
MOMENTS = {"writing": WRITING, "between": BETWEEN_THE_RENAMES, "before": BEFORE_THE_OLD_ONE_IS_REMOVED}


@contextmanager
def another_process(output: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """One that has come to `wait()`, and is killed at the end of the block at the latest."""
    head = (
        "import shutil, sys, time\nfrom pathlib import Path\nfrom quasar.engines.bundle.directory import atomic_directory\n"
        f"output = Path({str(output)!r})\ndef wait():\n    print('here', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_at(output: Path, code: str) -> None:
    with another_process(output, code):
        pass


def write(output: Path, text: str) -> None:
    with atomic_directory(output) as partial:
        (partial / "file").write_text(text)


def text_of(output: Path) -> str:
    return (output / "file").read_text()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_process_left_is_cleared_away_by_the_next(tmp_path: Path, moment: str) -> None:
    output = tmp_path / "a b[1]"
    write(output, "old")
    kill_at(output, MOMENTS[moment])
    assert names_in(tmp_path) - {output.name}
    write(output, "newer")
    assert names_in(tmp_path) == {output.name}
    assert text_of(output) == "newer"


def test_what_was_moved_aside_comes_back_also_where_the_next_export_fails(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output, "old")
    kill_at(output, BETWEEN_THE_RENAMES)
    assert not output.exists()
    with pytest.raises(FileNotFoundError), atomic_directory(output):
        (output / "missing").read_text()
    assert names_in(tmp_path) == {"out"}
    assert text_of(output) == "old"


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_running_process_needs_is_left_alone(tmp_path: Path, moment: str) -> None:
    output = tmp_path / "out"
    write(output, "old")
    with another_process(output, MOMENTS[moment]):
        before = names_in(tmp_path)
        recover_directory(output)
        assert names_in(tmp_path) == before
        assert output.exists() == (moment != "between")


def test_two_processes_may_write_the_same_output(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with atomic_directory(output) as first:
        (first / "file").write_text("first")
        write(output, "second")
        assert text_of(output) == "second"
    assert names_in(tmp_path) == {"out"}
    assert text_of(output) == "first"


@pytest.mark.parametrize(
    "name",
    [".other.abcdefgh.partial", ".out.x.abcdefgh.partial", ".out.abc.partial", ".out.20240101.old", "out.abcdefgh.partial"],
)
def test_what_has_another_name_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write(tmp_path / "out", "new")
    assert names_in(tmp_path) == {"out", name}


def test_a_file_and_a_link_of_such_a_name_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".out.abcdefgh.partial").symlink_to(tmp_path / "mine")
    (tmp_path / ".out.ijklmnop.replaced").write_text("")
    before = names_in(tmp_path)
    write(tmp_path / "out", "new")
    assert names_in(tmp_path) == {"out", *before}


def test_without_locks_nothing_is_taken_for_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at(tmp_path / "out", WRITING)
    before = names_in(tmp_path)

    def no_locks(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("quasar.engines.bundle.directory.fcntl.flock", no_locks)
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new")
    assert names_in(tmp_path) == {"out", *before}
    assert text_of(tmp_path / "out") == "new"


def test_an_export_clears_away_a_killed_one(tmp_path: Path) -> None:
    command = ["--model", "demo", "--engines", "float", "--max-length", "64", "--num-samples", "2"]
    output = tmp_path / "out"
    kill_at(output, WRITING)
    assert names_in(tmp_path)
    assert export_main([*command, "--output", str(output)]) == 0
    assert names_in(tmp_path) == {"out"}


def test_quasar_triton_clears_away_what_was_killed(demo_bundle: Path, tmp_path: Path) -> None:
    kill_at(tmp_path / "m", WRITING)
    assert triton_main([str(demo_bundle), "--repository", str(tmp_path), "--name", "m"]) == 0
    assert names_in(tmp_path) == {"m"}


def test_a_rebuild_finds_a_bundle_that_was_moved_aside(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "b")
    kill_at(bundle, BETWEEN_THE_RENAMES)
    assert not bundle.exists()
    assert export_main(["--rebuild", str(bundle), "--backend", "tensorrt-rtx"]) == 2
    assert "there are no graphs for TensorRT in it" in capsys.readouterr().err
    open_bundle(bundle, verify=True)
