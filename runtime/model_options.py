"""How a bundle is run: one set of options for the Python API, the commands and the servers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quasar.engines.bundle.manifest import BACKENDS, LIBRARIES, MAX_SLOTS
from quasar.engines.errors import UsageError
from quasar.runtime.chain.spec import SUFFIX_POOL, WEIGHTLESS, ChainSpec
from quasar.runtime.defaults import GENERATION_CONFIGS, GenerationConfig
from quasar.runtime.sampler import ACCEPTANCES, Acceptance

DraftLength = int | Many[int | None] | None
PROVIDERS = ("cpu", "cuda", "tensorrt")
KERNELS = ("auto", "off")


@dataclass(frozen=True)
class ModelOptions:
    """How a bundle is run.

    Attributes:
        chain: e.g. `int8`, `prompt-lookup > int8 > float`, or a preset (`plain`, `quasar`, `lossless`, `qspec`,
            `quantspec`); None for the bundle's own.
        sequences: answers that are worked on at the same time; they share passes. At most as many as the bundle was exported
            for.
        backend: `onnxruntime`, `tensorrt` or `tensorrt-rtx`; None for the TensorRT that all engines of the bundle have plans
            for, else, or where a provider is given, ONNX Runtime. A plan that cannot run is an error, never a reason to take
            another backend.
        provider: of ONNX Runtime: `cpu`, `cuda` or `tensorrt`; None for `cpu`.
        threads: of one operator of ONNX Runtime; 0 for one per physical core.
        verify: check the hash of every file.
        draft_length: tokens proposed a round to each verifier, or one number for each of them; None for as many as pay by
            measured cost and acceptance.
        acceptance: `matching`: sampled output is the same for every chain that ends in the same engine, and for every draft
            length. `rejection`: accepts more of a sampled draft, but the output is only the same in distribution.
        batch_invariant: a token's logits do not depend on what shares its pass, to the last bit; without it, a near-tie may be
            decided otherwise than by the last engine alone. Costs about a seventh of a single-row step.
        prefix_caching: keep what the cache holds of earlier prompts and answers, for prompts that begin alike. The same prompt
            may then be cut into other passes than without, and a near-tie be decided otherwise.
        generation_config: `auto`: where the caller sets no parameters, sampling is as the model's authors chose, which the
            bundle carries. `off`: it is greedy.
        prepacked: a folder of `quasar.engines.onnxruntime.prepacked`, from which processes share weights.
        kernels: `auto`: int8 products on a CPU run in operators of our own, where the bundle has engines for them and this
            machine the library; `off`: in those of ONNX Runtime. Both give the same integers.
        pool: a file with texts that `suffix-pool` proposes beside the answers of this process, which are added to it when the
            model is closed.

    Raises:
        UsageError: a value that has no meaning.
    """

    chain: str | None = None
    sequences: int = 1
    backend: str | None = None
    provider: str | None = None
    threads: int = 0
    verify: bool = False
    draft_length: DraftLength = None
    acceptance: Acceptance = "matching"
    batch_invariant: bool = False
    prefix_caching: bool = True
    generation_config: GenerationConfig = "auto"
    prepacked: Path | None = None
    kernels: str = "auto"
    pool: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sequences, bool) or not isinstance(self.sequences, int) or not 1 <= self.sequences <= MAX_SLOTS:
            raise UsageError(f"sequences is {self.sequences!r}; give 1 to {MAX_SLOTS}")
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}; give a number of threads, or 0 for one per core")
        if self.kernels not in KERNELS:
            raise UsageError(f"kernels is {self.kernels!r}; it must be one of {', '.join(KERNELS)}")
        if self.acceptance not in ACCEPTANCES:
            raise UsageError(f"acceptance is {self.acceptance!r}; it must be one of {', '.join(ACCEPTANCES)}")
        if self.generation_config not in GENERATION_CONFIGS:
            raise UsageError(
                f"generation_config is {self.generation_config!r}; it must be one of {', '.join(GENERATION_CONFIGS)}"
            )
        if self.backend is not None and self.backend not in BACKENDS:
            raise UsageError(f"unknown backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.provider is not None and self.provider not in PROVIDERS:
            raise UsageError(f"unknown provider {self.provider!r}; choose one of {', '.join(PROVIDERS)}")
        if self.backend in LIBRARIES and self.provider is not None:
            raise UsageError(f"provider {self.provider} is one of ONNX Runtime, not of {self.backend}; give one of the two")
        if self.prepacked is not None and (self.backend in LIBRARIES or self.provider not in (None, "cpu")):
            raise UsageError("prepacked weights are for ONNX Runtime on a CPU; leave them out")
        if self.pool is not None and not isinstance(self.pool, (str, os.PathLike)):
            raise UsageError(f"pool is {self.pool!r}; give the path of a file")
        for length in self._lengths():
            if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 0):
                raise UsageError(f"draft_length is {length!r}; it must be 0 or more, or None for as many as pay")

    def draft_lengths(self, chain: ChainSpec) -> list[int | None]:
        """A draft length for every verifier of the chain; None for as many as pay.

        Raises:
            UsageError: not as many as there are verifiers.
        """
        count, lengths = len(chain.verifiers), self._lengths()
        if not isinstance(self.draft_length, Iterable):
            return lengths * count
        if len(lengths) != count:
            raise UsageError(
                f"draft_length has {len(lengths)} numbers and the chain {chain} {count} verifiers; give one, or one each"
            )
        return lengths

    def pool_path(self, chain: ChainSpec) -> Path | None:
        """Where the pool of the chain is kept; None for nowhere.

        Raises:
            UsageError: the chain has none.
        """
        if self.pool is None or SUFFIX_POOL in chain.proposers:
            return None if self.pool is None else Path(self.pool)
        engines = [name for name in chain.proposers if name not in WEIGHTLESS]
        with_pool = ChainSpec((SUFFIX_POOL, *engines), chain.verifiers)
        raise UsageError(f"pool {self.pool}: the chain {chain} proposes nothing of it; give the chain '{with_pool}'")

    def _lengths(self) -> list[int | None]:
        return list(self.draft_length) if isinstance(self.draft_length, Iterable) else [self.draft_length]

    def to_strings(self) -> dict[str, str]:
        """What differs from the defaults, for the configuration of a server."""
        found = {}
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if value != getattr(type(self), name):
                found[name] = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return found


def parse_draft_length(text: str | None) -> DraftLength:
    """`5` or `5,16`."""
    if text is None:
        return None
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--draft-length {text}: give a number, or numbers with commas between them") from None
    return lengths[0] if len(lengths) == 1 else lengths


def options_from_strings(strings: Mapping[str, str]) -> ModelOptions:
    """What `to_strings` made; names that are no options are somebody else's.

    Raises:
        UsageError: a value that has no meaning.
    """
    values: dict[str, Any] = {}
    for name in {field.name for field in fields(ModelOptions)} & set(strings):
        text, default = strings[name], getattr(ModelOptions, name)
        if isinstance(default, bool):
            if text.lower() not in ("true", "false"):
                raise UsageError(f"parameter {name} is {text!r}; give true or false")
            values[name] = text.lower() == "true"
        elif isinstance(default, int):
            if not text.isascii() or not text.isdigit():
                raise UsageError(f"parameter {name} is {text!r}; give a number")
            values[name] = int(text)
        elif name == "draft_length":
            values[name] = parse_draft_length(text)
        else:
            values[name] = Path(text) if name in ("prepacked", "pool") else text
    return ModelOptions(**values)
