"""Time float16, int8 and int4 plans on this machine's GPU, on a random Qwen3 of the 0.6B shape: a table for docs/measurements.md.

usage: gpu_speed.py WORKDIR --backend tensorrt|tensorrt-rtx [--rounds 20] [--json FILE]
       gpu_speed.py --describe --backend tensorrt|tensorrt-rtx

Writes the model and its bundle into WORKDIR once. All engines are timed interleaved in one process, so that every ratio is of
one GPU in one hour; a pass is one of verification: N rows, of each of which the likeliest token is wanted. A chain's passes
change their number of rows nearly every time, so passes are also timed with other ones in between. Then 1, 4 and 8 sequences
share passes, in a table of its own with tokens/s. --describe only prints which GPU, driver and libraries there are.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.bundle.manifest import LIBRARIES
from quasar.engines.command import run_command
from quasar.engines.engine import Engine, Feed, Int64
from quasar.engines.tensorrt.cuda import Device
from quasar.engines.tensorrt.engine import TensorRtEngine
from quasar.engines.tensorrt.library import load_library
from quasar.engines.tensorrt.plan import plan_of

SCRIPTS = Path(__file__).parent
EXPORT = "import sys; from quasar.exporter.cli import main; sys.exit(main(sys.argv[1:]))"
ENGINES = ("float", "int8", "int4")
BASE = "float"
# other numbers of rows are rounded up to these
ROWS = (1, 2, 4, 8, 16, 32)
TURNS = (1, 8, 2, 16, 4, 32)
SEQUENCES = (1, 4, 8)
SHARED_ROWS = (1, 2, 4, 8)
"""Rows of each sequence of a pass that sequences share."""
CONTEXTS = (256, 1024, 4096)
PREFILL = 256
WARM_UP = 4
"""Passes of each shape before it is timed: eager, recorded, launched. TensorRT-RTX compiles kernels in the meantime."""


@dataclass(frozen=True)
class Shape:
    """What is timed: a pass in which each of `sequences` feeds `rows` tokens that end at position `context`.

    All rows are wanted, or of a prefill the last.
    """

    rows: int
    context: int
    all_rows: bool = True
    sequences: int = 1

    def __str__(self) -> str:
        return f"{self.rows} rows" if self.all_rows else f"prefill of {self.rows}"

    def passes(self) -> list[Shape]:
        return [self]

    def feeds(self, ids: Int64) -> list[Feed]:
        """The pass, of these tokens in every slot."""
        rows = np.arange(self.rows) if self.all_rows else np.array([self.rows - 1])
        return [Feed(slot, self.context - self.rows, ids[: self.rows], rows) for slot in range(self.sequences)]


@dataclass(frozen=True)
class Turns:
    """What is timed: verification passes of these numbers of rows, one after the other; their mean."""

    rows: tuple[int, ...]
    context: int

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.rows[:4]))}, ... rows in turn"

    def passes(self) -> list[Shape]:
        return [Shape(rows, self.context) for rows in self.rows]


Timed = Shape | Turns
Seconds = dict[tuple[str, Timed], list[float]]


def shapes(max_length: int, slots: int) -> list[Timed]:
    """Verification passes by rows and context, with others in between, one chunk of prefill, and passes of many sequences."""
    contexts = [context for context in CONTEXTS if context <= max_length]
    verification = [(*(Shape(rows, context) for rows in ROWS), Turns(TURNS, context)) for context in contexts]
    several = [count for count in SEQUENCES if 1 < count <= slots]
    shared = [Shape(rows, c, sequences=count) for c in contexts for count in several for rows in SHARED_ROWS]
    return [*(timed for group in verification for timed in group), Shape(PREFILL, PREFILL, all_rows=False), *shared]


def measure(engines: Mapping[str, Engine], wanted: Sequence[Timed], rounds: int, repeat: int = 5) -> Seconds:
    """Seconds of a pass, one median of `repeat` times for each round; the engines take turns within every round."""
    seconds: Seconds = {}
    ids = np.random.default_rng(0).integers(3, next(iter(engines.values())).spec.vocab_size, PREFILL)

    def run(engine: Engine, timed: Timed) -> float:
        passes = [shape.feeds(ids) for shape in timed.passes()]
        begin = time.perf_counter()
        for feeds in passes:
            engine.score(feeds).best(0, 0)
        return (time.perf_counter() - begin) / len(passes)

    for timed in wanted:
        for engine in engines.values():
            for _ in range(WARM_UP):
                run(engine, timed)
    for _ in range(rounds):
        for timed in wanted:
            for name, engine in engines.items():
                seconds.setdefault((name, timed), []).append(statistics.median(run(engine, timed) for _ in range(repeat)))
    return seconds


def ratio(seconds: Seconds, over: tuple[str, Timed], under: tuple[str, Timed]) -> float:
    """The median over rounds of one time divided by another of the same round."""
    return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def turns_ratio(seconds: Seconds, name: str, turns: Turns) -> float:
    """The median over rounds of passes in turn divided by the same passes, each repeated by itself."""
    alone = zip(*(seconds[name, shape] for shape in turns.passes()), strict=True)
    return statistics.median(a / statistics.mean(b) for a, b in zip(seconds[name, turns], alone, strict=True))


def turns_text(seconds: Seconds) -> str:
    """What it costs that other passes lie in between, a line for each context."""
    names = list(dict.fromkeys(name for name, _ in seconds))
    turns = dict.fromkeys(timed for _, timed in seconds if isinstance(timed, Turns))
    return "\n".join(
        f"rows {', '.join(map(str, each.rows))} in turn / each repeated by itself, context {each.context}: "
        + ", ".join(f"{name} {turns_ratio(seconds, name, each):.2f}" for name in names)
        for each in turns
    )


def table(seconds: Seconds, device: str) -> str:
    """Markdown: milliseconds of each engine for one sequence, and ratios that name what they divide by."""
    names = list(dict.fromkeys(name for name, _ in seconds))
    quantized = [name for name in names if name != BASE]
    heads = [
        *("GPU", "pass", "context", *(f"{name}, ms" for name in names)),
        *(f"{BASE} / {name}" for name in quantized),
        *(f"{name} / {name} of 1 row" for name in names),
    ]
    lines = []
    for timed in dict.fromkeys(timed for _, timed in seconds):
        if isinstance(timed, Shape) and timed.sequences > 1:
            continue
        single = Shape(1, timed.context)
        cells = [device, str(timed), str(timed.context)]
        cells += [f"{1e3 * statistics.median(seconds[name, timed]):.3f}" for name in names]
        cells += [f"{ratio(seconds, (BASE, timed), (name, timed)):.2f}" for name in quantized]
        by_rows = isinstance(timed, Shape) and timed.all_rows
        cells += [f"{ratio(seconds, (name, timed), (name, single)):.2f}" if by_rows else "-" for name in names]
        lines.append(cells)
    return markdown(heads, lines)


def sequences_table(seconds: Seconds, device: str) -> str:
    """Markdown: passes that sequences share, and tokens/s of all together if every row becomes a token."""
    names = list(dict.fromkeys(name for name, _ in seconds))
    heads = [
        *("GPU", "sequences", "rows of each", "context", *(f"{name}, ms" for name in names)),
        *(f"{name}, tokens/s" for name in names),
        *(f"{name} / {name} of 1 sequence" for name in names),
    ]
    lines = []
    timed = [shape for shape in dict.fromkeys(shape for _, shape in seconds) if isinstance(shape, Shape) and shape.all_rows]
    for shape in sorted(timed, key=lambda shape: (shape.context, shape.sequences, shape.rows)):
        if shape.rows not in SHARED_ROWS:
            continue
        alone = Shape(shape.rows, shape.context)
        cells = [device, str(shape.sequences), str(shape.rows), str(shape.context)]
        cells += [f"{1e3 * statistics.median(seconds[name, shape]):.3f}" for name in names]
        cells += [f"{tokens_per_second(shape, seconds[name, shape]):.0f}" for name in names]
        cells += [f"{ratio(seconds, (name, shape), (name, alone)):.2f}" for name in names]
        lines.append(cells)
    return markdown(heads, lines)


def tokens_per_second(shape: Shape, seconds: Sequence[float]) -> float:
    """Rows of all sequences by the median time of a pass."""
    return shape.sequences * shape.rows / statistics.median(seconds)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, *lines)).replace("\n", f"\n|{'---|' * len(heads)}\n", 1)


def record(seconds: Seconds) -> list[dict[str, object]]:
    """For `--json`: what was timed, the times of each round, and tokens/s where all rows were wanted."""
    records = []
    for (name, timed), times in seconds.items():
        entry: dict[str, object] = {"engine": name, **asdict(timed), "seconds": times}
        if isinstance(timed, Shape) and timed.all_rows:
            entry["tokens_per_second"] = tokens_per_second(timed, times)
        records.append(entry)
    return records


def prepare(work: Path, backend: str) -> Path:
    """Make the model and its bundle where they are not there."""
    model, bundle = work / "model", work / backend
    if not (model / "model.safetensors").is_file():
        subprocess.run([sys.executable, str(SCRIPTS / "make_random_model.py"), str(model)], check=True)
    if not bundle.is_dir():
        # --force: of random weights, time says something and distance from the float model nothing
        options = ["--num-samples", "32", "--sample-length", "128", "--max-length", str(max(CONTEXTS)), "--force"]
        options += ["--max-sequences", str(max(SEQUENCES))]
        arguments = ["--model", str(model), "--engines", ",".join(ENGINES), "--backend", backend, *options]
        subprocess.run([sys.executable, "-c", EXPORT, *arguments, "--output", str(bundle)], check=True)
    return bundle


def describe(device: Device, backend: str) -> str:
    """The GPU, its driver and the libraries, on one line."""
    driver, runtime = device.versions()
    gib, version = device.memory()[1] / (1 << 30), load_library(backend).__version__
    gpu = f"{device.name}, compute capability {device.compute_capability}, {gib:.0f} GiB"
    return f"{gpu}; driver for CUDA {driver}, CUDA {runtime}, {backend} {version}"


def rebuild_command(bundle: Path, library: str) -> str:
    """What a shell takes to build a bundle's plans again."""
    return shlex.join(["quasar-export", "--rebuild", str(bundle), "--backend", library])


def load(bundle: Path) -> dict[str, Engine]:
    """The plans of a bundle."""
    opened = open_bundle(bundle)
    engines: dict[str, Engine] = {}
    for name in ENGINES:
        entry = opened.engine(name)
        plan = plan_of(entry)
        rebuild = rebuild_command(bundle, plan.library)
        engines[name] = TensorRtEngine(opened.path(plan.plan), opened.path(plan.graph), entry, rebuild)
    return engines


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path, nargs="?", default=Path("build/gpu"))
    p.add_argument("--backend", choices=LIBRARIES, required=True)
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--describe", action="store_true")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    device = Device()  # first: without one, nothing is made
    described = describe(device, args.backend)
    print(described)
    if args.describe:
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    engines = load(prepare(args.work, args.backend))
    specs = [engine.spec for engine in engines.values()]
    wanted = shapes(min(spec.max_length for spec in specs), min(spec.slots for spec in specs))
    seconds = measure(engines, wanted, args.rounds)
    print(table(seconds, device.name))
    print(f"\n{turns_text(seconds)}")
    print(f"\n{sequences_table(seconds, device.name)}")
    print(f"\nmedians over {args.rounds} interleaved rounds; 28 layers, hidden 1024, vocabulary 151936; {described}")
    if args.json:
        args.json.write_text(json.dumps({"device": described, "measured": record(seconds)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("gpu_speed.py", main))
