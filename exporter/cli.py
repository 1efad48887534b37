"""quasar-export"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quasar.engines.command import EXIT_CODES, run_command
from quasar.engines.errors import UsageError
from quasar.exporter.draft import FORMS, INT4, Draft, parse_drafts

if TYPE_CHECKING:  # torch and transformers take seconds to import: --help and wrong options need not wait for them
    from quasar.exporter.export import ExportResult
    from quasar.exporter.options import ExportOptions

WEAK_DRAFT = 0.3
"""Top-1 agreement below which a draft is hardly ever worth its time."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-export",
        description="Turn a Hugging Face checkpoint into a bundle of quantized engines, checked against the float model.",
        epilog=EXIT_CODES,
    )
    p.add_argument("--model", required=True, help="folder, Hugging Face id, alias such as qwen3 or qwen3:8b, or demo")
    p.add_argument("--int8", action="store_true", help="a W8A8 verifier: the same as --engines int8 --draft int4")
    p.add_argument("--engines", metavar="LIST", help="exactly these, comma separated: float, int8, int4, int4-a16")
    p.add_argument(
        *("--draft",), metavar="LIST",
        help=f"engines to add for drafting, comma separated: {FORMS} (with --int8: int4, else none)",
    )  # fmt: skip
    p.add_argument("--output", type=Path, metavar="DIR", help="the bundle (default: MODEL-ENGINES here)")
    p.add_argument("--calibration", type=Path, metavar="FILE", help=".jsonl or .txt (default: a built-in set)")
    p.add_argument("--num-samples", type=int, default=32, metavar="N", help="sequences to calibrate on (default: 32)")
    p.add_argument("--sample-length", type=int, default=256, metavar="N", help="tokens of each at the most (default: 256)")
    p.add_argument("--alpha", default="search", metavar="search|off|A", help="SmoothQuant's alpha (default: search)")
    p.add_argument(
        *("--float-budget",), type=float, default=0.05, metavar="SHARE",
        help="share of the weights that may stay float where int8 ruins a linear (default: 0.05)",
    )  # fmt: skip
    p.add_argument("--lm-head", choices=("int8", "float"), default="int8", help="precision of lm_head in the int8 engine")
    p.add_argument("--max-length", type=int, metavar="N", help="positions of the KV cache (default: 4096, or the model's)")
    p.add_argument("--max-batch", type=int, default=1, metavar="N", help="slots in one pass (default: 1)")
    p.add_argument("--backend", choices=("onnxruntime",), default="onnxruntime", help="what runs the engines")
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hugging Face model")
    p.add_argument("--force", action="store_true", help="write the bundle even when the gate fails")
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return p


def _options(args: argparse.Namespace) -> ExportOptions:
    (engines, drafts), alphas = _engines(args), _alphas(args.alpha)
    from quasar.exporter.options import ExportOptions

    named = "-".join(name for name in engines if name != "int4" or engines == ("int4",))
    model = Path(args.model).expanduser()
    name = model.resolve().name if model.is_dir() else model.name.lower().replace(":", "-")
    output = args.output or Path(f"{name}-{named}")
    return ExportOptions(
        model=args.model,
        output=output,
        engines=engines,
        drafts=drafts,
        calibration=args.calibration,
        samples=args.num_samples,
        sample_length=args.sample_length,
        **alphas,
        float_budget=args.float_budget,
        max_length=args.max_length,
        max_batch=args.max_batch,
        float_lm_head=args.lm_head == "float",
        revision=args.revision,
        force=args.force,
    )


def _engines(args: argparse.Namespace) -> tuple[tuple[str, ...], tuple[Draft, ...]]:
    """(engines, drafts beside them)"""
    if args.engines is None and not args.int8:
        raise UsageError("say what to export: --int8, or --engines with a list of float, int8, int4, int4-a16")
    engines = [name.strip() for name in args.engines.split(",")] if args.engines is not None else ["int8"]
    if args.int8 and "int8" not in engines:
        engines.append("int8")
    default = INT4 if args.engines is None else "none"
    with_int4, drafts = parse_drafts(default if args.draft is None else args.draft)
    if with_int4 and INT4 not in engines:
        engines.append(INT4)
    return tuple(engines), drafts


def _alphas(text: str) -> dict[str, tuple[float, ...]]:
    """What `--alpha` changes in the options."""
    if text in ("search", "off"):
        return {} if text == "search" else {"alphas": ()}
    try:
        return {"alphas": (float(text),)}
    except ValueError:
        raise UsageError(f"--alpha {text}: give a number from 0 to 1, 'search' or 'off'") from None


def _print(result: ExportResult, seconds: float) -> None:
    manifest = result.manifest
    total = sum(file.bytes for file in manifest.files)
    print(f"{result.output}: {', '.join(manifest.engines)}, {total / 1e6:.1f} MB, {seconds:.1f} s")
    rows = [("engine", "top-1 agreement", "mean KL", "perplexity ratio", "max |dlogit|", "left float")]
    for name, engine in manifest.engines.items():
        g = engine.gate
        rows.append(
            (
                *(name, f"{g['top1_agreement']:.4f}", f"{g['mean_kl']:.2e}", f"{g['perplexity_ratio']:.4f}"),
                *(
                    f"{g['max_abs_logit_difference']:.2e}",
                    ", ".join(engine.float_linears) if name != "float" else "all",
                ),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    tokens = next(iter(manifest.engines.values())).gate["tokens"]
    print(f"  against the float model in transformers, on {tokens} tokens that were not calibrated on")
    for name, missed in result.missed.items():
        if missed:
            print(f"  warning: {name} fails the gate ({', '.join(missed)}); written because of --force", file=sys.stderr)
    for name, engine in manifest.engines.items():
        agreement = engine.gate["top1_agreement"]
        if name not in manifest.thresholds and agreement < WEAK_DRAFT:
            few = f"{name} agrees with the model on {agreement:.0%} of the tokens"
            print(f"  warning: {few}; most of what it drafts will be rejected", file=sys.stderr)
    print(f'try: quasar-generate {shlex.quote(str(result.output))} "..."')


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    options = _options(args)
    from tqdm import tqdm

    from quasar.exporter.export import export

    def progress(name: str, parts: int) -> Any:
        # without a terminal a bar is only noise in a log
        return tqdm(desc=f"{name:<16}", total=parts, file=sys.stderr, disable=None, leave=True)

    begin = time.perf_counter()
    result = export(options, progress)
    if args.json:
        print(json.dumps({"output": str(result.output), **dataclasses.asdict(result.manifest), "missed": result.missed}))
    else:
        _print(result, time.perf_counter() - begin)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-export", lambda: _run(argv))
