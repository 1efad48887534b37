"""Compare a bundle's engines with the float model in transformers, and its chains with their verifier alone.

usage: fidelity.py BUNDLE CHECKPOINT PROMPTS.jsonl [--max-new-tokens 128]

BUNDLE holds float and int8 engines of CHECKPOINT (a folder, or `demo`); PROMPTS has rows with `turns`. Per prompt, the float
engine answers greedily, and transformers says for each token whether it would have chosen it, too. Over the same text, int8
is asked for its choice at each position. Then `prompt-lookup > int8` answers; where its tokens part from those of `int8`, the
difference of the two logits tells whether it was a near-tie.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from quasar.engines.engine import Feed
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.runtime import Model, SamplingParams, load

NEAR_TIE = 0.1
"""Nats between the two tokens; int8 itself moves logits by about as much."""


def choices(model: Model, engine: str, ids: list[int], first: int) -> np.ndarray:
    """Logits after each token from position `first` on, float32 [n, V]."""
    runner = model.engines[engine]
    pieces = []
    for begin in range(0, len(ids), runner.spec.max_rows):
        chunk = np.array(ids[begin : begin + runner.spec.max_rows])
        rows = np.arange(max(first - begin, 0), len(chunk))
        pieces.append(runner.score([Feed(0, begin, chunk, rows)]).logits(0).copy())
    return np.concatenate(pieces)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", type=Path)
    p.add_argument("checkpoint")
    p.add_argument("prompts", type=Path)
    p.add_argument("--max-new-tokens", type=int, default=128)
    args = p.parse_args()
    params = SamplingParams(max_new_tokens=args.max_new_tokens)
    questions = [json.loads(line)["turns"][0] for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    reference = AutoModelForCausalLM.from_pretrained(open_checkpoint(args.checkpoint).path, dtype=torch.float32).eval()

    chosen: list[bool] = []
    agreed: list[bool] = []
    parted: list[tuple[int, int, float]] = []
    exactly_parted = 0
    with (
        load(args.bundle, chain="float") as exact,
        load(args.bundle, chain="int8") as int8,
        load(args.bundle, chain="prompt-lookup > int8") as chain,
        load(args.bundle, chain="int8", batch_invariant=True) as int8_invariant,
        load(args.bundle, chain="prompt-lookup > int8", batch_invariant=True) as chain_invariant,
    ):
        for number, question in enumerate(questions):
            prompt = exact.tokenize([{"role": "user", "content": question}])
            answer = exact.generate(prompt, params).ids
            with torch.inference_mode():
                best = reference(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1).numpy()
            chosen.extend(best == np.array(answer))
            agreed.extend(choices(int8, "int8", prompt + answer[:-1], len(prompt) - 1).argmax(-1) == np.array(answer))

            alone, together = int8.generate(prompt, params).ids, chain.generate(prompt, params).ids
            if alone != together:
                same = next(i for i, (a, b) in enumerate(zip(alone, together, strict=False)) if a != b)
                logits = choices(int8, "int8", prompt + alone[:same], len(prompt) + same - 1)[-1]
                parted.append((number, same, abs(float(logits[alone[same]] - logits[together[same]]))))
            exactly_parted += int8_invariant.generate(prompt, params).ids != chain_invariant.generate(prompt, params).ids

    near = sum(gap < NEAR_TIE for _, _, gap in parted)
    rows = len(questions)
    print(f"float engine: {sum(chosen)} of {len(chosen)} greedy tokens are those of transformers, {rows} prompts")
    print(f"int8: top-1 agreement with float {np.mean(agreed):.4f} on {len(agreed)} teacher-forced tokens of its answers")
    print(
        f"prompt-lookup > int8: tokens of int8 on {rows - len(parted)} of {rows} prompts, "
        f"{near} of {len(parted)} differences at a near-tie (< {NEAR_TIE})"
    )
    for number, position, gap in parted:
        print(f"  prompt {number}, token {position}: {gap:.4f} between the two tokens")
    print(f"  with --batch-invariant: on {rows - exactly_parted} of {rows} prompts")


if __name__ == "__main__":
    main()
