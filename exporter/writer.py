"""Engines to files: graphs, weights, and the embedding rows that engines share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from quasar.engines.manifest import EngineEntry
from quasar.exporter.blueprint import Blueprint
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.decoder import AttentionForm, Decoder
from quasar.exporter.options import Progress

EMBEDDING = "embedding"
"""The file of float16 embedding rows of all quantized engines of the model."""


def write_engines(
    root: Path, blueprints: Sequence[Blueprint], max_length: int, max_batch: int, progress: Progress
) -> list[EngineEntry]:
    """Write every engine into the bundle at `root`; their entries have no gate figures yet."""
    files: dict[str, WeightFile] = {}
    with ExitStack() as stack:
        for name in (*(b.weights for b in blueprints), *([EMBEDDING] if any(b.shares_embedding for b in blueprints) else [])):
            if name not in files:
                files[name] = stack.enter_context(WeightFile(root / f"{name}.bin"))
        return [_write(root, blueprint, files, max_length, max_batch, progress) for blueprint in blueprints]


def _write(
    root: Path, blueprint: Blueprint, files: Mapping[str, WeightFile], max_length: int, max_batch: int, progress: Progress
) -> EngineEntry:
    a, name = blueprint.architecture, blueprint.name
    attention: AttentionForm = "fused" if can_fuse(a, max_batch) else "portable"
    decoder = Decoder(
        architecture=a,
        linear=blueprint.linear,
        lm_head=blueprint.lm_head,
        attention=attention,
        max_length=max_length,
        max_batch=max_batch,
        half_embedding=blueprint.precision != "float32",
        layers=blueprint.layers,
    )
    graph = f"{name}.onnx"
    weights, embedding = files[blueprint.weights], files[EMBEDDING] if blueprint.shares_embedding else None
    with progress(f"write {name}", len(blueprint.layers)) as bar:
        builder = GraphBuilder(weights, embedding)
        decoder.write(builder, blueprint.source, lambda: bar.update(1))
    builder.save(root / graph, name, blueprint.precision)
    return EngineEntry(
        name=name,
        backend="onnxruntime",
        precision=blueprint.precision,
        attention=attention,
        graph=graph,
        files=(graph, weights.path.name, *([embedding.path.name] if embedding else [])),
        vocab_size=a.vocab_size,
        max_length=max_length,
        max_batch=max_batch,
        num_hidden_layers=len(blueprint.layers),
        num_key_value_heads=a.num_key_value_heads,
        head_dim=a.head_dim,
        model=blueprint.model,
        layers=blueprint.layers,
        float_linears=blueprint.float_linears,
        gate={},
    )
