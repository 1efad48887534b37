"""What a kept pool takes and brings: milliseconds to read and to write a file of text, and tokens per round with and without it.

usage: pool.py BUNDLE --prompts FILE.jsonl --text FILE.txt [--limit 12] [--max-new-tokens 128]

The text should have nothing to do with the prompts, and fill a pool: about 5 MB.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from quasar.engines.bundle.bundle import open_bundle
from quasar.runtime import SamplingParams, load
from quasar.runtime.bench.prompts import Prompts, read_prompts
from quasar.runtime.corpus import fill_pool
from quasar.runtime.kept_pool import open_pool


def milliseconds(run: Callable[[], object], repeats: int) -> str:
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - begin))
    return f"{statistics.median(taken):.1f} ms ({min(taken):.1f} to {max(taken):.1f})"


def answer(name: str, bundle: Path, chain: str, pool: Path | None, prompts: Prompts, tokens: int) -> list[list[int]]:
    with load(bundle, chain, pool=pool) as model:
        params = SamplingParams(max_new_tokens=tokens)
        done = [model.generate(prompts.tokens(model, turns), params) for turns in prompts.turns]
    counts = [one.statistics for one in done]
    rounds, seconds = sum(one.rounds for one in counts), sum(one.decode_seconds for one in counts)
    new, proposed = sum(len(one.ids) for one in done), sum(one.proposed for one in counts)
    accepted, inside = sum(one.accepted for one in counts), sum(sum(one.decode_engine_seconds.values()) for one in counts)
    print(
        f"{name:24} {new / rounds:5.2f} tokens per round, {accepted / max(proposed, 1):4.0%} of {proposed} accepted, "
        f"{new / seconds:5.1f} tokens/s, {1 - inside / seconds:.1%} outside engines",
        flush=True,
    )
    return [one.ids for one in done]


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("bundle", type=Path)
    p.add_argument("--prompts", type=Path, required=True)
    p.add_argument("--text", type=Path, required=True)
    p.add_argument("--limit", type=int, default=12)
    p.add_argument("--max-new-tokens", type=int, default=128)
    p.add_argument("--engine", default="int8")
    args = p.parse_args()
    bundle, prompts = open_bundle(args.bundle), read_prompts(args.prompts, args.limit)
    vocab_size = bundle.engine(args.engine).vocab_size
    with tempfile.TemporaryDirectory() as folder:
        own, other = Path(folder) / "own", Path(folder) / "other"
        begin = time.perf_counter()
        held = fill_pool(bundle, other, [args.text], vocab_size)
        print(f"{held} tokens, {other.stat().st_size} bytes, made of text in {time.perf_counter() - begin:.1f} s")
        file, fresh = open_pool(other, bundle, vocab_size), iter(range(vocab_size))
        print(f"read {milliseconds(file.read, 31)}, an answer added {milliseconds(lambda: file.add([[next(fresh)]]), 5)}")
        pooled = f"suffix-pool > {args.engine}"
        tokens = args.max_new_tokens
        answers = [
            answer("suffix", args.bundle, f"suffix > {args.engine}", None, prompts, tokens),
            answer("an empty pool", args.bundle, pooled, own, prompts, tokens),
            answer("a pool of the answers", args.bundle, pooled, own, prompts, tokens),
            answer("a pool of other text", args.bundle, pooled, other, prompts, tokens),
        ]
    print("the same tokens" if all(one == answers[0] for one in answers) else "OTHER TOKENS")


if __name__ == "__main__":
    main()
