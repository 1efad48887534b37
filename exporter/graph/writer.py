"""Engines to files: graphs, weights, and the embedding rows that engines share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from quasar.calibration.smoothquant import Smoothed
from quasar.engines.bundle.manifest import ONNXRUNTIME, EngineEntry, OwnForm
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.blueprint import Blueprint, for_own_operators, for_tensorrt, int8_rows_first
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.decoder import AttentionForm, Decoder
from quasar.exporter.plans.build import PlanGraph, graph_label
from quasar.exporter.progress import Progress

DRAFTS = "w4a8"
"""The precision of engines that are made to draft."""


def write_engines(
    root: Path,
    blueprints: Sequence[Blueprint],
    max_length: int,
    slots: int,
    progress: Progress,
    *,
    for_plans: bool = False,
    own_cache: str | None = None,
) -> tuple[list[EngineEntry], list[PlanGraph]]:
    """Write every engine into the bundle at `root`; the entries have neither gate figures nor plans yet.

    Args:
        for_plans: also write the graph of each for TensorRT.
        own_cache: give each a second graph, in operators of ours on the same weights, with caches of this type; None for none.
    """
    explicit_forms = {b.name: for_tensorrt(b) for b in blueprints} if for_plans else {}
    forms = [*blueprints, *explicit_forms.values()]
    names = [*(form.weights for form in forms), *(shared for form in forms if (shared := _embedding_file(form)))]
    entries, graphs = [], []
    with ExitStack() as stack:
        files = {name: stack.enter_context(WeightFile(root / f"{name}.bin")) for name in dict.fromkeys(names)}
        for blueprint in blueprints:
            stock = blueprint if own_cache is None else int8_rows_first(blueprint)
            decoder = _decoder(stock, _attention(stock, slots), max_length, slots)
            written = _write(root, f"{blueprint.name}.onnx", stock, decoder, files, progress)
            entry = _entry(blueprint, decoder, written)
            if own_cache is not None and (own := _own_decoder(decoder, blueprint, own_cache)):
                host = _host(blueprint, blueprints) if own.coarse else None
                if host is not None and isinstance(host.source, Smoothed):
                    own = dataclasses.replace(own, value_scale=host.source.value_scale)
                graph = _write(root, f"{blueprint.name}.own.onnx", blueprint, own, files, progress)[0]
                form = OwnForm(graph, own.attention, own.cache(entry.cache.owner if host is None else host.name))
                entry = dataclasses.replace(entry, files=(*entry.files, graph), own=form)
            entries.append(entry)
            if explicit := explicit_forms.get(blueprint.name):
                decoder = _decoder(explicit, "portable", max_length, slots)
                written = _write(root, f"{graph_label(explicit.name)}.onnx", explicit, decoder, files, progress)
                graphs.append(PlanGraph(explicit.name, explicit.precision, written))
    return entries, graphs


def _embedding_file(blueprint: Blueprint) -> str | None:
    """The file of embedding rows beside that of the weights; float32 rows are in the latter."""
    return None if blueprint.precision == "float32" else blueprint.embedding


def _attention(blueprint: Blueprint, slots: int) -> AttentionForm:
    """The form of attention for ONNX Runtime."""
    if not can_fuse(blueprint.architecture):
        return "portable"
    return "packed" if slots > 1 and not blueprint.half else "fused"  # the CUDA kernel takes no ragged batches


def _own_decoder(stock: Decoder, blueprint: Blueprint, cache_type: str) -> Decoder | None:
    """The same engine in operators of ours, on the weights of `int8_rows_first`; None where there is none for it."""
    own = for_own_operators(blueprint)
    decoder = dataclasses.replace(stock, linear=own.linear, lm_head=own.lm_head)
    if can_fuse(blueprint.architecture):
        exact = blueprint.precision == "float32"  # what others are compared with
        coarse = cache_type == "int4" and blueprint.precision == DRAFTS
        decoder = dataclasses.replace(decoder, attention="ragged", cache_type="float32" if exact else cache_type, coarse=coarse)
    return None if decoder == stock else decoder


def _host(draft: Blueprint, blueprints: Sequence[Blueprint]) -> Blueprint | None:
    """The engine in whose cache a draft reads upper planes: the int8 one of the same layers; None for its own."""
    same = (other for other in blueprints if (other.model, other.layers) == (draft.model, draft.layers))
    return next((other for other in same if other.precision == "w8a8"), None)


def _decoder(blueprint: Blueprint, attention: AttentionForm, max_length: int, slots: int) -> Decoder:
    return Decoder(
        architecture=blueprint.architecture,
        linear=blueprint.linear,
        lm_head=blueprint.lm_head,
        attention=attention,
        max_length=max_length,
        slots=slots,
        half_embedding=blueprint.precision != "float32",
        layers=blueprint.layers,
        cache_type="float16" if blueprint.half else "float32",
        choices=blueprint.half,
    )


def _write(
    root: Path, graph: str, blueprint: Blueprint, decoder: Decoder, files: Mapping[str, WeightFile], progress: Progress
) -> tuple[str, ...]:
    """Write a graph: its files, the graph first."""
    shared = _embedding_file(blueprint)
    weights, embedding = files[blueprint.weights], files[shared] if shared else None
    with progress(f"write {graph.removesuffix('.onnx')}", len(blueprint.layers)) as bar:
        builder = GraphBuilder(weights, embedding)
        decoder.write(builder, blueprint.source, lambda: bar.update(1))
    builder.save(root / graph, blueprint.name, blueprint.precision)
    return (graph, weights.path.name, *([embedding.path.name] if embedding else []))


def _entry(blueprint: Blueprint, decoder: Decoder, files: tuple[str, ...]) -> EngineEntry:
    a = blueprint.architecture
    return EngineEntry(
        name=blueprint.name,
        backend=ONNXRUNTIME,
        precision=blueprint.precision,
        attention=decoder.attention,
        graph=files[0],
        files=files,
        vocab_size=a.vocab_size,
        cache=decoder.cache(blueprint.owner or blueprint.name),
        model=blueprint.model,
        layers=blueprint.layers,
        float_linears=blueprint.float_linears,
        gate={},
    )
