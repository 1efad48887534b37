"""The steps from a checkpoint to a bundle, in order."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from quasar.calibration.calibrate import Calibration, Recipe, calibrate
from quasar.calibration.observe import FloatModel
from quasar.calibration.prompts import PromptSet, load_prompts
from quasar.calibration.smoothquant import ALPHA_GRID, Smoothed
from quasar.calibration.source import TensorSource
from quasar.engines.bundle import TOKENIZER, EngineEntry, Manifest, atomic_bundle, check_output, list_files, write_manifest
from quasar.engines.errors import UsageError
from quasar.engines.onnxruntime import OnnxEngine
from quasar.exporter.checkpoint import Checkpoint, open_checkpoint
from quasar.exporter.gate import THRESHOLDS, Figures, compare, judge
from quasar.exporter.graph.attention import can_fuse
from quasar.exporter.graph.builder import GraphBuilder, WeightFile
from quasar.exporter.graph.decoder import AttentionForm, Decoder
from quasar.exporter.graph.linear import BlockLinear, FloatLinear, Linear, W8A8Linear
from quasar.exporter.tokenizer import copy_tokenizer, encode_messages, open_tokenizer, stop_token_ids_of

ENGINES = ("float", "int8", "int4")
PRECISIONS = {
    "float": "float32",
    "int8": "w8a8",  # int8 weights per output channel, static int8 activations
    "int4": "w4a8",  # 4-bit weights in blocks, int8 activations per block at run time
}
PACKAGES = ("quasar-toolchain", "onnxruntime", "onnx-ir", "torch", "transformers", "tokenizers")

SHORTEST_CONTEXT = 8

Progress = Callable[[str, int], Any]
"""Called with a step's name and its number of parts; gives a context manager whose value has `update(1)`."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        model: folder, Hugging Face id, alias, or `demo`.
        output: the bundle's directory.
        engines: any of `float`, `int8`, `int4`.
        calibration: text to calibrate on and to gate with; None for the built-in set.
        alphas: see `Recipe.alphas`.
        max_length: positions of the KV cache; None for 4096, or less where the model has less.
        max_batch: slots in one pass; more than one takes the portable form of attention.
        float_lm_head: leave lm_head in float in the int8 engine.
        force: write the bundle even when the gate fails.
    """

    model: str
    output: Path
    engines: tuple[str, ...] = ("int8", "int4")
    calibration: Path | None = None
    samples: int = 32
    sample_length: int = 256
    alphas: tuple[float, ...] = ALPHA_GRID
    float_budget: float = 0.05
    max_length: int | None = None
    max_batch: int = 1
    float_lm_head: bool = False
    revision: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown or not self.engines or len(set(self.engines)) != len(self.engines):
            raise UsageError(f"engines {','.join(self.engines)!r}: name each of {', '.join(ENGINES)} at most once")
        for field, option, least in (
            ("samples", "--num-samples", 2),
            ("sample_length", "--sample-length", 8),
            ("max_batch", "--max-batch", 1),
        ):
            if getattr(self, field) < least:
                raise UsageError(f"{field} is {getattr(self, field)}; at least {least} is needed ({option})")
        if self.max_length is not None and self.max_length < SHORTEST_CONTEXT:
            raise UsageError(f"max_length is {self.max_length}; at least {SHORTEST_CONTEXT} is needed (--max-length)")
        if not 0 <= self.float_budget <= 1:
            raise UsageError(f"float_budget is {self.float_budget}; it is a share of the weights, 0 to 1 (--float-budget)")
        if not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise UsageError(f"alpha {', '.join(map(str, self.alphas))} must lie in 0 to 1")


@dataclass(frozen=True)
class ExportResult:
    """What was written: the bundle, its manifest, and for each engine what the gate found wanting (with `force`)."""

    output: Path
    manifest: Manifest
    missed: Mapping[str, Sequence[str]]


def export(options: ExportOptions, progress: Progress) -> ExportResult:
    """Export a bundle; nothing is left at `options.output` unless it is whole.

    Raises:
        UsageError: bad options, checkpoint or calibration text.
        GateError: an engine is too far from the float model.
    """
    check_output(options.output)
    checkpoint = open_checkpoint(options.model, options.revision)
    max_length = _max_length(options, checkpoint)
    with atomic_bundle(options.output) as root:
        copy_tokenizer(checkpoint.path, root / TOKENIZER)
        tokenizer = open_tokenizer(checkpoint, root / TOKENIZER)
        stop_token_ids = stop_token_ids_of(checkpoint, tokenizer)
        prompts = load_prompts(
            options.calibration,
            tokenizer.encode,
            lambda messages: encode_messages(tokenizer, messages),
            options.samples,
            min(options.sample_length, max_length),
        )
        calibration = _calibrate(options, checkpoint, prompts, progress) if "int8" in options.engines else None
        writer = _Writer(options, checkpoint, calibration, root, max_length)
        entries = writer.write(progress)
        figures = _gate(checkpoint, entries, root, prompts, progress)
        missed = judge(figures, options.force)
        manifest = Manifest(
            model=_describe(checkpoint),
            engines={entry.name: dataclasses.replace(entry, gate=dataclasses.asdict(figures[entry.name])) for entry in entries},
            files=list_files(root),
            tokenizer=tuple(sorted(f"{TOKENIZER}/{path.name}" for path in (root / TOKENIZER).iterdir())),
            stop_token_ids=stop_token_ids,
            default_chain=_default_chain(options.engines),
            calibration=_summary(prompts, calibration),
            thresholds={name: dataclasses.asdict(THRESHOLDS[name]) for name in options.engines},
            versions=_versions(),
        )
        write_manifest(root, manifest)
    return ExportResult(options.output, manifest, missed)


class _Writer:
    """Writes the graph and the weights of each engine into the bundle."""

    def __init__(
        self,
        options: ExportOptions,
        checkpoint: Checkpoint,
        calibration: Calibration | None,
        root: Path,
        max_length: int,
    ) -> None:
        self._options = options
        self._checkpoint = checkpoint
        self._calibration = calibration
        self._root = root
        self._max_length = max_length
        fused = can_fuse(checkpoint.architecture, options.max_batch)
        self._attention: AttentionForm = "fused" if fused else "portable"

    def write(self, progress: Progress) -> list[EngineEntry]:
        with _embedding_file(self._root, self._options.engines) as embedding:
            return [self._write_engine(name, embedding, progress) for name in self._options.engines]

    def _write_engine(self, name: str, embedding: WeightFile | None, progress: Progress) -> EngineEntry:
        a = self._checkpoint.architecture
        linear, lm_head, source = self._precision(name)
        decoder = Decoder(
            architecture=a,
            linear=linear,
            lm_head=lm_head,
            attention=self._attention,
            max_length=self._max_length,
            max_batch=self._options.max_batch,
            half_embedding=name != "float",
        )
        graph, weights = f"{name}.onnx", f"{name}.bin"
        with WeightFile(self._root / weights) as file, progress(f"write {name}", a.num_hidden_layers) as bar:
            builder = GraphBuilder(file, embedding)
            decoder.write(builder, source, lambda: bar.update(1))
        builder.save(self._root / graph, name, PRECISIONS[name])
        shared = [embedding.path.name] if embedding and name != "float" else []
        kept_float = tuple(linear.keep_float) if isinstance(linear, W8A8Linear) else ()
        return EngineEntry(
            name=name,
            backend="onnxruntime",
            precision=PRECISIONS[name],
            attention=self._attention,
            graph=graph,
            files=(graph, weights, *shared),
            vocab_size=a.vocab_size,
            max_length=self._max_length,
            max_batch=self._options.max_batch,
            num_hidden_layers=a.num_hidden_layers,
            num_key_value_heads=a.num_key_value_heads,
            head_dim=a.head_dim,
            float_linears=tuple(sorted(kept_float)) + (("lm_head",) if isinstance(lm_head, FloatLinear) else ()),
            gate={},
        )

    def _precision(self, name: str) -> tuple[Linear, Linear, TensorSource]:
        """(how layers store their linears, how lm_head is stored, where the weights come from)"""
        if name == "float":
            return FloatLinear(), FloatLinear(), self._checkpoint
        if name == "int4":
            return BlockLinear(), BlockLinear(), self._checkpoint
        a, calibration = self._checkpoint.architecture, self._calibration
        assert calibration is not None  # int8 is always calibrated
        w8a8 = W8A8Linear(calibration.input_scales, frozenset(calibration.float_linears))
        source = Smoothed(self._checkpoint, calibration.smoothing, a.query_groups, a.head_dim)
        return w8a8, FloatLinear() if self._options.float_lm_head else w8a8, source


@contextmanager
def _embedding_file(root: Path, engines: Sequence[str]) -> Iterator[WeightFile | None]:
    """One file of float16 embedding rows for all quantized engines."""
    if set(engines) == {"float"}:
        yield None
        return
    with WeightFile(root / "embedding.bin") as file:
        yield file


def _calibrate(options: ExportOptions, checkpoint: Checkpoint, prompts: PromptSet, progress: Progress) -> Calibration:
    a = checkpoint.architecture
    recipe = Recipe(
        query_groups=a.query_groups,
        head_dim=a.head_dim,
        alphas=options.alphas,
        float_budget=options.float_budget,
    )
    with progress("calibrate", a.num_hidden_layers + 1) as bar, torch.inference_mode():
        model = FloatModel(checkpoint.config, checkpoint, a.sliding_windows)
        return calibrate(model, checkpoint, prompts.calibration, recipe, lambda: bar.update(1))


def _gate(
    checkpoint: Checkpoint, entries: Sequence[EngineEntry], root: Path, prompts: PromptSet, progress: Progress
) -> dict[str, Figures]:
    a = checkpoint.architecture
    with progress("float reference", a.num_hidden_layers) as bar:
        model = FloatModel(checkpoint.config, checkpoint, a.sliding_windows)
        final_states = model.final_states(prompts.gate, lambda: bar.update(1))
    lm_head = checkpoint.tensor("lm_head.weight")
    figures = {}
    for entry in entries:
        with progress(f"gate {entry.name}", len(prompts.gate)) as bar, torch.inference_mode():
            engine = OnnxEngine(root / entry.graph, entry)
            figures[entry.name] = compare(engine, prompts.gate, final_states, lm_head, lambda: bar.update(1))
            engine.close()
    return figures


def _max_length(options: ExportOptions, checkpoint: Checkpoint) -> int:
    most = checkpoint.architecture.max_position_embeddings
    if options.max_length is not None and options.max_length > most:
        raise UsageError(f"max_length is {options.max_length}; the model knows {most} positions (--max-length)")
    return options.max_length or min(4096, most)


def _default_chain(engines: Sequence[str]) -> str:
    """Quasar's chain with the best verifier that is there."""
    return f"prompt-lookup > {next(name for name in ('int8', 'float', 'int4') if name in engines)}"


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    architecture = dataclasses.asdict(checkpoint.architecture)
    architecture["rope"]["parameters"] = dict(checkpoint.architecture.rope.parameters)
    return {"id": checkpoint.model_id, "revision": checkpoint.revision, "architecture": architecture}


def _summary(prompts: PromptSet, calibration: Calibration | None) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "prompts": prompts.name,
        "prompts_sha256": prompts.sha256,
        "sequences": len(prompts.calibration),
        "tokens": sum(map(len, prompts.calibration)),
        "gate_sequences": len(prompts.gate),
    }
    if calibration is not None:
        worst = sorted(calibration.damage, key=lambda name: -calibration.damage[name])[:8]
        summary["alpha"] = dict(calibration.alpha)
        summary["worst_damage"] = {name: calibration.damage[name] for name in worst}
        summary["float_linears"] = list(calibration.float_linears)
    return summary


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # onnxruntime-gpu goes under another name
            continue
    return found
