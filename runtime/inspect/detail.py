"""Everything on one engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import EngineEntry
from quasar.runtime.inspect.graph import GraphFacts, describe_graph
from quasar.runtime.inspect.overview import EngineFacts, activation_schemes, describe_engine
from quasar.runtime.inspect.plan import PlanFacts, describe_plan

INT8 = "int8"
"""The engine whose linears the manifest tells about."""


@dataclass(frozen=True)
class FileFacts:
    """A file that the engine needs; other engines may need it, too."""

    file: str
    bytes: int
    sha256: str
    shared_with: tuple[str, ...]


@dataclass(frozen=True)
class DetailFacts:
    """An engine.

    Attributes:
        verified: whether hashes of files were checked.
        graphs: by form; of a plan, that which it was built from, and which has its inputs and outputs.
        activations: linears by the scheme of their activations, of `int8` only.
        plan: null where there is none.
    """

    bundle: str
    verified: bool
    engine: EngineFacts
    files: tuple[FileFacts, ...]
    graphs: Mapping[str, GraphFacts]
    activations: Mapping[str, int]
    plan: PlanFacts | None


def describe_detail(bundle: Bundle, name: str, verified: bool) -> DetailFacts:
    """Everything on an engine.

    Raises:
        UsageError: there is none of that name.
        BundleError: one of its files cannot be read.
    """
    entry = bundle.engine(name)
    engine = describe_engine(bundle, entry)
    return DetailFacts(
        bundle=str(bundle.root),
        verified=verified,
        engine=engine,
        files=tuple(_files(bundle, entry)),
        graphs={form.form: describe_graph(bundle.path(form.graph)) for form in engine.forms},
        activations=activation_schemes(bundle) if name == INT8 else {},
        plan=None if entry.plan is None else describe_plan(bundle, entry, entry.plan),
    )


def _files(bundle: Bundle, entry: EngineEntry) -> Iterator[FileFacts]:
    needed = {name: _needed(other) for name, other in bundle.manifest.engines.items()}
    for file in bundle.manifest.files:
        if file.path in needed[entry.name]:
            shared = tuple(name for name, paths in needed.items() if name != entry.name and file.path in paths)
            yield FileFacts(file.path, file.bytes, file.sha256, shared)


def _needed(entry: EngineEntry) -> set[str]:
    plan = () if entry.plan is None else (entry.plan.plan, entry.plan.graph, *entry.plan.files, entry.plan.listing or "")
    return {entry.graph, entry.in_own_operators.graph, *entry.files, *plan}
