"""What to export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quasar.calibration.schemes import DEFAULT_BUDGET, SEARCHED, Budget, Scheme
from quasar.calibration.search import COARSE
from quasar.engines.bundle.manifest import MAX_SLOTS
from quasar.engines.errors import UsageError
from quasar.engines.tensorrt.build import BuildOptions, check_precisions
from quasar.exporter.draft import Draft, ModelDraft

ENGINES = ("float", "int8", "int4", "int4-a16")
PROVIDERS = ("cpu", "cuda")
ROTATIONS = ("auto", "on", "off")
LM_HEADS = ("int8", "float", "int4")
KERNELS = ("auto", "off")
CACHES = {"float": "float32", "int8": "int8", "int4": "int4"}
"""Types of caches, by what they are called here."""
SHORTEST_CONTEXT = 8
MAX_SEQUENCES = {"cpu": 8, "cuda": 1}
"""Sequences where no number is asked for, by provider. On a GPU, ONNX Runtime's attention takes one at a time."""
PLAN_PRECISIONS = {"float": "float16", "int8": "w8a8", "int4": "w4a16"}
"""Of the engines that plans are made of."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        model: folder, Hugging Face id, alias, or `demo`.
        output: the bundle's directory.
        engines: any of `ENGINES`.
        drafts: engines to draft with beside them, each with a name of its own.
        calibration: text to calibrate on and to gate with; None for the built-in set.
        alphas, schemes: see `quasar.calibration.w8a8.Recipe`.
        budget: shares of the weights of linears with 16-bit activations, and of linears in float, in the int8 engine.
        rotation: of the residual stream of quantized engines: `auto` where it lowers the damage, `on` or `off`.
        max_length: positions of the KV cache; None for 4096, or less where the model has less.
        max_sequences: sequences that have a place at the same time; None for `MAX_SEQUENCES`.
        lm_head: its precision in the quantized engines: `int8`, `float`, or `int4`, which is for those with 4-bit weights.
        force: write the bundle even when the gate fails.
        provider: of ONNX Runtime, that the engines are for: `cpu` or `cuda`.
        build: build plans of the engines, too.
        kernels: `auto` writes engines for own operators, too, unless they are for GPUs; `off` does not.
        cache: type of the quantized engines' caches, one of `CACHES`. Only own operators have int8 and int4 ones; in stock
            operators, the same engines have float ones.
    """

    model: str
    output: Path
    engines: tuple[str, ...] = ("int8", "int4")
    drafts: tuple[Draft, ...] = ()
    calibration: Path | None = None
    samples: int = 32
    sample_length: int = 256
    alphas: tuple[float | None, ...] = COARSE
    schemes: tuple[Scheme, ...] = SEARCHED
    budget: Budget = DEFAULT_BUDGET
    rotation: str = "auto"
    max_length: int | None = None
    max_sequences: int | None = None
    lm_head: str = "int8"
    revision: str | None = None
    force: bool = False
    provider: str = "cpu"
    build: BuildOptions | None = None
    kernels: str = "auto"
    cache: str = "float"

    def __post_init__(self) -> None:
        self._check_names()
        for field, option, least in (
            ("samples", "--num-samples", 2),
            ("sample_length", "--sample-length", 8),
        ):
            if getattr(self, field) < least:
                raise UsageError(f"{field} is {getattr(self, field)}; at least {least} is needed ({option})")
        if self.max_sequences is not None and not 1 <= self.max_sequences <= MAX_SLOTS:
            raise UsageError(f"max_sequences is {self.max_sequences}; it must lie in 1..{MAX_SLOTS} (--max-sequences)")
        if self.max_length is not None and self.max_length < SHORTEST_CONTEXT:
            raise UsageError(f"max_length is {self.max_length}; at least {SHORTEST_CONTEXT} is needed (--max-length)")
        for share, option in ((self.budget.two_parts, "--int16-budget"), (self.budget.float, "--float-budget")):
            if not 0 <= share <= 1:
                raise UsageError(f"{option} {share}: it is a share of the weights, 0 to 1")
        if not all(alpha is None or 0 <= alpha <= 1 for alpha in self.alphas):
            raise UsageError(f"alpha {', '.join(map(str, self.alphas))} must lie in 0 to 1 (--alpha)")
        for value, choices, option in (
            (self.rotation, ROTATIONS, "--rotation"),
            (self.lm_head, LM_HEADS, "--lm-head"),
            (self.kernels, KERNELS, "--kernels"),
            (self.cache, CACHES, "--cache"),
        ):
            if value not in choices:
                raise UsageError(f"{option} {value}: choose of {', '.join(choices)}")
        if self.provider not in PROVIDERS:
            raise UsageError(f"provider {self.provider!r}: choose of {', '.join(PROVIDERS)} (--provider)")
        if self.provider == "cuda":
            self._check_cuda()
        if self.build is not None:
            self._check_build(self.build)
        if self.cache != "float" and self.own_cache is None:
            raise UsageError(
                f"--cache {self.cache}: only own operators on a CPU have such caches; leave out --kernels off, --provider cuda "
                "and --backend"
            )

    @property
    def slots(self) -> int:
        """Sequences that have a place at the same time."""
        return MAX_SEQUENCES[self.provider] if self.max_sequences is None else self.max_sequences

    @property
    def own_cache(self) -> str | None:
        """The type of caches in own operators, which engines are written for, too; None where they are not."""
        own = self.kernels == "auto" and self.provider == "cpu" and self.build is None
        return CACHES[self.cache] if own else None

    def _check_build(self, build: BuildOptions) -> None:
        if "int4-a16" in self.engines:
            raise UsageError(f"engines: on {build.library}, int4 has 16-bit activations itself; leave int4-a16 out (--engines)")
        precisions = [PLAN_PRECISIONS[name] for name in self.engines] + ["w4a16"] * len(self.drafts)
        check_precisions(build, precisions)

    def _check_cuda(self) -> None:
        if self.build is not None:
            raise UsageError(f"--provider cuda is for --backend onnxruntime; leave it out: {self.build.library} is for GPUs")
        lacking = [name for name in self.engines if name in ("int8", "int4-a16")]
        if lacking:
            raise UsageError(
                f"engine {lacking[0]}: ONNX Runtime has no such kernel for GPUs; use --backend tensorrt or tensorrt-rtx, or "
                "--engines float,int4 with --provider cuda"
            )

    def _check_names(self) -> None:
        unknown = [name for name in self.engines if name not in ENGINES]
        if unknown or not self.engines or len(set(self.engines)) != len(self.engines):
            drafts = any(name.startswith(("pruned", "model:", ModelDraft.name)) for name in unknown)
            hint = "; part of its layers or another model is for --draft pruned:SHARE or --draft model:MODEL" if drafts else ""
            raise UsageError(f"engines {','.join(self.engines)!r}: name each of {', '.join(ENGINES)} at most once{hint}")
        names = [draft.name for draft in self.drafts]
        if len(set(names)) != len(names):
            raise UsageError(
                f"--draft: the engines would be named {', '.join(names)}; give one model at most, and each share once"
            )
