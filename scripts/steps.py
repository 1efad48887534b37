"""Compare the step times of one engine in several bundles, by rows, interleaved in one process.

usage: steps.py BUNDLE[:off] BUNDLE[:off] [...] [--engine int8] [--rows 1,2,4,6,8,12,16] [--context 256] [--rounds 40]

The first bundle is the denominator; `:off` behind one runs it in ONNX Runtime's own operators. Each is loaded twice, in one
order and in the other: what is loaded first has another place in memory, which makes 5 % and more. Each round times a pass of
every engine, in turn from either end. What is printed are medians over both engines of a bundle, and medians of the ratios
within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.engine import Feed
from quasar.engines.kernels.library import OFF, own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundles", nargs="+")
    p.add_argument("--engine", default="int8")
    p.add_argument("--rows", default="1,2,4,6,8,12,16")
    p.add_argument("--context", type=int, default=256)
    p.add_argument("--rounds", type=int, default=40)
    args = p.parse_args()
    engines: dict[str, list[OnnxEngine]] = {name: [] for name in args.bundles}
    for name in [*args.bundles, *reversed(args.bundles)]:
        bundle = open_bundle(Path(name.removesuffix(":off")))
        entry = bundle.engine(args.engine)
        graph, library = (OFF if name.endswith(":off") else own_kernels()).form(entry)
        engines[name].append(OnnxEngine(bundle.path(graph), entry, library=library))
    every = [(name, engine) for name, pair in engines.items() for engine in pair]
    random = np.random.default_rng(0)
    vocab = min(engine.spec.vocab_size for _, engine in every)
    text = random.integers(3, vocab, args.context)
    for _, engine in every:
        for begin in range(0, args.context, engine.spec.max_rows):
            engine.score([Feed(0, begin, text[begin : begin + engine.spec.max_rows], np.array([0]))])
    print("| rows | " + " | ".join(f"{name}, ms" for name in engines) + " | over the first |")
    print("|---|" + "---|" * len(engines) + "---|")
    for rows in map(int, args.rows.split(",")):
        feeds = [Feed(0, args.context, random.integers(3, vocab, rows), np.arange(rows))]
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
        first, *others = seconds.values()
        ratios = [statistics.median(a / b for a, b in zip(other, first, strict=True)) for other in others]
        cells = [f"{1e3 * statistics.median(values):.1f}" for values in seconds.values()]
        print(f"| {rows} | {' | '.join(cells)} | {', '.join(f'{ratio:.3f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
