"""Compare the step times of one engine in several bundles, by rows, interleaved in one process.

usage: steps.py BUNDLE[:off] BUNDLE[:off] [...] [--engine int8] [--rows 1,2,4,6,8,12,16] [--context 256] [--sequences 1]
                [--rounds 40] [--plot FILE.svg]

The first bundle is the denominator; `:off` behind one runs it in ONNX Runtime's own operators. Each is loaded twice, in one
order and in the other: what is loaded first has another place in memory, which makes 5 % and more. Each round times a pass of
every engine, in turn from either end, with so many rows of each sequence. What is printed are medians over both engines of a
bundle, and medians of the ratios within a round.

The plot is a roofline of int8 engines: multiply-adds of the linears a second by rows, beside what reading the weights allows
at the bandwidth that was read before and after, and the highest rate of any pass. Give a short context: attention is in the
passes, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.engine import Feed
from quasar.engines.kernels.library import OFF, own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.runtime.bench.machine import read_bandwidth


def plot(path: Path, speeds: Mapping[str, Mapping[int, float]], weights: int, bandwidth: float) -> None:
    """A roofline as SVG.

    Args:
        speeds: passes a second by bundle and number of rows.
        weights: of all linears, a byte each.
        bandwidth: GB/s.
    """
    from quasar.runtime.bench.report.svg import INK, MUTED, SERIES, draw, legend, plain, standalone

    rates = {name: {rows: rows * weights / 1e9 * speed for rows, speed in of.items()} for name, of in speeds.items()}
    peak = max(rate for of in rates.values() for rate in of.values())

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        most = max(max(of) for of in rates.values())
        roof = [1, peak / bandwidth, max(most, peak / bandwidth)]
        (line,) = axes.plot(roof, [min(bandwidth * x, peak) for x in roof], color=INK, linestyle="--")
        entries = {f"weights at {bandwidth:.0f} GB/s, and the fastest pass": line}
        for (name, of), colour in zip(rates.items(), SERIES, strict=False):
            (entries[name],) = axes.plot(list(of), list(of.values()), color=colour, marker="o")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("rows of a pass")
        axes.set_ylabel("10^9 multiply-adds a second", color=MUTED)
        plain(axes, grid="both")
        legend(figure, entries, 1)

    drawing = draw("roofline", "Multiply-adds a second by rows of a pass, beside what memory allows", 360, paint)
    path.write_text(standalone(drawing), encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundles", nargs="+")
    p.add_argument("--engine", default="int8")
    p.add_argument("--rows", default="1,2,4,6,8,12,16")
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--sequences", type=int, default=1)
    p.add_argument("--rounds", type=int, default=40)
    p.add_argument("--plot", type=Path)
    args = p.parse_args()
    engines: dict[str, list[OnnxEngine]] = {name: [] for name in args.bundles}
    for name in [*args.bundles, *reversed(args.bundles)]:
        bundle = open_bundle(Path(name.removesuffix(":off")))
        entry = bundle.engine(args.engine)
        form, library = (OFF if name.endswith(":off") else own_kernels()).form(entry)
        engines[name].append(OnnxEngine(bundle.path(form.graph), form, library=library))
    every = [(name, engine) for name, pair in engines.items() for engine in pair]
    random = np.random.default_rng(0)
    vocab = min(engine.spec.vocab_size for _, engine in every)
    text = random.integers(3, vocab, args.context)
    for _, engine in every:
        for slot in range(args.sequences):
            for begin in range(0, args.context, engine.spec.max_rows):
                engine.score([Feed(slot, begin, text[begin : begin + engine.spec.max_rows], np.array([0]))])
    bandwidths, speeds = [read_bandwidth()], {name: dict[int, float]() for name in engines}
    print("| rows | " + " | ".join(f"{name}, ms" for name in engines) + " | over the first |")
    print("|---|" + "---|" * len(engines) + "---|")
    for rows in map(int, args.rows.split(",")):
        slots = range(args.sequences)
        feeds = [Feed(slot, args.context, random.integers(3, vocab, rows), np.arange(rows)) for slot in slots]
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(args.rounds):
            spent = dict.fromkeys(engines, 0.0)
            for name, engine in every[:: 1 if turn % 2 else -1]:
                engine.score(feeds)  # the threads of the other engine's session have stopped spinning
                begin = time.perf_counter()
                engine.score(feeds)
                spent[name] += (time.perf_counter() - begin) / 2
            for name, value in spent.items():
                seconds[name].append(value)
        for name, values in seconds.items():
            speeds[name][rows * args.sequences] = 1 / statistics.median(values)
        first, *others = seconds.values()
        ratios = [statistics.median(a / b for a, b in zip(other, first, strict=True)) for other in others]
        cells = [f"{1e3 * statistics.median(values):.1f}" for values in seconds.values()]
        print(f"| {rows} | {' | '.join(cells)} | {', '.join(f'{ratio:.3f}' for ratio in ratios)} |", flush=True)
    bandwidths.append(read_bandwidth())
    print(f"read bandwidth before and after: {bandwidths[0]:.1f} and {bandwidths[1]:.1f} GB/s")
    if args.plot is not None:
        weights = bundle.path(f"{args.engine}.bin").stat().st_size
        plot(args.plot, speeds, weights, statistics.mean(bandwidths))


if __name__ == "__main__":
    main()
