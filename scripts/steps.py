"""Compare the step times of one engine in several bundles, by rows, interleaved in one process.

usage: steps.py BUNDLE BUNDLE [...] [--engine int8] [--rows 1,2,4,6,8,12,16] [--context 256] [--rounds 40]

The first bundle is the denominator. Each round times a pass of every bundle, in turn from either end; what is printed are
medians, and medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from quasar.engines.bundle import open_bundle
from quasar.engines.onnxruntime import OnnxEngine


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundles", nargs="+", type=Path)
    p.add_argument("--engine", default="int8")
    p.add_argument("--rows", default="1,2,4,6,8,12,16")
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--rounds", type=int, default=40)
    args = p.parse_args()
    engines = {}
    for folder in args.bundles:
        bundle = open_bundle(folder)
        entry = bundle.engine(args.engine)
        engines[str(folder)] = OnnxEngine(bundle.path(entry.graph), entry)
    random = np.random.default_rng(0)
    vocab = min(engine.spec.vocab_size for engine in engines.values())
    text = random.integers(3, vocab, (1, args.context))
    for engine in engines.values():
        engine.forward(text, np.array([0]), np.array([[args.context - 1]]))
    print("| rows | " + " | ".join(f"{name}, ms" for name in engines) + " | over the first |")
    print("|---|" + "---|" * len(engines) + "---|")
    for rows in map(int, args.rows.split(",")):
        call = random.integers(3, vocab, (1, rows)), np.array([args.context]), np.arange(rows)[None]
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(args.rounds):
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                engines[name].forward(*call)  # the threads of the other engine's session have stopped spinning
                begin = time.perf_counter()
                engines[name].forward(*call)
                seconds[name].append(time.perf_counter() - begin)
        first, *others = seconds.values()
        ratios = [statistics.median(a / b for a, b in zip(other, first, strict=True)) for other in others]
        cells = [f"{1e3 * statistics.median(values):.1f}" for values in seconds.values()]
        print(f"| {rows} | {' | '.join(cells)} | {', '.join(f'{ratio:.3f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
