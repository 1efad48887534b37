"""Time another runtime on the prompts of quasar-bench: greedy decoding, tokens a second after the first of each answer.

usage: peer_speed.py SYSTEM MODEL BUNDLE PROMPTS.jsonl [--lookup] [--max-new-tokens 128] [--repeat 1]

| SYSTEM | MODEL | needs |
|---|---|---|
| transformers | the checkpoint's folder; float32 | torch, transformers |
| llama.cpp | a .gguf file | llama-cpp-python, built for this machine (CMAKE_ARGS=-DGGML_NATIVE=ON, --no-binary) |
| onnxruntime-genai | a folder of its model builder, e.g. `-p int4 -e cpu` | onnxruntime-genai |

BUNDLE is one of the same model: its tokenizer and chat template make the token ids, so that all read the same. --lookup is the
system's own prompt lookup, 5 tokens of at most 3-grams. Run one system after the other, and quasar-bench beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from quasar.engines.bundle.bundle import open_bundle
from quasar.runtime.bench.prompts import read_prompts
from quasar.runtime.chat import Chat
from quasar.runtime.tokenizer import Tokenizer

DRAFT, NGRAM = 5, 3
Generate = Callable[[Sequence[int], int], Iterator[Sequence[int]]]
"""(prompt, how many tokens) -> new tokens, as they come."""


def transformers(model: Path, lookup: bool) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    class Stamps(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[tuple[float, list[int]]] = []

        def put(self, value: torch.Tensor) -> None:
            self.pieces.append((time.perf_counter(), value.flatten().tolist()))

        def end(self) -> None: ...

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def generate(prompt: Sequence[int], count: int) -> Iterator[Sequence[int]]:
        stamps = Stamps()
        options = {"prompt_lookup_num_tokens": DRAFT, "max_matching_ngram_size": NGRAM} if lookup else {}
        loaded.generate(torch.tensor([list(prompt)]), max_new_tokens=count, do_sample=False, streamer=stamps, **options)
        return iter(Timed(stamp, ids) for stamp, ids in stamps.pieces[1:])  # the prompt comes first

    return generate


def llama_cpp(model: Path, lookup: bool) -> Generate:
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = LlamaPromptLookupDecoding(num_pred_tokens=DRAFT, max_ngram_size=NGRAM) if lookup else None
    threads = os.cpu_count()
    # the binding's drafts need the scores of every row
    loaded = Llama(
        str(model), n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False, logits_all=lookup, draft_model=draft
    )

    def generate(prompt: Sequence[int], count: int) -> Iterator[Sequence[int]]:
        loaded.reset()  # else a prompt that begins like the last one is not read
        for _, token in zip(range(count), loaded.generate(list(prompt), temp=0.0, repeat_penalty=1.0), strict=False):
            yield [token]

    return generate


def onnxruntime_genai(model: Path, lookup: bool) -> Generate:
    import onnxruntime_genai as og

    loaded = og.Model(str(model))

    def generate(prompt: Sequence[int], count: int) -> Iterator[Sequence[int]]:
        params = og.GeneratorParams(loaded)
        params.set_search_options(max_length=len(prompt) + count, do_sample=False)
        if lookup:
            params.set_speculative_options(ngram_size=NGRAM, max_draft_tokens=DRAFT)
        generator = og.Generator(loaded, params)
        generator.append_tokens(list(prompt))
        before = len(prompt)
        while not generator.is_done() and before < len(prompt) + count:
            generator.generate_next_token()
            sequence = generator.get_sequence(0)
            yield list(sequence[before:])
            before = len(sequence)

    return generate


SYSTEMS = {"transformers": transformers, "llama.cpp": llama_cpp, "onnxruntime-genai": onnxruntime_genai}


class Timed(list[int]):
    """Tokens that came at a time of their own."""

    def __init__(self, stamp: float, ids: list[int]) -> None:
        super().__init__(ids)
        self.stamp = stamp


def speed(generate: Generate, prompts: Sequence[list[int]], count: int, ends: set[int]) -> float:
    """Tokens a second after the first of each answer."""
    tokens, seconds = 0, 0.0
    for prompt in prompts:
        stamps = []
        for ids in generate(prompt, count):
            now = ids.stamp if isinstance(ids, Timed) else time.perf_counter()
            stamps += [now] * len(ids)
            if len(stamps) >= count or ends & set(ids):
                break
        tokens, seconds = tokens + len(stamps) - 1, seconds + stamps[-1] - stamps[0]
    return tokens / seconds


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("system", choices=SYSTEMS)
    p.add_argument("model", type=Path)
    p.add_argument("bundle", type=Path)
    p.add_argument("prompts", type=Path)
    p.add_argument("--lookup", action="store_true")
    p.add_argument("--max-new-tokens", type=int, default=128)
    p.add_argument("--repeat", type=int, default=1)
    args = p.parse_args()
    bundle = open_bundle(args.bundle)
    tokenizer = Tokenizer(bundle.tokenizer_folder(), next(iter(bundle.manifest.engines.values())).vocab_size)
    questions = [turns[0] for turns in read_prompts(args.prompts, None).turns]
    prompts = [tokenizer.encode_chat(Chat([{"role": "user", "content": question}])) for question in questions]
    generate = SYSTEMS[args.system](args.model, args.lookup)
    list(generate(prompts[0], 8))  # warm-up
    ends = set(bundle.manifest.stop_token_ids)
    speeds = [speed(generate, prompts, args.max_new_tokens, ends) for _ in range(args.repeat)]
    name = f"{args.system}, {args.model.name}{', prompt lookup' if args.lookup else ''}"
    print(f"| {name} | {statistics.median(speeds):.1f} | {min(speeds):.1f} to {max(speeds):.1f} |")


if __name__ == "__main__":
    main()
