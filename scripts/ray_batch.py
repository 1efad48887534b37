"""Answer a file of prompts with a bundle, on a Ray cluster or on this machine alone.

    python scripts/ray_batch.py BUNDLE PROMPTS.jsonl ANSWERS [--actors 1] [--cpus 2] [--batch-size 64]

Rows have an `id`, and a `prompt` (text) or `messages` (a chat); ANSWERS becomes a folder of Parquet files. Rows that could not
be answered say why in `error`. The seed of a row is made of its id, so a second run samples the same answers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet
import ray

from quasar.runtime import SamplingParams
from quasar.runtime.serving.ray.predictor import Predictor

LIGHT = {"num_cpus": 0}
"""Of reading and writing: where actors have all CPUs of a cluster, the job would wait for ever for another one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--actors", type=int, default=1, help="each loads the bundle")
    parser.add_argument("--cpus", type=int, default=2, help="of an actor, which has as many threads")
    parser.add_argument("--batch-size", type=int, default=64, help="rows; several times the sequences that share passes")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    if args.answers.exists() and any(args.answers.iterdir()):
        parser.error(f"{args.answers} is there, and rows would be added to it; give another folder")
    rows = ray.data.read_json(str(args.prompts.resolve()), lines=True, ray_remote_args=LIGHT)
    answered = rows.map_batches(
        Predictor,
        fn_constructor_kwargs={
            "bundle": args.bundle.resolve(),
            "params": SamplingParams(max_new_tokens=args.max_new_tokens, temperature=args.temperature),
            "prompt": "messages" if "messages" in (rows.columns() or ()) else "prompt",
            "seed_from": "id",
        },
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_cpus=args.cpus,
        batch_size=args.batch_size,
        batch_format="pyarrow",
    )
    answered.write_parquet(str(args.answers.resolve()), ray_remote_args=LIGHT)
    done = pyarrow.parquet.read_table(args.answers, columns=["error", "num_generated_tokens"]).to_pylist()
    failed, tokens = sum(bool(row["error"]) for row in done), sum(row["num_generated_tokens"] for row in done)
    print(f"{args.answers}: {len(done)} rows, {failed} of them with an error, {tokens} tokens")


if __name__ == "__main__":
    main()
