"""quasar-export"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quasar.calibration.schemes import DEFAULT_BUDGET, PER_TOKEN, SEARCHED, STATIC, TWO_PARTS, Budget, Scheme
from quasar.engines.bundle.manifest import BACKENDS, ONNXRUNTIME, Manifest
from quasar.engines.command import EXIT_CODES, run_command
from quasar.engines.errors import UsageError
from quasar.engines.tensorrt.build import BuildOptions
from quasar.exporter.draft import FORMS, INT4, Draft, parse_drafts
from quasar.exporter.model.location import name_bundle
from quasar.exporter.summary import print_summary

if TYPE_CHECKING:  # torch and transformers take seconds to import: --help and wrong options need not wait for them
    from quasar.exporter.options import ExportOptions

GIB = 1 << 30
MOST_GIB = 1 << 16
SCALES: dict[str, tuple[Scheme, ...]] = {
    "auto": SEARCHED,
    "per-token": (PER_TOKEN, TWO_PARTS),
    "static": (STATIC,),
}
OF_PLANS = ("compute_capability", "version_compatible", "strip_weights", "memory_pool", "timing_cache")
OF_REBUILDING = ("rebuild", "backend", "force", "json", *OF_PLANS)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-export",
        description="Turn a Hugging Face checkpoint into a bundle of quantized engines, checked against the float model.",
        epilog=EXIT_CODES,
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, GGUF file, Hugging Face id, alias such as qwen3 or qwen3:8b, or demo")
    source.add_argument(
        *("--rebuild",), type=Path, metavar="BUNDLE",
        help="build the plans of a bundle again, from its graphs, for this machine's library or GPU",
    )  # fmt: skip
    p.add_argument("--output", type=Path, metavar="DIR", help="the bundle (default: MODEL-ENGINES here)")
    add_export_options(p)
    return p


def add_export_options(p: argparse.ArgumentParser) -> None:
    """Options for `run_export`, but for what is exported and where to: `model`, `rebuild` and `output`."""
    p.add_argument("--int8", action="store_true", help="a W8A8 verifier: the same as --engines int8 --draft int4")
    p.add_argument("--engines", metavar="LIST", help="exactly these, comma separated: float, int8, int4, int4-a16")
    p.add_argument(
        *("--draft",), metavar="LIST",
        help=f"engines to add for drafting, comma separated: {FORMS} (with --int8: int4, else none)",
    )  # fmt: skip
    p.add_argument("--calibration", type=Path, metavar="FILE", help=".jsonl or .txt (default: a built-in set)")
    p.add_argument("--num-samples", type=int, default=32, metavar="N", help="sequences to calibrate on (default: 32)")
    p.add_argument("--sample-length", type=int, default=256, metavar="N", help="tokens of each at the most (default: 256)")
    p.add_argument("--alpha", default="search", metavar="search|off|A", help="SmoothQuant's alpha (default: search)")
    p.add_argument(
        *("--activation-scales",), choices=SCALES, default="auto",
        help="of int8 activations: per token, static, or whichever a linear takes without more damage (default: auto)",
    )  # fmt: skip
    p.add_argument(
        *("--int16-budget",), type=float, default=DEFAULT_BUDGET.two_parts, metavar="SHARE",
        help="share of the weights whose activations may have 16 bits where 8 hurt most (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        *("--float-budget",), type=float, default=DEFAULT_BUDGET.float, metavar="SHARE",
        help="share of the weights that may stay float where int8 ruins a linear (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        *("--rotation",), choices=("auto", "on", "off"), default="auto",
        help="rotate the residual stream of quantized engines (default: auto, where it lowers the damage)",
    )  # fmt: skip
    p.add_argument(
        *("--lm-head",), choices=("int8", "float", "int4"), default="int8",
        help="precision of lm_head in quantized engines; int4 is for those with 4-bit weights (default: int8)",
    )  # fmt: skip
    p.add_argument("--max-length", type=int, metavar="N", help="positions of the KV cache (default: 4096, or the model's)")
    p.add_argument(
        *("--max-sequences",), type=int, metavar="N",
        help="sequences that have a place at the same time (default: 8; with --provider cuda: 1)",
    )  # fmt: skip
    p.add_argument("--max-batch", dest="max_sequences", type=int, help=argparse.SUPPRESS)  # its name in 0.1
    p.add_argument(
        *("--backend",), choices=BACKENDS, default=ONNXRUNTIME,
        help="what is to run the engines; with a TensorRT, plans are built beside the graphs for ONNX Runtime",
    )  # fmt: skip
    p.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="what ONNX Runtime's graphs are for (default: cpu)")
    p.add_argument(
        *("--kernels",), choices=("auto", "off"), default="auto",
        help="auto: engines for a CPU also in our own operators, on the same weights; off: in ONNX Runtime's only",
    )  # fmt: skip
    p.add_argument(
        *("--cache",), choices=("float", "int8", "int4"), default="float",
        help="keys and values in our own operators on a CPU; int8: a quarter of the memory, and several times as fast to read "
        "where text is long; int4: 8 bits in two halves, of which drafts read one (QuantSpec) (default: float)",
    )  # fmt: skip
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hugging Face model")
    p.add_argument("--force", action="store_true", help="write the bundle even when the gate or the check of a plan fails")
    p.add_argument("--json", action="store_true", help="print the result as one JSON object")
    _add_build_options(p)


def _add_build_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group(
        "plans", "options of --backend tensorrt (builds for this machine's GPU) and tensorrt-rtx (needs none)"
    )
    g.add_argument(
        *("--compute-capability",), metavar="CC[,CC...]",
        help="GPUs to build for, as 8.9; tensorrt-rtx only (default: all that it knows)",
    )  # fmt: skip
    g.add_argument("--version-compatible", action="store_true", help="plans that later versions load too; tensorrt only")
    g.add_argument("--strip-weights", action="store_true", help="plans without weights, put in from the graphs at loading")
    g.add_argument("--memory-pool", type=float, metavar="GIB", help="most scratch memory of a kernel (default: the library's)")
    g.add_argument("--timing-cache", type=Path, metavar="FILE", help="keeps kernel timings between builds; tensorrt only")


def _build_options(args: argparse.Namespace) -> BuildOptions | None:
    if args.backend == ONNXRUNTIME:
        if needless := _given(args, OF_PLANS):
            raise UsageError(f"{needless[0]}: it is about plans; add --backend tensorrt or --backend tensorrt-rtx")
        return None
    wanted = () if args.compute_capability is None else tuple(part.strip() for part in args.compute_capability.split(","))
    if not all(wanted):
        raise UsageError(f"--compute-capability {args.compute_capability}: give numbers as 8.9, with commas between them")
    if args.memory_pool is not None and not 0 < args.memory_pool < MOST_GIB:
        raise UsageError(f"--memory-pool {args.memory_pool:g}: give GiB, more than 0 and less than {MOST_GIB}")
    return BuildOptions(
        library=args.backend,
        compute_capabilities=wanted,
        version_compatible=args.version_compatible,
        strip_weights=args.strip_weights,
        memory_pool=None if args.memory_pool is None else int(args.memory_pool * GIB),
        timing_cache=args.timing_cache,
        unchecked=args.force,
    )


def _given(args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The options of these names that have another value than by default."""
    defaults = parser()
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != defaults.get_default(name)]


def _options(args: argparse.Namespace) -> ExportOptions:
    (engines, drafts), alphas, build = _engines(args), _alphas(args.alpha), _build_options(args)
    from quasar.exporter.options import ExportOptions

    named = "-".join(name for name in engines if name != "int4" or engines == ("int4",))
    output = args.output or Path(f"{name_bundle(args.model)}-{named}")
    return ExportOptions(
        model=args.model,
        output=output,
        engines=engines,
        drafts=drafts,
        calibration=args.calibration,
        samples=args.num_samples,
        sample_length=args.sample_length,
        **alphas,
        schemes=SCALES[args.activation_scales],
        budget=Budget(args.int16_budget, args.float_budget),
        rotation=args.rotation,
        max_length=args.max_length,
        max_sequences=args.max_sequences,
        lm_head=args.lm_head,
        revision=args.revision,
        force=args.force,
        provider=args.provider,
        build=build,
        kernels=args.kernels,
        cache=args.cache,
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


def _alphas(text: str) -> dict[str, Any]:
    """What `--alpha` changes in the options."""
    if text in ("search", "off"):
        return {} if text == "search" else {"alphas": (None,)}
    try:
        return {"alphas": (float(text),)}
    except ValueError:
        raise UsageError(f"--alpha {text}: give a number from 0 to 1, 'search' or 'off'") from None


def _progress(name: str, parts: int) -> Any:
    from tqdm import tqdm

    # without a terminal a bar is only noise in a log
    return tqdm(desc=f"{name:<16}", total=parts, file=sys.stderr, disable=None, leave=True)


def run_export(args: argparse.Namespace) -> int:
    """Do what the options ask for; the exit code."""
    begin = time.perf_counter()
    missed: Mapping[str, Sequence[str]] = {}
    unrun: Mapping[str, str] = {}
    if args.rebuild is not None:
        output, manifest = _rebuild(args)
    else:
        options = _options(args)
        from quasar.exporter.export import export

        result = export(options, _progress)
        output, manifest, missed, unrun = result.output, result.manifest, result.missed, result.unrun
    if args.json:
        print(json.dumps({"output": str(output), **dataclasses.asdict(manifest), "missed": missed, "unrun": unrun}))
    else:
        print_summary(output, manifest, missed, unrun, time.perf_counter() - begin)
    return 0


def _rebuild(args: argparse.Namespace) -> tuple[Path, Manifest]:
    if foreign := _given(args, vars(args).keys() - set(OF_REBUILDING)):
        raise UsageError(f"{min(foreign)}: --rebuild takes the engines of the bundle as they are, in place; leave it out")
    build = _build_options(args)
    if build is None:
        raise UsageError("--rebuild: say what is to build the plans: --backend tensorrt or --backend tensorrt-rtx")
    from quasar.exporter.plans.rebuild import rebuild

    return args.rebuild, rebuild(args.rebuild, build, _progress)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-export", lambda: run_export(parser().parse_args(argv)))
