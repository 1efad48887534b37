"""The script for machines with a GPU, as far as it can be run without one: what it measures, and the table it prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tensorrt import profile
from plans import Rig, small_model

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_speed import Shape, measure, ratio, shapes, table  # noqa: E402


def test_every_engine_is_timed_in_every_round(tmp_path: Path) -> None:
    model = small_model(tmp_path, max_length=300)
    rigs = [Rig(model, (profile(1, 16, 300), profile(1, 256, 300, rows=1))) for _ in range(2)]
    engines = {name: rig.load() for name, rig in zip(("float", "int8"), rigs, strict=True)}
    wanted = [shape for shape in shapes(300) if shape.rows in (1, 4, 256)]
    assert [str(shape) for shape in wanted] == ["1 rows", "4 rows", "prefill of 256"]
    seconds = measure(engines, wanted, rounds=3, repeat=2)
    assert {key: len(times) for key, times in seconds.items()} == {(name, shape): 3 for name in engines for shape in wanted}
    for rig in rigs:
        passes = rig.library.executed
        assert len(passes) == 3 * 4 + 3 * 3 * 2  # warm-up, then rounds
        assert passes[12:] == [p for p in ((0, 1, 1, 1, 256), (0, 1, 4, 4, 256), (1, 1, 256, 1, 256)) for _ in range(2)] * 3
        # two of each shape's warm-up, and all that are timed, are launched as graphs; prefill never is
        assert rig.cuda.launched == 2 * (2 + 3 * 2)


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


def test_contexts_beyond_the_engine_are_left_out() -> None:
    assert {shape.context for shape in shapes(1024)} == {256, 1024}
    assert {shape.context for shape in shapes(4096)} == {256, 1024, 4096}


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
