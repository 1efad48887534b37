"""Compare the greedy answers of two bundles of one model, chain by chain: two forms of a graph, or two backends.

usage: same_tokens.py BUNDLE OTHER PROMPTS.jsonl [--chains "float; int8"] [--max-new-tokens 128] [--backends B,OTHER]

PROMPTS has rows with `turns`. Where answers part, the log-probabilities that both give to both tokens tell whether it was a
near-tie. The last bits of a sum depend on its order, so other kernels decide near-ties otherwise; int8 rounding makes such
differences visible.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from quasar.runtime import Result, SamplingParams, load

TOP = 8
"""Likeliest tokens that are asked for; the two of a near-tie are among them."""


def answers(bundle: Path, chain: str, backend: str | None, questions: list[str], count: int) -> list[Result]:
    # else a prompt that begins like an earlier one is cut into other passes, and a near-tie may fall the other way
    with load(bundle, chain=chain, backend=backend, prefix_caching=False) as model:
        params = SamplingParams(max_new_tokens=count, logprobs=TOP)
        return [model.generate([{"role": "user", "content": question}], params) for question in questions]


def gap(result: Result, position: int, other: int) -> float:
    """Nats between the token that was chosen and another one; infinite where that is not among the likeliest."""
    chosen = (result.logprobs or [])[position]
    return chosen.logprob - dict(chosen.top).get(other, float("-inf"))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", type=Path)
    p.add_argument("other", type=Path)
    p.add_argument("prompts", type=Path)
    p.add_argument("--chains", default="float; int8")
    p.add_argument("--max-new-tokens", type=int, default=128)
    p.add_argument("--backends", default=",", help="of BUNDLE and OTHER, with a comma between them")
    args = p.parse_args()
    first, second = (backend or None for backend in args.backends.split(","))
    questions = [json.loads(line)["turns"][0] for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    for chain in (text.strip() for text in args.chains.split(";")):
        ours = answers(args.bundle, chain, first, questions, args.max_new_tokens)
        theirs = answers(args.other, chain, second, questions, args.max_new_tokens)
        parted = [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.ids != b.ids]
        print(f"{chain}: the same tokens on {len(questions) - len(parted)} of {len(questions)} prompts")
        for number in parted:
            a, b = ours[number], theirs[number]
            place = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), None)
            if place is None:
                print(f"  prompt {number}: one answer is longer")
            else:
                gaps = f"{gap(a, place, b.ids[place]):.3f} and {gap(b, place, a.ids[place]):.3f}"
                print(f"  prompt {number}, token {place}: {gaps} nats between the two tokens")


if __name__ == "__main__":
    main()
