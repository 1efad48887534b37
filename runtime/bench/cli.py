"""quasar-bench"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.command import EXIT_CODES, INTERRUPTED, run_command
from quasar.engines.errors import UsageError
from quasar.runtime.bench.bench import Bench, Settings
from quasar.runtime.bench.load import parse_concurrency
from quasar.runtime.bench.prompts import read_prompts
from quasar.runtime.bench.report.html import write_report
from quasar.runtime.bench.report.svg import require_matplotlib
from quasar.runtime.bench.report.table import text_table
from quasar.runtime.bench.sweep import parse_axes
from quasar.runtime.options import (
    add_model_options,
    add_sampling_options,
    add_template_options,
    model_options,
    sampling_options,
    template_options,
)
from quasar.runtime.sampling import SamplingParams

SEED = 0
"""Sampled answers are compared with each other, so they need one."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-bench",
        description="Measure chains of a bundle against plain decoding, interleaved in one run. Ratios name what they divide by.",
        epilog=EXIT_CODES,
    )
    p.add_argument("bundle", metavar="BUNDLE", help="directory that quasar-export wrote")
    p.add_argument("--prompts", type=Path, required=True, metavar="FILE", help='.jsonl with rows {"turns": ["..."]}')
    p.add_argument(
        "--chains", metavar="LIST", help='separated by semicolons: "int8; prompt-lookup > int8" (default: what is there)'
    )
    p.add_argument("--limit", type=int, metavar="N", help="use the first N rows only")
    p.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default: 128")
    p.add_argument("--repeat", type=int, default=3, metavar="N", help="times that everything is measured (default: 3)")
    p.add_argument("--sweep", nargs="+", metavar="AXIS", help="also k=1,3,5,7,9 (draft length) and temperature=0,0.6,1")
    p.add_argument(
        "--concurrency", default="1", metavar="N,N", help="also all prompts with so many answers at once: 1,2,4,8 (default: 1)"
    )
    p.add_argument("--fidelity", action="store_true", help="also the distance of every engine from float")
    p.add_argument("--report", type=Path, metavar="DIR", help="write report.json, report.html and decode.svg there")
    p.add_argument("--json", action="store_true", help="print the results as one JSON object")
    p.add_argument("--no-memory", action="store_true", help="leave out peak memory, which loads every chain once more")
    add_template_options(p)
    add_sampling_options(p, of_bundle=False)
    # chains are listed, slots follow from --concurrency; a prompt that was in the cache would say nothing of reading it, and a
    # pool that holds answers of the last run nothing of drafts
    add_model_options(p, "chain", "sequences", "prefix_caching", "generation_config", "pool")
    return p


def _settings(args: argparse.Namespace) -> Settings:
    for name, value in (("--limit", args.limit), ("--repeat", args.repeat)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; give at least 1")
    concurrency = parse_concurrency(args.concurrency)
    if args.seed is None:
        args.seed = SEED
    return Settings(
        params=SamplingParams(**sampling_options(args, max_new_tokens=args.max_new_tokens)),
        repeats=args.repeat,
        axes=parse_axes(args.sweep or []),
        fidelity=args.fidelity,
        memory=not args.no_memory,
        concurrency=concurrency,
        options=model_options(args),
    )


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    settings = _settings(args)
    prompts = read_prompts(args.prompts, args.limit, template_options(args))
    if args.report is not None:
        require_matplotlib()  # before, not after an hour of measuring
        if args.report.exists() and not args.report.is_dir():
            raise UsageError(f"--report {args.report}: a file is there; give a directory")
    from tqdm import tqdm

    def progress(name: str, parts: int) -> Any:
        return tqdm(desc=f"{name:<10}", total=parts, file=sys.stderr, disable=None, leave=True)

    command = shlex.join(["quasar-bench", *(sys.argv[1:] if argv is None else argv)])
    chains = None if args.chains is None else [chain.strip() for chain in args.chains.split(";") if chain.strip()]
    if chains == []:
        raise UsageError("--chains names no chain; separate chains by semicolons")
    bench = Bench(open_bundle(args.bundle, args.verify), prompts, settings, progress)
    results = {**bench.run(chains), "command": command}
    results["settings"]["sampling"] = {
        name: value for name, value in asdict(settings.params).items() if name not in ("max_new_tokens", "ignore_eos", "stop")
    }
    print(json.dumps(results) if args.json else text_table(results))
    if args.report is not None:
        print(f"report: {write_report(results, args.report)}", file=sys.stderr)
    if results["interrupted"]:
        print("quasar-bench: interrupted; what was measured is above", file=sys.stderr)
        return INTERRUPTED
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-bench", lambda: _run(argv))
