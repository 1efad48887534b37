"""What was found, as text for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from quasar.engines.bundle.manifest import PlanProfile
from quasar.engines.bundle.words import GATE_HEADS, UNKNOWN, gate_figures, megabytes
from quasar.engines.columns import aligned
from quasar.engines.onnx_file import OnnxTensor
from quasar.runtime.bench.report.values import at, fixed, name
from quasar.runtime.inspect.detail import DetailFacts
from quasar.runtime.inspect.graph import GraphFacts
from quasar.runtime.inspect.overview import PLAN, BundleFacts, CacheFacts, EngineFacts, FormFacts
from quasar.runtime.inspect.plan import ATTENTION, OTHER, PRODUCT, LayerFacts, PlanFacts

INDENT = "  "
WIDTH = 110
"""Characters of a long list in a line."""
SHORT = ("top-1", "KL", "perplexity", "dlogit")
"""`GATE_HEADS` where there is little room."""
HEADS = ("engine", "form", "runs on", "precision", "MB", "context", "sequences", "cache", "MB/sequence", *SHORT)
TEXT_COLUMNS = 4
LISTED = 3
"""Names that are listed; more of them are counted."""
ORDER = (PRODUCT, ATTENTION, OTHER)
_CACHE = re.compile(r"(past|present)\.\d+\.(key|value)")
_LINEAR = re.compile(r"\w+_proj|lm_head")


def bundle_text(facts: BundleFacts) -> str:
    """A bundle as text."""
    return _printable(_bundle(facts))


def detail_text(facts: DetailFacts) -> str:
    """An engine as text."""
    return _printable(_detail(facts))


def _printable(lines: Iterable[str]) -> str:
    """Lines that say what a bundle says, without what a terminal would act on."""
    return "\n".join(name(line) if line else "" for line in lines)


def _bundle(facts: BundleFacts) -> Iterator[str]:
    hashes = "hashes checked" if facts.verified else "hashes not checked (--verify)"
    yield f"{facts.bundle}: {megabytes(facts.bytes)}, format {facts.format_version}, {hashes}"
    yield from _fields(
        [
            ("model", _model(facts.model)),
            *(("chain", chain) for chain in _chains(facts)),
            ("tokenizer", f"{facts.tokenizer.tokens} tokens; chat templates: {_listed(facts.tokenizer.templates, 'none')}"),
            ("stops at", _listed([f"{token.text} ({token.id})" for token in facts.tokenizer.stop], "nothing")),
            ("sampling", _pairs(facts.sampling) or "greedy"),
            *(("calibration", line) for line in _calibration(facts)),
            *(("written by", line) for line in _wrapped(_pairs(facts.versions))),
        ]
    )
    yield ""
    rows = [row for engine in facts.engines for row in _rows(engine)]
    yield from aligned([HEADS, *rows], TEXT_COLUMNS)
    remarks = [line for engine in facts.engines for line in _remarks(engine)]
    yield from ["", *remarks] if remarks else []


def _fields(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Values behind their titles; a title that comes again is not repeated."""
    width, last = max(len(title) for title, _ in pairs), ""
    for title, value in pairs:
        yield f"{INDENT}{'' if title == last else title:<{width}}  {value}".rstrip()
        last = title


def _model(model: Mapping[str, Any]) -> str:
    """The model, and what of its configuration says how large it is."""
    known = {
        "family": at(model, "architecture", "family"),
        "layers": at(model, "architecture", "num_hidden_layers"),
        "hidden size": at(model, "architecture", "hidden_size"),
        "vocabulary": at(model, "architecture", "vocab_size"),
        "revision": at(model, "revision"),
    }
    types = at(model, "gguf_types")
    known["GGUF"] = _pairs(types) if isinstance(types, Mapping) else None
    return ", ".join([str(at(model, "id")), *(f"{title} {value}" for title, value in known.items() if value is not None)])


def _chains(facts: BundleFacts) -> Iterator[str]:
    for chain in facts.chains:
        marks = [*(["the default"] if chain.default else []), *([chain.preset] if chain.preset else [])]
        yield f"{chain.chain} ({', '.join(marks)})" if marks else chain.chain


def _calibration(facts: BundleFacts) -> Iterator[str]:
    c = facts.calibration
    read = f"{at(c, 'sequences')} sequences, {at(c, 'tokens')} tokens"
    yield f"{at(c, 'prompts')}: {read}; {at(c, 'gate_sequences')} sequences more for the gate"
    if (rotated := at(c, "rotated")) is not None:
        yield "residual stream rotated" if rotated else "residual stream not rotated"
    if facts.activations:
        yield f"activations of int8: {_pairs(facts.activations)}"


def _rows(engine: EngineFacts) -> Iterator[list[str]]:
    """A line of the table for each form; what belongs to the engine is in the first."""
    for place, form in enumerate(engine.forms):
        gate = engine.gate if place == 0 else form.gate or {}
        yield [
            engine.name if place == 0 else "",
            form.form,
            form.backend,
            form.precision,
            f"{form.bytes / 1e6:.1f}",
            *([str(engine.context), str(engine.sequences)] if place == 0 else ["", ""]),
            form.cache.dtype,
            f"{form.cache.sequence_bytes / 1e6:.1f}",
            *(gate_figures(gate) if place == 0 or form.form == PLAN else [""] * len(GATE_HEADS)),
        ]


def _remarks(engine: EngineFacts) -> Iterator[str]:
    """What a line of the table has no room for."""
    if engine.float_linears and engine.precision != "float32":
        yield f"{engine.name} left float: {', '.join(engine.float_linears)}"
    for owner in dict.fromkeys(form.cache.owner for form in engine.forms if form.cache.owner != engine.name):
        forms = ", ".join(form.form for form in engine.forms if form.cache.owner == owner)
        yield f"{engine.name} ({forms}): its cache is that of {owner} where they are in a chain"


def _detail(facts: DetailFacts) -> Iterator[str]:
    engine = facts.engine
    hashes = "hashes checked" if facts.verified else "hashes not checked (--verify)"
    yield f"{facts.bundle}: {engine.name}, {hashes}"
    yield from _fields(
        [
            ("precision", engine.precision),
            ("model", f"{engine.model}, layers {_ranges(engine.layers)}, vocabulary {engine.vocab_size}"),
            ("context", f"{engine.context} positions, {engine.sequences} sequences"),
            ("gate", _gate(engine.gate)),
            ("left float", _listed(engine.float_linears, "nothing")),
            *([("activations", _pairs(facts.activations))] if facts.activations else []),
        ]
    )
    yield ""
    files = [(f.file, f.sha256, ", ".join(f.shared_with), str(f.bytes)) for f in facts.files]
    yield from aligned([("file", "SHA-256", "shared with", "bytes"), *files], left=3)
    for form in engine.forms:
        yield ""
        yield from _form(form, facts.graphs[form.form], facts.plan if form.form == PLAN else None)


def _form(form: FormFacts, graph: GraphFacts, plan: PlanFacts | None) -> Iterator[str]:
    yield f"{form.form}: {form.file}, {megabytes(form.bytes)}"
    fields = [
        ("runs on", form.backend if plan is None else f"{plan.library} {plan.version}"),
        *([] if plan is None else _plan_fields(form, plan)),
        ("cache", _cache(form.cache)),
        ("graph", f"{form.graph}, attention {form.attention}, operator sets {_pairs(graph.opsets)}"),
        *(("inputs", line) for line in _tensors(graph.inputs)),
        *(("outputs", line) for line in _tensors(graph.outputs)),
        *(("operators", line) for line in _wrapped(_pairs(graph.operators))),
        *(("linears", line) for line in _linears(graph)),
        *([] if plan is None else _layer_fields(plan)),
        *([] if plan is None else [("look further", command) for command in plan.commands]),
    ]
    yield from _fields(fields)


def _plan_fields(form: FormFacts, plan: PlanFacts) -> Iterator[tuple[str, str]]:
    gpus = ", ".join(plan.compute_capabilities)
    yield "GPUs", f"of compute capability {gpus}" if gpus else f"every one that {plan.library} builds for"
    yield "precision", form.precision
    yield "gate", _gate(form.gate or {})
    marks = ["without weights (--strip-weights)"] if plan.stripped else ["with weights"]
    marks += ["for later versions, too: with code for the host"] if plan.version_compatible else []
    yield "plan", "; ".join(marks)
    needs = f"needs {megabytes(plan.scratch_bytes or 0)} beside weights and caches"
    yield "this machine", f"loads it: it is what the manifest says, and {needs}" if plan.loaded else f"not loaded: {plan.reason}"
    for kernels in plan.kernels:
        yield "kernels", f"{kernels.file}, {megabytes(kernels.bytes)}"
    for index, profile in enumerate(plan.profiles):
        yield "profiles", f"{index}: {_profile(profile)}"


def _profile(profile: PlanProfile) -> str:
    sizes = (("batch", profile.batch), ("length", profile.length), ("rows", profile.rows), ("context", profile.context))
    return ", ".join(f"{title} {size.least} to {size.most} (best {size.best})" for title, size in sizes)


def _layer_fields(plan: PlanFacts) -> Iterator[tuple[str, str]]:
    if plan.layers_from is None:
        yield "layers", "not known: they are listed in plans that this release builds, and where the plan can be loaded"
        return
    said = {"plan": "as the plan says", "build": "as the library listed them when it built the plan"}
    yield "layers", f"{said[plan.layers_from]}; each by itself: --json"
    for profile in sorted({layer.profile for layer in plan.layers}):
        layers = [layer for layer in plan.layers if layer.profile == profile]
        yield "layers", f"profile {profile}: {len(layers)} kernels"
        grouped: dict[tuple[str, str], list[LayerFacts]] = {}
        for layer in layers:
            grouped.setdefault((layer.does, _types(layer)), []).append(layer)
        for (does, types), group in sorted(grouped.items(), key=lambda item: (ORDER.index(item[0][0]), -len(item[1]))):
            yield "layers", f"{INDENT}{len(group):>4} {does} {types}{_which(group) if does == PRODUCT else ''}"


def _types(layer: LayerFacts) -> str:
    """The types of a kernel; of one that neither multiplies nor is attention, its kind."""
    if layer.does == PRODUCT:
        activations = "int8" if "int8" in layer.inputs else next(iter(layer.inputs), UNKNOWN)
        return f"{activations} x {layer.weights} -> {', '.join(layer.outputs)}"
    return ", ".join(sorted(set(layer.inputs))) if layer.does == ATTENTION else f"({layer.kind})"


def _which(products: Iterable[LayerFacts]) -> str:
    """Which linears they are."""
    matches = (_LINEAR.search(" ".join([layer.name, *layer.nodes])) for layer in products)
    counts = Counter(match[0] for match in matches if match)
    return f": {_pairs(counts)}" if counts else ""


def _cache(cache: CacheFacts) -> str:
    shape = list(cache.shape)
    return (
        f"{cache.dtype} in {cache.layout}: {cache.tensors} tensors {cache.storage} {shape} a sequence, "
        f"{megabytes(cache.sequence_bytes)}; that of {cache.owner}"
    )


def _tensors(tensors: Sequence[OnnxTensor]) -> list[str]:
    """A line for each, and one for all caches that look alike."""
    grouped: dict[tuple[str, str, tuple[int | str, ...]], int] = {}
    for tensor in tensors:
        title = _CACHE.sub(r"\1.N.\2", tensor.name)
        grouped[title, tensor.dtype, tensor.shape] = grouped.get((title, tensor.dtype, tensor.shape), 0) + 1
    rows = [
        (title if count == 1 else f"{title} ({count})", dtype, f"[{', '.join(map(str, shape))}]")
        for (title, dtype, shape), count in grouped.items()
    ]
    return aligned(rows, left=3) if rows else ["none"]


def _linears(graph: GraphFacts) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for linear in graph.linears:
        grouped.setdefault(f"{linear.weights} ({linear.operator})", []).append(linear.name)
    return [f"{len(names)} {kind}{_names(names)}" for kind, names in grouped.items()] or ["none"]


def _names(names: Sequence[str]) -> str:
    return f": {', '.join(names)}" if len(names) <= LISTED else ""


def _gate(gate: Mapping[str, Any]) -> str:
    figures = ", ".join(f"{title} {figure}" for title, figure in zip(GATE_HEADS, gate_figures(gate), strict=True))
    return f"{figures}, on {fixed(gate.get('tokens'), 0)} tokens"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{title} {value}" for title, value in values.items())


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False) or [UNKNOWN]


def _listed(values: Sequence[str], nothing: str) -> str:
    return ", ".join(values) or nothing


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order as `0-5, 8`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
