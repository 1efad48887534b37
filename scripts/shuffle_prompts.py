"""Prompts that cannot be predicted: the same tokens in another order.

usage: shuffle_prompts.py BUNDLE PROMPTS.jsonl OUTPUT.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from quasar.engines.bundle.bundle import open_bundle
from quasar.runtime.bench.prompts import read_prompts
from quasar.runtime.tokenizer import Tokenizer


def main() -> None:
    bundle, prompts, output = sys.argv[1:]
    opened = open_bundle(bundle)
    tokenizer = Tokenizer(opened.tokenizer_folder(), next(iter(opened.manifest.engines.values())).vocab_size)
    shuffle = random.Random(0).shuffle
    rows = []
    for number, turns in enumerate(read_prompts(Path(prompts), None).turns):
        ids = tokenizer.encode(turns[0])
        shuffle(ids)
        rows.append(json.dumps({"question_id": number, "category": "shuffled", "turns": [tokenizer.decode(ids)]}))
    Path(output).write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
