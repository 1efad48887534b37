"""A draft in the upper halves of its verifier's cache (QuantSpec), beside one with such a cache of its own and the same chain
with float caches: `int4 > int8` at long contexts.

usage: quantspec.py BUNDLE FLOAT_BUNDLE [--contexts 2000,8000,32000] [--text FILE.jsonl] [--draft-length 4] [--tokens 64]
                    [--repeat 3] [--variants halves,own,float,plain,float-plain]

BUNDLE was exported with `--cache int4`, FLOAT_BUNDLE from the same model with `--cache float`; both with engines int8 and int4,
and a `--max-length` beyond the contexts. Variants take turns: `halves` (the preset quantspec), `own` (the draft reads the upper
halves of a cache of its own), `float`, and `plain` and `float-plain`, the verifiers alone.

With --text, contexts are pieces of `text`, `prompt` or `turns` of the rows of FILE, another one for each repeat, and are read as
any prompt. Without, caches are filled with noise, which costs as much to look at and no time to read, but says nothing about
acceptance: what counts then is the time of a round, and of each engine in it. Printed are medians over the repeats, ratios to
the first variant, and acceptance over all repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.cache import BLOCK, CacheSpec
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.runtime import SamplingParams
from quasar.runtime.bench.machine import read_bandwidth
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import running_entry
from quasar.runtime.model import Model
from quasar.runtime.model_options import ModelOptions

CHAIN = "int4 > int8"
CHAINS = {"halves": CHAIN, "own": CHAIN, "float": CHAIN, "plain": "int8", "float-plain": "int8"}


def with_own_cache(bundle: Bundle) -> Bundle:
    """The bundle whose draft has a cache of its own."""
    draft = bundle.engine("int4")
    if draft.own is None:
        raise SystemExit(f"quantspec.py: {bundle.root} has no engines in own operators")
    own = replace(draft.own, cache=replace(draft.own.cache, owner=draft.name))
    engines = {**bundle.manifest.engines, draft.name: replace(draft, own=own)}
    return replace(bundle, manifest=replace(bundle.manifest, engines=engines))


def fill(engine: OnnxEngine, spec: CacheSpec, positions: int, random: np.random.Generator) -> None:
    """Noise of about the size of keys and values at the first positions of the one slot."""
    blocks = -(-positions // BLOCK)
    numbers, most = blocks * BLOCK * spec.head_dim, spec.capacity * spec.head_dim
    for tensor in engine.caches.tensors.values():
        for head in tensor.reshape(spec.heads, -1):
            if spec.dtype == "float32":
                head[:numbers] = random.standard_normal(len(head[:numbers]), np.float32)
                continue
            for plane in (0, most // 2):
                head[plane : plane + numbers // 2] = random.integers(0, 256, numbers // 2, np.uint8)
            # steps and least numbers; what is in float comes back from there
            scales = head[most:-64].view(np.float32)[: blocks * 2 * max(spec.head_dim, BLOCK)]
            scales.reshape(blocks, 2, -1)[:] = np.array([[1 / 60], [-2.0]], np.float32)


class Variant:
    """A chain on one kind of caches."""

    def __init__(self, name: str, bundle: Bundle, draft_length: int) -> None:
        self.name = name
        chain = CHAINS[name]
        options = ModelOptions(chain=chain, draft_length=draft_length if chain == CHAIN else None)
        self.options, self.bundle = options, bundle
        self.pool = EnginePool(bundle, options)
        self.model = Model(self.pool, options)
        self.rounds: list[float]
        self.rates: list[float]
        self.engines: list[Mapping[str, float]]
        self.forget()

    @property
    def cache_bytes(self) -> int:
        """Bytes of what the chain has for a sequence."""
        caches = {running_entry(self.options, self.bundle, self.bundle.engine(n)).cache for n in self.model.engines}
        alone = len(self.model.engines) == 1
        return sum(cache.slot_bytes for cache in caches if alone or cache.owner in self.model.engines)

    def pretend(self, ids: Sequence[int]) -> None:
        """Let every cache hold the text, as noise."""
        random = np.random.default_rng(0)
        for cached in self.pool.cached(self.model.chain).values():
            engine = cached.engine
            assert isinstance(engine, OnnxEngine)
            if not cached.follows:
                fill(
                    engine, running_entry(self.options, self.bundle, self.bundle.engine(engine.spec.name)).cache, len(ids), random
                )
                cached.held(0)[:] = ids[:-1]

    def forget(self) -> None:
        """Nothing was measured yet."""
        self.rounds, self.rates, self.engines = [], [], []
        self.accepted = self.proposed = 0

    def measure(self, ids: Sequence[int], tokens: int) -> None:
        done = self.model.generate(list(ids), SamplingParams(max_new_tokens=tokens, ignore_eos=True)).statistics
        self.rounds.append(done.decode_seconds / done.rounds)
        self.rates.append((done.new_tokens - 1) / done.decode_seconds)
        self.engines.append({name: seconds / done.rounds for name, seconds in done.decode_engine_seconds.items()})
        self.proposed += done.proposed
        self.accepted += done.accepted


def read(path: Path, bundle: Bundle, context: int, count: int) -> list[list[int]]:
    """So many pieces of the text in a file."""
    from quasar.runtime.tokenizer import Tokenizer

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [" ".join(row["turns"]) if "turns" in row else row.get("text", row.get("prompt", "")) for row in rows]
    tokenizer = Tokenizer(bundle.tokenizer_folder(), bundle.engine("int8").vocab_size)
    ids = tokenizer.encode("\n\n".join(texts))
    if len(ids) < count * context:
        raise SystemExit(f"quantspec.py: {path} has {len(ids)} tokens, and {count} x {context} are asked for")
    return [ids[i * context : (i + 1) * context] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("float_bundle")
    parser.add_argument("--contexts", default="2000,8000,32000")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--variants", default=",".join(CHAINS))
    args = parser.parse_args()
    planes, floats = open_bundle(args.bundle), open_bundle(args.float_bundle)
    of_variant = {"halves": planes, "own": with_own_cache(planes), "plain": planes}
    for context in map(int, args.contexts.split(",")):
        random = np.random.default_rng(context)
        vocab = planes.engine("int8").vocab_size
        noise = [int(i) for i in random.integers(3, vocab, context)]
        texts = read(args.text, planes, context, args.repeat) if args.text else [noise] * args.repeat
        variants = []
        for name in args.variants.split(","):
            variants.append(Variant(name, of_variant.get(name, floats), args.draft_length))
            if not args.text:
                variants[-1].pretend(noise)
        for one in variants:  # what is first of its kind takes longer
            one.measure(texts[0][-100:] if args.text else noise, args.draft_length + 2)
            one.forget()
        bandwidth = read_bandwidth()
        for turn in range(args.repeat):
            for one in variants[turn % len(variants) :] + variants[: turn % len(variants)]:
                one.measure(texts[turn], args.tokens)
        print(f"{context} tokens, read at {bandwidth:.0f} to {read_bandwidth():.0f} GB/s")
        base = variants[0]
        for one in variants:
            seconds = statistics.median(one.rounds)
            parts = {name: statistics.median(1e3 * of[name] for of in one.engines) for name in one.engines[0]}
            shares = ", ".join(f"{name} {ms:.0f}" for name, ms in parts.items())
            ratio = seconds / statistics.median(base.rounds)
            accepted = f"{one.accepted / one.proposed:.3f} of {one.proposed}" if one.proposed else "-"
            print(
                f"  {one.name:12} {1e3 * seconds:7.0f} ms a round ({shares}), {ratio:.2f} of {base.name}; "
                f"{statistics.median(one.rates):.2f} tokens/s; accepted {accepted}; caches {one.cache_bytes / 1e6:.0f} MB",
                flush=True,
            )
        for one in variants:
            one.model.close()


if __name__ == "__main__":
    main()
