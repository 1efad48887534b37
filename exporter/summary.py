"""What an export says when it is done."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quasar.calibration.schemes import FLOAT, TWO_PARTS
from quasar.engines.bundle.manifest import EngineEntry, Manifest, PlanEntry
from quasar.engines.bundle.words import GATE_HEADS, cache_size, gate_figures, is_shared, megabytes, plan_target
from quasar.engines.columns import aligned

WEAK_DRAFT = 0.3
"""Top-1 agreement below which a draft is hardly ever worth its time."""
FEW_TOKENS = 1000
"""Tokens of calibration text below which what was chosen is chance."""


def print_summary(
    output: Path, manifest: Manifest, missed: Mapping[str, Sequence[str]], unrun: Mapping[str, str], seconds: float
) -> None:
    """Print what is in a bundle, how far it is from the float model, and what to try.

    Args:
        missed: by engine, what the gate found wanting.
        unrun: why plans were not run through it, by plan.
    """
    sizes = {file.path: file.bytes for file in manifest.files}
    print(f"{output}: {', '.join(manifest.engines)}, {megabytes(sum(sizes.values()))}, {seconds:.1f} s")
    rows: list[tuple[str, ...]] = [("engine", *GATE_HEADS, "left float")]
    for name, engine in manifest.engines.items():
        left = ", ".join(engine.float_linears) if name != "float" else "all"
        rows.append((name, *gate_figures(engine.gate), left))
        if engine.plan is not None:
            rows.append((engine.plan.plan, *gate_figures(engine.plan.gate), left))
    for line in aligned(rows, left=len(rows[0])):
        print(f"  {line}")
    for line in _quantization(manifest.calibration):
        print(f"  {line}")
    tokens = next(iter(manifest.engines.values())).gate.get("tokens", "no")
    print(f"  against the float model in transformers, on {tokens} tokens that were not calibrated on")
    if types := manifest.model.get("gguf_types"):
        stored = ", ".join(f"{count} {kind}" for kind, count in types.items())
        print(f"  the float model is the GGUF file's, whose weights were quantized before: {stored}")
    if manifest.sampling:
        sampling = ", ".join(f"{name} {value:g}" for name, value in manifest.sampling.items())
        print(f"  sampling where nothing else is asked for: {sampling} (generation_config.json)")
    print("  caches:")
    for line in _caches(manifest.engines.values()):
        print(f"    {line}")
    for engine in manifest.engines.values():
        if engine.plan is not None:
            print(f"  {_describe(engine.plan, sizes[engine.plan.plan])}")
    for reason in dict.fromkeys(unrun.values()):
        names = ", ".join(name for name, why in unrun.items() if why == reason)
        print(f"  {names}: not run here ({reason}); the figures are those of the graphs, run by ONNX Runtime")
    for name, reasons in missed.items():
        if reasons:
            print(f"  warning: {name} fails the gate ({', '.join(reasons)}); written because of --force", file=sys.stderr)
    calibrated = manifest.calibration.get("tokens", FEW_TOKENS)
    if calibrated < FEW_TOKENS and any(name != "float" for name in manifest.engines):
        few = f"calibrated on {calibrated} tokens only; {FEW_TOKENS} or more are better"
        print(f"  warning: {few} (--calibration, --num-samples, --sample-length)", file=sys.stderr)
    for name, engine in manifest.engines.items():
        agreement = engine.gate.get("top1_agreement", 1.0)
        if name not in manifest.thresholds and agreement < WEAK_DRAFT:
            few = f"{name} agrees with the model on {agreement:.0%} of the tokens"
            print(f"  warning: {few}; most of what it drafts will be rejected", file=sys.stderr)
    backend = " --backend onnxruntime" if unrun else ""  # what runs on this machine
    print(f'try: quasar-generate {shlex.quote(str(output))} "..."{backend}')


def _quantization(calibration: Mapping[str, Any]) -> Iterator[str]:
    """What calibration chose; the manifest has it by linear."""
    if gain := calibration.get("rotation_damage"):
        done = "rotated" if calibration["rotated"] else "not rotated"
        yield f"residual stream {done}: damage {gain['plain']:.1e} without rotation, {gain['rotated']:.1e} with it"
    if linears := calibration.get("linears"):
        counts = Counter(linear["scheme"] for linear in linears.values())
        yield "int8 activations: " + ", ".join(f"{scheme} {count}" for scheme, count in counts.most_common())
        for scheme in (TWO_PARTS, FLOAT):
            if names := [name for name, linear in linears.items() if linear["scheme"] == scheme]:
                yield f"  {scheme}: {', '.join(names)}"


def _caches(engines: Iterable[EngineEntry]) -> Iterator[str]:
    """The memory that a sequence takes in each engine."""
    for engine in engines:
        own, stock = engine.in_own_operators.cache, engine.cache
        size = f"{engine.name}: {cache_size(own)}"
        if is_shared(engine, own):
            size += f", which is that of {own.owner} where they are in a chain"
        yield size if own.dtype == stock.dtype else f"{size}; {megabytes(stock.slot_bytes)} in stock operators, {stock.dtype}"


def _describe(plan: PlanEntry, size: int) -> str:
    form = "w4a16 in symmetric blocks (it takes no zero points)" if plan.precision == "w4a16" else plan.precision
    return f"{plan.plan}: {form}, {megabytes(size)}, {plan.library} {plan.version}, for {plan_target(plan)}"
