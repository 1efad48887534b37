"""The script for machines with a GPU, as far as it can be run without one: what it measures, and the table it prints."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import profile
from plans import Rig, small_model

from quasar.engines.tensorrt.graphs import MOST_KEPT
from quasar.engines.tensorrt.shapes import GRAPH_LENGTH, round_up

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_speed import (  # noqa: E402
    SEQUENCES,
    SHARED_ROWS,
    Shape,
    Turns,
    measure,
    ratio,
    rebuild_command,
    record,
    sequences_table,
    shapes,
    table,
    turns_ratio,
    turns_text,
)


def test_every_engine_is_timed_in_every_round(tmp_path: Path) -> None:
    model = small_model(tmp_path, max_length=300)
    rigs = [Rig(model, (profile(1, 16, 300), profile(1, 256, 300, rows=1))) for _ in range(2)]
    engines = {name: rig.load() for name, rig in zip(("float", "int8"), rigs, strict=True)}
    wanted = [timed for timed in shapes(300, 1) if timed.rows in (1, 4, 256)]
    assert [str(shape) for shape in wanted] == ["1 rows", "4 rows", "prefill of 256"]
    seconds = measure(engines, wanted, rounds=3, repeat=2)
    assert {key: len(times) for key, times in seconds.items()} == {(name, shape): 3 for name in engines for shape in wanted}
    for rig in rigs:
        passes = rig.library.executed
        assert len(passes) == 3 * 4 + 3 * 3 * 2  # warm-up, then rounds
        assert passes[12:] == [p for p in ((0, 1, 1, 1, 256), (0, 1, 4, 4, 256), (1, 1, 256, 1, 256)) for _ in range(2)] * 3
        # two of each shape's warm-up, and all that are timed, are launched as graphs; prefill never is
        assert rig.cuda.launched == 2 * (2 + 3 * 2)


def test_shapes_in_turn_are_timed_as_the_mean_of_their_passes(tmp_path: Path) -> None:
    model = small_model(tmp_path, max_length=300)
    rig = Rig(model, (profile(1, 16, 300),))
    turns = Turns((1, 8, 2), 256)
    seconds = measure({"float": rig.load()}, [*turns.passes(), turns], rounds=2, repeat=2)
    assert [passed[2] for passed in rig.library.executed[-12:]] == [1, 1, 8, 8, 2, 2, 1, 8, 2, 1, 8, 2]
    assert rig.cuda.recorded == 3  # and none again
    assert len(seconds["float", turns]) == 2
    made = {("float", shape): [0.001, 0.002] for shape in turns.passes()} | {("float", turns): [0.002, 0.003]}
    assert turns_ratio(made, "float", turns) == 1.75
    assert turns_text(made) == "rows 1, 8, 2 in turn / each repeated by itself, context 256: float 1.75"


def test_all_shapes_that_are_timed_keep_their_graphs() -> None:
    timed = shapes(4096, 8)
    recurring = {shape for each in timed for shape in each.passes() if shape.rows <= GRAPH_LENGTH}
    turns = [each for each in timed if isinstance(each, Turns)]
    assert [each.context for each in turns] == [256, 1024, 4096]
    assert all(shape in timed for each in turns for shape in each.passes())  # what their ratio divides by
    assert all(round_up(shape.rows, GRAPH_LENGTH) == shape.rows for shape in recurring)
    assert len(recurring) <= MOST_KEPT


def test_sequences_share_the_passes_that_are_timed(tmp_path: Path) -> None:
    model = small_model(tmp_path, slots=8, max_length=256)
    rig = Rig(model, (profile(8, 32, 256), profile(1, 256, 256, rows=1)))
    wanted = [timed for timed in shapes(256, 8) if isinstance(timed, Shape) and timed.all_rows and timed.rows in SHARED_ROWS]
    assert {(shape.sequences, shape.rows) for shape in wanted} == {(count, rows) for count in SEQUENCES for rows in SHARED_ROWS}
    seconds = measure({"float": rig.load()}, wanted, rounds=2, repeat=1)
    passes = [executed[1:4] for executed in rig.library.executed]
    assert passes[-len(wanted) :] == [(shape.sequences, shape.rows, shape.rows) for shape in wanted]
    assert rig.cuda.recorded == len(wanted)
    rows = {(entry["sequences"], entry["rows"]): entry for entry in record(seconds)}
    assert rows[8, 4]["tokens_per_second"] == pytest.approx(32 / np.median(seconds["float", Shape(4, 256, sequences=8)]))


def test_the_command_that_builds_plans_again_can_be_pasted() -> None:
    command = rebuild_command(Path("/tmp/a b's"), "tensorrt-rtx")
    assert shlex.split(command) == ["quasar-export", "--rebuild", "/tmp/a b's", "--backend", "tensorrt-rtx"]


def test_the_table_names_the_device_and_what_ratios_divide_by() -> None:
    one, four, prefill = Shape(1, 256), Shape(4, 256), Shape(256, 256, all_rows=False)
    seconds = {
        ("float", one): [0.002, 0.004, 0.006],
        ("int8", one): [0.001, 0.001, 0.004],
        ("float", four): [0.004, 0.004, 0.004],
        ("int8", four): [0.0015, 0.0015, 0.0015],
        ("float", prefill): [0.030, 0.030, 0.030],
        ("int8", prefill): [0.010, 0.010, 0.010],
    }
    assert ratio(seconds, ("float", one), ("int8", one)) == 2.0  # of 2, 4 and 1.5, not of the medians
    assert table(seconds, "Some GPU").splitlines() == [
        "| GPU | pass | context | float, ms | int8, ms | float / int8 | float / float of 1 row | int8 / int8 of 1 row |",
        "|---|---|---|---|---|---|---|---|",
        "| Some GPU | 1 rows | 256 | 4.000 | 1.000 | 2.00 | 1.00 | 1.00 |",
        "| Some GPU | 4 rows | 256 | 4.000 | 1.500 | 2.67 | 1.00 | 1.50 |",
        "| Some GPU | prefill of 256 | 256 | 30.000 | 10.000 | 3.00 | - | - |",
    ]


def test_the_table_of_sequences_says_what_all_of_them_get() -> None:
    seconds = {
        ("float", Shape(1, 256)): [0.002, 0.002, 0.002],
        ("float", Shape(16, 256)): [0.002, 0.002, 0.002],
        ("float", Shape(1, 256, sequences=8)): [0.004, 0.004, 0.005],
        ("float", Turns((1,), 256)): [0.002, 0.002, 0.002],
        ("float", Shape(256, 256, all_rows=False)): [0.03, 0.03, 0.03],
    }
    assert sequences_table(seconds, "Some GPU").splitlines() == [
        "| GPU | sequences | rows of each | context | float, ms | float, tokens/s | float / float of 1 sequence |",
        "|---|---|---|---|---|---|---|",
        "| Some GPU | 1 | 1 | 256 | 2.000 | 500 | 1.00 |",
        "| Some GPU | 8 | 1 | 256 | 4.000 | 2000 | 2.00 |",
    ]


def test_contexts_and_sequences_beyond_the_engine_are_left_out() -> None:
    assert {shape.context for shape in shapes(1024, 1)} == {256, 1024}
    assert {shape.context for shape in shapes(4096, 1)} == {256, 1024, 4096}
    assert {each.sequences for each in shapes(4096, 4) if isinstance(each, Shape)} == {1, 4}


def test_onnx_runtime_on_the_gpu_is_tested_in_a_venv_of_its_own(tmp_path: Path) -> None:
    """gpu_check.sh with commands that only write down what they were called with."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(SCRIPTS.parent / name, tmp_path)
    (tmp_path / "bin").mkdir()
    log, note = tmp_path / "log", '#!/bin/sh\necho "$(basename "$(dirname "$(dirname "$0")")") $(basename "$0") $*" >> "$LOG"\n'
    making = (
        '[ "$2" = venv ] || exit 0\nmkdir -p "$3/bin"\n'
        "for tool in python pip quasar-export quasar-generate quasar-inspect quasar-bench; do\n"
        'cp "$(dirname "$0")/note" "$3/bin/$tool"; done\n'
        'echo "PATH=$PWD/$3/bin:$PATH" > "$3/bin/activate"\n'
    )
    for name, text in {"note": note, "nvidia-smi": "#!/bin/sh\n", "python3": f"#!/bin/sh\n{making}"}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "LOG": str(log)}
    command = ["bash", str(tmp_path / "scripts" / "gpu_check.sh"), "tensorrt", str(tmp_path / "work")]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    lines = log.read_text().splitlines()
    installed = [(line.split()[0], line.split(" .[")[1].rstrip("]").split(",")) for line in lines if " .[" in line]
    assert installed == [(".venv", ["test", "tensorrt"]), (".venv-gpu", ["export", "gpu", "tensorrt"])]
    assert any(line.startswith(".venv-gpu pip install") and line.endswith(" pytest") for line in lines)
    tested = [line for line in lines if "-m pytest" in line]
    assert tested == [
        ".venv python -m pytest -m gpu -rP -k not onnx_runtime_on_cuda",
        ".venv-gpu python -m pytest -m gpu -rP -k onnx_runtime_on_cuda",
    ]
    assert "def test_onnx_runtime_on_cuda_" in (Path(__file__).parent / "test_gpu.py").read_text()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU on this machine")
@pytest.mark.parametrize(
    "command",
    [["bash", str(SCRIPTS / "gpu_check.sh")], [sys.executable, str(SCRIPTS / "gpu_speed.py"), "--backend", "tensorrt-rtx"]],
)
def test_without_a_gpu_the_scripts_end_in_one_line(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(("gpu_check.sh: ", "gpu_speed.py: "))
