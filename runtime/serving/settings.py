"""How a served bundle is run: written into the server's configuration, and read back from it, as strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from quasar.engines.bundle.bundle import Bundle, open_bundle
from quasar.engines.bundle.manifest import ONNXRUNTIME
from quasar.engines.errors import UsageError
from quasar.runtime.defaults import GenerationConfig
from quasar.runtime.execution import Execution
from quasar.runtime.model import Model, choose_chain, load
from quasar.runtime.options import parse_draft_length
from quasar.runtime.sampler import Acceptance

SEQUENCES = 4
"""Answers that one instance works on at the same time, where the backend can."""
MOST_SEQUENCES = 1024


@dataclass(frozen=True)
class Settings:
    """How an instance runs a bundle; each is as of `quasar.runtime.load`.

    Attributes:
        chain: None for the bundle's own.
        sequences: answers that are worked on at the same time, each with caches of its own; None for as many as is usual
            with the backend.
    """

    chain: str | None = None
    backend: str | None = None
    provider: str | None = None
    threads: int = 0
    draft_length: str | None = None
    acceptance: Acceptance = "matching"
    batch_invariant: bool = False
    sequences: int | None = None
    generation_config: GenerationConfig = "auto"

    def __post_init__(self) -> None:
        if self.sequences is not None and not 1 <= self.sequences <= MOST_SEQUENCES:
            raise UsageError(f"sequences is {self.sequences}; give 1 to {MOST_SEQUENCES}")
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}; give a number of threads, or 0 for one per core")

    @property
    def execution(self) -> Execution:
        """What runs the engines."""
        return Execution(self.backend, self.provider, self.threads, self.batch_invariant)

    def sequences_of(self, bundle: Bundle) -> int:
        """How many answers are worked on at the same time.

        Raises:
            UsageError: more than the backend can.
        """
        backend = self.execution.backend_of(bundle)
        if backend != ONNXRUNTIME and self.sequences not in (None, 1):
            raise UsageError(f"sequences is {self.sequences}; {backend} runs one at a time, take more instances instead")
        return self.sequences or (SEQUENCES if backend == ONNXRUNTIME else 1)

    def to_parameters(self) -> dict[str, str]:
        """What differs from the defaults, as strings."""
        found = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found[field.name] = str(value).lower() if isinstance(value, bool) else str(value)
        return found

    def load(self, bundle: Path, prepacked: Path | None = None) -> list[Model]:
        """A model for each sequence, on one copy of the weights. Every file's hash is checked.

        Args:
            prepacked: see `quasar.runtime.load`.

        Raises:
            UsageError: no such bundle, chain, engine or backend.
            BundleError: the bundle is not whole.
        """
        if prepacked is not None:
            from quasar.engines.onnxruntime.prepacked import check_prepacked

            opened = open_bundle(bundle)
            check_prepacked(prepacked, opened, choose_chain(opened, self.chain).engines)
        first = load(
            bundle,
            self.chain,
            backend=self.backend,
            provider=self.provider,
            threads=self.threads,
            verify=True,
            draft_length=parse_draft_length(self.draft_length),
            batch_invariant=self.batch_invariant,
            acceptance=self.acceptance,
            prepacked=prepacked,
            generation_config=self.generation_config,
        )
        models = [first]
        try:
            models += [first.sibling() for _ in range(self.sequences_of(first.bundle) - 1)]
        except BaseException:
            for model in models:
                model.close()
            raise
        return models


def parse_settings(parameters: Mapping[str, str]) -> Settings:
    """Settings from a server's configuration; names that are none of theirs are the server's own.

    Raises:
        UsageError: a value that has no meaning.
    """
    values: dict[str, object] = {}
    for name in {field.name for field in fields(Settings)} & set(parameters):
        text = parameters[name]
        if name in ("threads", "sequences"):
            if not text.isascii() or not text.isdigit():
                raise UsageError(f"parameter {name} is {text!r}; give a number")
            values[name] = int(text)
        elif name == "batch_invariant":
            if text not in ("true", "false"):
                raise UsageError(f"parameter {name} is {text!r}; give true or false")
            values[name] = text == "true"
        else:
            values[name] = text
    return Settings(**values)  # type: ignore[arg-type]
