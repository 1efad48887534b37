"""The steps from a checkpoint to a bundle, in order."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from quasar.calibration.prompts import PromptSet, load_prompts
from quasar.calibration.pruning import Pruning, prune, rounds
from quasar.engines.bundle.bundle import TOKENIZER, atomic_bundle, check_output, list_files, write_manifest
from quasar.engines.bundle.manifest import EngineEntry, Manifest
from quasar.engines.errors import UsageError
from quasar.engines.kernels.library import own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.tensorrt.build import check_build
from quasar.exporter.caches import check_cache, gate_text
from quasar.exporter.draft import ModelDraft, PrunedDraft
from quasar.exporter.gate import THRESHOLDS, Figures, judge, thresholds_of
from quasar.exporter.graph.blueprint import (
    Blueprint,
    float_engine,
    for_cuda,
    int4_engine,
    int8_engine,
    model_engine,
    switched_int4_engine,
)
from quasar.exporter.graph.writer import write_engines
from quasar.exporter.model.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.model.draft_model import check_draft, fit_vocabulary, open_draft
from quasar.exporter.model.float_layer import float_model
from quasar.exporter.model.generation_config import sampling_defaults
from quasar.exporter.model.gguf_file import GgufWeights
from quasar.exporter.model.tokenizer import open_tokenizer, stop_token_ids_of, write_tokenizer
from quasar.exporter.options import ExportOptions
from quasar.exporter.plans.build import PlanGraph, build_plans
from quasar.exporter.plans.failure import kept_on_failure
from quasar.exporter.plans.gate import gate_plans, open_plan_graph
from quasar.exporter.progress import Progress
from quasar.exporter.quantized import Quantized, Wanted, quantize
from quasar.exporter.reference import Reference
from quasar.runtime.tokenizer import encode_messages

PACKAGES = ("quasar-toolchain", "onnxruntime", "tensorrt", "tensorrt-rtx", "onnx-ir", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        output: the bundle.
        missed: what the gate found wanting in each engine (with `force`).
        unrun: why plans were not run through the gate themselves, by plan.
    """

    output: Path
    manifest: Manifest
    missed: Mapping[str, Sequence[str]]
    unrun: Mapping[str, str]


def export(options: ExportOptions, progress: Progress) -> ExportResult:
    """Export a bundle; nothing is left at `options.output` unless it is whole.

    Raises:
        UsageError: bad options, checkpoint or calibration text.
        GateError: an engine is too far from the float model.
    """
    check_output(options.output)
    if options.build is not None:
        check_build(options.build)
    drafts = _open_drafts(options)
    checkpoint = open_checkpoint(options.model, options.revision)
    check_cache(options.cache, checkpoint.architecture)
    max_length = _max_length(options, checkpoint)
    removed = _layers_to_remove(options, checkpoint)
    with atomic_bundle(options.output) as root:
        write_tokenizer(checkpoint, root / TOKENIZER)
        tokenizer = open_tokenizer(checkpoint, root / TOKENIZER)
        stop_token_ids = stop_token_ids_of(checkpoint, tokenizer)
        sampling = sampling_defaults(checkpoint.path)
        for draft, opened in drafts.items():
            check_draft(draft, opened, tokenizer, max_length)
        prompts = load_prompts(
            options.calibration,
            tokenizer.encode,
            lambda messages: encode_messages(tokenizer, messages),
            options.samples,
            min(options.sample_length, max_length),
        )
        with tempfile.TemporaryDirectory(dir=root, prefix=".quantized-") as folder:
            own = _quantize(options, checkpoint, prompts, Path(folder) / "model", max_length, progress)
            other = {
                draft: _quantize_draft(options, opened, checkpoint, prompts, Path(folder) / draft.name, max_length, progress)
                for draft, opened in drafts.items()
            }
            pruning = _prune(checkpoint, prompts, removed, max_length, progress) if removed else None
            blueprints = list(_blueprints(options, checkpoint, own, pruning, drafts, other))
            if options.provider == "cuda":
                blueprints = [for_cuda(blueprint) for blueprint in blueprints]
            entries, graphs = write_engines(
                root,
                blueprints,
                max_length,
                options.slots,
                progress,
                for_plans=options.build is not None,
                own_cache=options.own_cache,
            )
        unrun: Mapping[str, str] = {}
        with kept_on_failure(root, options.output, graphs, options.build):
            reference = Reference.measure(checkpoint, gate_text(prompts.gate, options.cache, max_length), max_length, progress)
            entries, figures = _gate(reference, entries, graphs, root, progress)
            missed = judge(figures, options.force, options.provider)
            if options.build is not None:
                gates = {graph.name: dataclasses.asdict(figures[graph.label]) for graph in graphs}
                entries = build_plans(root, entries, graphs, gates, options.build, progress)
                gated = gate_plans(reference, entries, root, progress)
                entries, figures, unrun = gated.entries, figures | gated.figures, gated.unrun
                missed |= judge(gated.figures, options.force)
        files = list_files(root)
        manifest = Manifest(
            model=_describe(checkpoint),
            engines={entry.name: entry for entry in entries},
            files=files,
            tokenizer=tuple(file.path for file in files if file.path.startswith(f"{TOKENIZER}/")),
            stop_token_ids=stop_token_ids,
            default_chain=_default_chain(options.engines),
            calibration=_summary(prompts, own, pruning),
            thresholds={
                name: dataclasses.asdict(thresholds_of(name, options.provider)) for name in figures if name in THRESHOLDS
            },
            versions=_versions(),
            sampling=sampling,
        )
        write_manifest(root, manifest)
    return ExportResult(options.output, manifest, missed, unrun)


def _open_drafts(options: ExportOptions) -> dict[ModelDraft, Checkpoint]:
    return {draft: open_draft(draft) for draft in options.drafts if isinstance(draft, ModelDraft)}


def _quantize(
    options: ExportOptions, checkpoint: Checkpoint, prompts: PromptSet, folder: Path, max_length: int, progress: Progress
) -> Quantized | None:
    """What the model's quantized engines are made of; None where there are none."""
    four_bit = any(name.startswith("int4") for name in options.engines)
    four_bit |= any(isinstance(draft, PrunedDraft) for draft in options.drafts)
    wanted = Wanted("int8" in options.engines, four_bit, four_bit and options.build is not None)
    if not wanted.anything:
        return None
    folder.mkdir()
    a = checkpoint.architecture
    return quantize(a, checkpoint, prompts.calibration, wanted, options, folder, max_length, progress)


def _quantize_draft(
    options: ExportOptions,
    draft: Checkpoint,
    checkpoint: Checkpoint,
    prompts: PromptSet,
    folder: Path,
    max_length: int,
    progress: Progress,
) -> Quantized:
    """The same for another model as a draft of `checkpoint`."""
    folder.mkdir()
    architecture, source = fit_vocabulary(draft, checkpoint.architecture.vocab_size)
    wanted = Wanted(int4=True, symmetric_int4=options.build is not None)
    return quantize(architecture, source, prompts.calibration, wanted, options, folder, max_length, progress)


def _blueprints(
    options: ExportOptions,
    checkpoint: Checkpoint,
    own: Quantized | None,
    pruning: Pruning | None,
    drafts: Mapping[ModelDraft, Checkpoint],
    other: Mapping[ModelDraft, Quantized],
) -> Iterator[Blueprint]:
    """What every engine is made of, in the order of the manifest."""
    a, head = checkpoint.architecture, options.lm_head
    for name in options.engines:
        if name == "float":
            yield float_engine(checkpoint, own is not None and own.rotated)
            continue
        assert own is not None  # whatever is not float is quantized
        if name == "int4":
            int4 = int4_engine(checkpoint, own, head)
            # the same weights, so one engine of them runs as either (QSpec)
            yield dataclasses.replace(int4, owner="int4-a16") if "int4-a16" in options.engines else int4
        elif name == "int4-a16":
            yield switched_int4_engine(checkpoint, own, head)
        else:
            yield int8_engine(checkpoint, own, head == "float")
    for draft in options.drafts:
        if isinstance(draft, ModelDraft):
            yield model_engine(drafts[draft], other[draft], head, draft.name, a.vocab_size)
        else:
            assert own is not None
            assert pruning is not None  # measured for any pruned draft
            yield int4_engine(checkpoint, own, head, draft.name, pruning.keep(draft.count(a.num_hidden_layers)))


def _layers_to_remove(options: ExportOptions, checkpoint: Checkpoint) -> int:
    """How many layers the smallest pruned draft does without."""
    layers = checkpoint.architecture.num_hidden_layers
    return max((layers - draft.count(layers) for draft in options.drafts if isinstance(draft, PrunedDraft)), default=0)


def _prune(checkpoint: Checkpoint, prompts: PromptSet, removed: int, max_length: int, progress: Progress) -> Pruning:
    a = checkpoint.architecture
    with progress("measure layers", a.num_hidden_layers * rounds(removed)) as bar, torch.inference_mode():
        model = float_model(a, checkpoint, max_length)
        return prune(model, checkpoint, prompts.calibration, removed, lambda: bar.update(1))


def _gate(
    reference: Reference, entries: Sequence[EngineEntry], graphs: Sequence[PlanGraph], root: Path, progress: Progress
) -> tuple[list[EngineEntry], dict[str, Figures]]:
    """(the entries with their figures; the figures of each, and of each graph for TensorRT, by what gates call it)"""
    figures = {}
    for entry in entries:
        form, library = own_kernels().form(entry)
        engine = OnnxEngine(root / form.graph, form, library=library)
        figures[entry.name] = reference.compare(engine, entry.name, progress)
    by_name = {entry.name: entry for entry in entries}
    for graph in graphs:
        plan = open_plan_graph(root, graph, by_name[graph.name])
        figures[graph.label] = reference.compare(plan, graph.label, progress)
    return [dataclasses.replace(entry, gate=dataclasses.asdict(figures[entry.name])) for entry in entries], figures


def _max_length(options: ExportOptions, checkpoint: Checkpoint) -> int:
    most = checkpoint.architecture.max_position_embeddings
    if options.max_length is not None and options.max_length > most:
        raise UsageError(f"max_length is {options.max_length}; the model knows {most} positions (--max-length)")
    return options.max_length or min(4096, most)


def _default_chain(engines: Sequence[str]) -> str:
    """Quasar's chain with the best verifier that is there."""
    return f"prompt-lookup > {next(name for name in ('int8', 'float', 'int4-a16', 'int4') if name in engines)}"


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    architecture = dataclasses.asdict(checkpoint.architecture)
    for rope in architecture["ropes"]:
        rope["parameters"] = dict(rope["parameters"])
    described = {"id": checkpoint.model_id, "revision": checkpoint.revision, "architecture": architecture}
    if isinstance(checkpoint.weights, GgufWeights):
        described["gguf_types"] = checkpoint.weights.types
    return described


def _summary(prompts: PromptSet, quantized: Quantized | None, pruning: Pruning | None) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "prompts": prompts.name,
        "prompts_sha256": prompts.sha256,
        "sequences": len(prompts.calibration),
        "tokens": sum(map(len, prompts.calibration)),
        "gate_sequences": len(prompts.gate),
    }
    if quantized is not None:
        summary["rotated"] = quantized.rotated
        summary["rotation_damage"] = None if quantized.gain is None else dataclasses.asdict(quantized.gain)
        summary["linears"] = {
            name: {"scheme": option.scheme, "alpha": option.alpha, "damage": option.damage}
            for name, option in quantized.choices.options.items()
        }
    if pruning is not None:
        summary["layer_damage"] = list(pruning.damage)
    return summary


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # onnxruntime-gpu goes under another name
            continue
    return found
