"""A chain of a bundle as one system of a comparison with other runtimes.

usage: peer_worker.py BUNDLE CHAIN SPEC.json

SPEC is a JSON object with `prompts` (lists of token ids), `max_new`, `warmup` (tokens), `threads` and `out`, the file that the
answer goes to: for each prompt the new ids, the seconds until the first of them and in all, and the passes of the last engine.
"""

from __future__ import annotations

import json
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quasar.runtime import Model, SamplingParams, load


def resident_kb(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found.group(1)) if found else 0


def answer(model: Model, ids: list[int], max_new: int) -> dict[str, Any]:
    begin = time.perf_counter()
    result = model.generate(ids, SamplingParams(max_new_tokens=max_new, ignore_eos=True))
    total = time.perf_counter() - begin
    s = result.statistics
    run = {"ids": result.ids, "n_prompt": len(ids), "n_first": 1, "steps": s.rounds}
    return {**run, "t_first": total - s.decode_seconds, "t_total": total}


def main() -> None:
    bundle, chain, spec_file = sys.argv[1:]
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    begin = time.perf_counter()
    with load(bundle, chain, threads=spec["threads"]) as model:
        loaded = time.perf_counter() - begin
        if spec["warmup"]:
            answer(model, spec["prompts"][0][::-1], spec["warmup"])
        runs = [answer(model, ids, spec["max_new"]) for ids in spec["prompts"]]
        done = {
            "ok": True,
            "load_s": loaded,
            "runs": runs,
            "rss_peak_kb": resident_kb("VmHWM"),
            "rss_end_kb": resident_kb("VmRSS"),
            "versions": {"quasar-toolchain": version("quasar-toolchain"), "onnxruntime": version("onnxruntime")},
        }
    Path(spec["out"]).write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main()
