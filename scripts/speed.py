"""Measure the int8 engine against the float engine, on a random Qwen3 of the 0.6B shape.

usage: speed.py WORKDIR [--rounds 12] [--json FILE]

Writes the model and its bundles into WORKDIR once (4.5 GB), then times both engines interleaved in one process, so that
every ratio is of one machine in one hour. Memory and loading are measured in processes of their own. What is printed is
the table in docs/measurements.md.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 256
SCRIPTS = Path(__file__).parent
EXPORT = "import sys; from quasar.exporter.cli import main; sys.exit(main(sys.argv[1:]))"
GENERATE = """
import json, re, sys, time
from quasar.runtime import SamplingParams, load
begin = time.perf_counter()
model = load(sys.argv[1], chain="int8")
loaded = time.perf_counter() - begin
ids = [i % 3000 for i in range(7, 200)]
model.generate(ids, SamplingParams(max_new_tokens=64, ignore_eos=True))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
print(json.dumps({"load_seconds": loaded, "peak_bytes": peak}))
"""


def run(code: str, *arguments: str) -> tuple[str, float, int]:
    """(standard output, seconds, peak bytes) of a Python process."""
    begin = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # of the largest child so far
    return process.stdout, time.perf_counter() - begin, peak


def prepare(work: Path) -> dict[str, float]:
    """Make the model and the bundles that are not there; time and memory of the int8 export when it was made now."""
    model, figures = work / "model", work / "export.json"
    if not (model / "model.safetensors").is_file():
        subprocess.run([sys.executable, str(SCRIPTS / "make_random_model.py"), str(model)], check=True)
    common = ["--model", str(model), "--num-samples", "32", "--sample-length", "128", "--output"]
    if not (work / "int8").is_dir():
        _, seconds, peak = run(EXPORT, *common, str(work / "int8"), "--int8")
        figures.write_text(json.dumps({"export_seconds": seconds, "export_peak_bytes": peak}))
    if not (work / "float").is_dir():
        run(EXPORT, *common, str(work / "float"), "--engines", "float")
    found: dict[str, float] = json.loads(figures.read_text()) if figures.is_file() else {}
    return found


def bandwidth() -> float:
    """DRAM read bandwidth of all cores, bytes a second: the best of several sums over 1 GiB."""
    import torch

    block = torch.ones(1 << 28, dtype=torch.float32)
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - begin))
    return best


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def weight_bytes(work: Path) -> dict[str, float]:
    """Bytes that a step reads: every linear, but only one row of the embedding."""
    from quasar.exporter.model.checkpoint import open_checkpoint

    architecture = open_checkpoint(str(work / "model")).architecture
    weights = architecture.vocab_size * architecture.hidden_size
    for layer in range(architecture.num_hidden_layers):
        weights += sum(rows * columns for rows, columns in architecture.linear_shapes(layer).values())
    return {"int8": float(weights), "float": 4.0 * weights}


def steps(work: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each kind of pass, medians over interleaved rounds."""
    from quasar.engines.bundle.bundle import open_bundle
    from quasar.engines.engine import Feed
    from quasar.engines.onnxruntime.engine import OnnxEngine

    engines = {}
    for name in ("float", "int8"):
        bundle = open_bundle(work / name)
        engines[name] = OnnxEngine(bundle.path(f"{name}.onnx"), bundle.engine(name))
    ids = np.random.default_rng(0).integers(3, 4000, size=CONTEXT)
    seconds: dict[str, list[float]] = {}

    def measure(label: str, name: str, rows: int, start: int, repeat: int) -> None:
        feeds = [Feed(0, start, ids[:rows], np.arange(rows) if rows < CONTEXT else np.array([CONTEXT - 1]))]
        call = lambda: engines[name].score(feeds)  # noqa: E731
        call()
        seconds.setdefault(label, []).append(statistics.median(timed(call) for _ in range(repeat)))

    for _ in range(rounds):
        for name in engines:
            for rows in (1, 6):
                measure(f"{name} {rows}", name, rows, CONTEXT, 5)
    for _ in range(rounds):
        for name in engines:
            measure(f"{name} prefill", name, CONTEXT, 0, 1)
    for engine in engines.values():
        engine.close()
    ratios = {
        "step": [f / i for f, i in zip(seconds["float 1"], seconds["int8 1"], strict=True)],
        "rows": [six / one for six, one in zip(seconds["int8 6"], seconds["int8 1"], strict=True)],
        "prefill": [f / i for f, i in zip(seconds["float prefill"], seconds["int8 prefill"], strict=True)],
    }
    median = {label: statistics.median(values) for label, values in seconds.items()}
    return {"seconds": median, "ratios": {name: statistics.median(values) for name, values in ratios.items()}}


def outside(work: Path) -> float:
    """Seconds a round that `prompt-lookup > int8` spends outside the engine."""
    from quasar.runtime import SamplingParams, load

    ids = np.random.default_rng(1).integers(3, 40, size=CONTEXT).tolist()  # few ids, so that look-ups match
    with load(work / "int8", chain="prompt-lookup > int8") as model:
        done = model.generate(ids, SamplingParams(max_new_tokens=96, ignore_eos=True)).statistics
    return (done.decode_seconds - sum(done.decode_engine_seconds.values())) / done.rounds


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("work", type=Path)
    p.add_argument("--rounds", type=int, default=12)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    exported = prepare(args.work)
    loaded = json.loads(run(GENERATE, str(args.work / "int8"))[0])
    before = bandwidth()
    measured = steps(args.work, args.rounds)
    after = bandwidth()
    rest = outside(args.work)
    size = weight_bytes(args.work)
    s, r, speed = measured["seconds"], measured["ratios"], (before + after) / 2
    cache = 28 * 2 * 8 * 128 * 4 * (193 + 64)  # positions that the memory run writes
    rows: list[tuple[str, str, str]] = [
        ("float step of 1 row / int8 step of 1 row", f"{r['step']:.2f}", ">= 2.8"),
        ("int8 step of 6 rows / int8 step of 1 row", f"{r['rows']:.2f}", "<= 1.30"),
        ("float prefill / int8 prefill, 256 tokens", f"{r['prefill']:.2f}", ">= 3"),
        ("time outside the engine / int8 step of 1 row", f"{rest / s['int8 1']:.1%}", "< 3 %"),
        *(
            (f"DRAM floor / {name} step of 1 row", f"{size[name] / speed / s[f'{name} 1']:.0%}", "-")
            for name in ("int8", "float")
        ),
        ("load the int8 bundle, s", f"{loaded['load_seconds']:.2f}", "< 3"),
        ("(peak memory - KV) / int8 weight bytes", f"{(loaded['peak_bytes'] - cache) / size['int8']:.2f}", "< 1.4"),
    ]
    if exported:
        rows.append(("export --int8 with search and gate, s", f"{exported['export_seconds']:.0f}", "< 240"))
        rows.append(("its peak memory, GB", f"{exported['export_peak_bytes'] / 1e9:.1f}", "< 7"))
    print("| figure | measured | wanted |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    timings = ", ".join(f"{label} {1e3 * value:.1f}" for label, value in s.items())
    print(f"\nmilliseconds: {timings}; DRAM {before / 1e9:.0f} GB/s before, {after / 1e9:.0f} after; {_processor()}")
    if args.json:
        record = {"measured": measured, "outside": rest, "memory": loaded, "export": exported, "dram": [before, after]}
        args.json.write_text(json.dumps(record, indent=1))


def _processor() -> str:
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match.group(1) if match else "unknown processor"


if __name__ == "__main__":
    main()
