"""What is left of an export for TensorRT that failed: its graphs, and the commands that find the node which is to blame."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quasar.engines.errors import BuildError, GateError
from quasar.engines.tensorrt.build import BuildOptions
from quasar.engines.tensorrt.library import polygraphy
from quasar.exporter.plans.build import PlanGraph

MARK = "quasar-export failed here"
"""A file in the directory that is left; one that has it may be replaced by the next failure."""
SIZES = "input_ids:[1,8] start:[1] rows:[1,2] context:[32]"
RANGES = "--val-range input_ids:[0,9] start:[0,8] rows:[0,7] context:[0,31]"


@contextmanager
def kept_on_failure(root: Path, output: Path, graphs: Sequence[PlanGraph], build: BuildOptions | None) -> Iterator[None]:
    """Within the block, a gate or a build that fails leaves the graphs for TensorRT in `OUTPUT.failed`.

    The error then has the command lines that bisect it. Without graphs for TensorRT, nothing is left.
    """
    try:
        yield
    except GateError as error:
        if build is None:
            raise
        kept = _keep(root, output, graphs)
        error.commands = bisect_commands(error, kept, graphs, build)
        error.args = (f"{error}; its graphs are in {kept}",)
        raise


def bisect_commands(error: GateError, folder: Path, graphs: Sequence[PlanGraph], build: BuildOptions) -> list[str]:
    """Polygraphy's command lines that look for the reason of an error, in the graphs in `folder` that it names."""
    building = isinstance(error, BuildError)
    names = {graph: (f"{graph.name}:", graph.label, f"{graph.name}.plan") for graph in graphs}
    blamed = [graph for graph, its in names.items() if any(name in str(error) for name in its)]
    return [line for graph in blamed or graphs for line in _commands(folder / graph.graph, build, building)]


def _keep(root: Path, output: Path, graphs: Sequence[PlanGraph]) -> Path:
    kept = output.with_name(f"{output.name}.failed")
    number = 1
    while kept.exists() and not (kept / MARK).exists():  # somebody else's
        number += 1
        kept = output.with_name(f"{output.name}.failed-{number}")
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    (kept / MARK).touch()
    for file in sorted({file for graph in graphs for file in graph.files}):
        (root / file).rename(kept / file)
    return kept


def _commands(graph: Path, build: BuildOptions, building: bool) -> list[str]:
    tool = polygraphy(build.library)
    typed = "" if build.library == "tensorrt-rtx" else " --strongly-typed"
    file, reduced = shlex.quote(str(graph)), shlex.quote(str(graph.with_suffix(".reduced.onnx")))
    profile = " ".join(f"--trt-{which}-shapes {SIZES}" for which in ("min", "opt", "max"))
    reduce = f"{tool} debug reduce {file} -o {reduced} --mode bisect --check"
    if building:
        return [
            f"{tool} inspect capability {file}",
            f"{reduce} polygraphy convert polygraphy_debug.onnx --convert-to trt -o polygraphy_debug.plan {profile}{typed}",
        ]
    compared = f"--trt --onnxrt --input-shapes {SIZES} {RANGES} {profile}{typed}"
    return [
        f"polygraphy check lint {file} --input-shapes {SIZES} {RANGES}",
        f"{tool} run {file} {compared} --trt-outputs mark all --onnx-outputs mark all --fail-fast",
        f"{reduce} polygraphy run polygraphy_debug.onnx {compared}",
    ]
