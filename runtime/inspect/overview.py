"""A bundle at a glance: its engines, the chains that it can run, its tokenizer, and how it was made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.cache import CacheSpec
from quasar.engines.errors import UsageError
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.chain.spec import PLAIN, PRESETS, ChainSpec, usual_chains
from quasar.runtime.engines import check_fit
from quasar.runtime.tokenizer import Tokenizer

STOCK, OWN, PLAN = "stock", "own", "plan"
"""Forms of an engine: in ONNX Runtime's operators, in ours, and as a plan."""


@dataclass(frozen=True)
class CacheFacts:
    """The cache of a form.

    Attributes:
        dtype, layout, owner: see `CacheSpec`.
        tensors: how many there are.
        shape, storage: of each, for one sequence.
        sequence_bytes: of all of them, for one sequence.
    """

    dtype: str
    layout: str
    owner: str
    tensors: int
    shape: tuple[int, ...]
    storage: str
    sequence_bytes: int


@dataclass(frozen=True)
class FormFacts:
    """An engine in one of its forms.

    Attributes:
        form: `stock`, `own` or `plan`.
        backend: what runs it.
        file: the graph or the plan that is loaded; `bytes` with all that is loaded with it.
        graph: the graph that it is, or was built from.
        attention: the form of attention; that of a plan is always `portable`.
        gate: how far a plan is from the float model; null of the other forms, whose figures are the engine's.
    """

    form: str
    backend: str
    precision: str
    file: str
    bytes: int
    graph: str
    attention: str
    cache: CacheFacts
    gate: Mapping[str, Any] | None


@dataclass(frozen=True)
class EngineFacts:
    """An engine.

    Attributes:
        model, layers: whose weights it has, and which of that model's layers.
        context: positions of a sequence.
        sequences: that have a place at the same time.
        float_linears: linears that stayed float.
        gate: how far it is from the float model, in own operators where the exporting machine had them.
    """

    name: str
    precision: str
    model: str
    layers: tuple[int, ...]
    vocab_size: int
    context: int
    sequences: int
    float_linears: tuple[str, ...]
    gate: Mapping[str, Any]
    forms: tuple[FormFacts, ...]


@dataclass(frozen=True)
class ChainFacts:
    """A chain that the bundle can run; `preset` is its name, where it has one."""

    chain: str
    preset: str | None
    default: bool


@dataclass(frozen=True)
class StopToken:
    """A token that ends an answer; `text` is null where the id is none of the tokenizer's."""

    id: int
    text: str | None


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer.

    Attributes:
        tokens: how many it has.
        templates: names of the chat templates.
        stop: what ends an answer.
    """

    files: tuple[str, ...]
    tokens: int
    templates: tuple[str, ...]
    stop: tuple[StopToken, ...]


@dataclass(frozen=True)
class BundleFacts:
    """A bundle.

    Attributes:
        bytes: of all files that the manifest lists.
        verified: whether their hashes were checked.
        activations: linears of `int8` by the scheme of their activations.
        model, calibration, thresholds, versions, sampling: as the manifest has them; of `calibration`, all but single linears
            and layers.
    """

    bundle: str
    format_version: int
    bytes: int
    verified: bool
    model: Mapping[str, Any]
    chains: tuple[ChainFacts, ...]
    engines: tuple[EngineFacts, ...]
    tokenizer: TokenizerFacts
    sampling: Mapping[str, Any]
    calibration: Mapping[str, Any]
    activations: Mapping[str, int]
    thresholds: Mapping[str, Any]
    versions: Mapping[str, str]


def describe_bundle(bundle: Bundle, verified: bool) -> BundleFacts:
    """What is in a bundle.

    Raises:
        BundleError: its tokenizer cannot be read, or its default chain cannot run.
    """
    m = bundle.manifest
    calibration = {name: value for name, value in m.calibration.items() if name not in ("linears", "layer_damage")}
    return BundleFacts(
        bundle=str(bundle.root),
        format_version=m.format_version,
        bytes=sum(file.bytes for file in m.files),
        verified=verified,
        model=m.model,
        chains=tuple(_chains(bundle)),
        engines=tuple(describe_engine(bundle, entry) for entry in m.engines.values()),
        tokenizer=_tokenizer(bundle),
        sampling=m.sampling,
        calibration=calibration,
        activations=activation_schemes(bundle),
        thresholds=m.thresholds,
        versions=m.versions,
    )


def describe_engine(bundle: Bundle, entry: EngineEntry) -> EngineFacts:
    """What the manifest says of an engine."""
    return EngineFacts(
        name=entry.name,
        precision=entry.precision,
        model=entry.model,
        layers=entry.layers,
        vocab_size=entry.vocab_size,
        context=entry.max_length,
        sequences=entry.slots,
        float_linears=entry.float_linears,
        gate=entry.gate,
        forms=tuple(_forms(bundle, entry)),
    )


def activation_schemes(bundle: Bundle) -> dict[str, int]:
    """How many linears of `int8` have which scheme of activations, the most frequent first."""
    linears = bundle.manifest.calibration.get("linears")
    found = linears.values() if isinstance(linears, dict) else ()
    schemes = (linear.get("scheme") for linear in found if isinstance(linear, dict))
    return dict(Counter(scheme for scheme in schemes if isinstance(scheme, str)).most_common())


def _forms(bundle: Bundle, entry: EngineEntry) -> Iterator[FormFacts]:
    sizes = {file.path: file.bytes for file in bundle.manifest.files}
    own, plan = entry.in_own_operators, entry.plan
    files = {*entry.files, entry.graph, own.graph}
    graphs = {own.graph, entry.graph}
    for form, backend, its in ((STOCK, entry.backend, entry), (OWN, "own operators", own)):
        if form == STOCK or entry.own is not None:
            loaded = sum(sizes[path] for path in files - graphs | {its.graph})
            yield FormFacts(
                form, backend, its.precision, its.graph, loaded, its.graph, its.attention, _cache(its.cache), gate=None
            )
    if plan is not None:
        loaded = sum(sizes[path] for path in {plan.plan, *(plan.files if plan.stripped else ())})
        yield FormFacts(
            PLAN, plan.library, plan.precision, plan.plan, loaded, plan.graph, "portable", _cache(plan.cache), gate=plan.gate
        )


def _cache(cache: CacheSpec) -> CacheFacts:
    shape, storage = cache.shape, str(cache.storage)
    return CacheFacts(cache.dtype, cache.layout, cache.owner, len(cache.names), shape, storage, cache.slot_bytes)


def _chains(bundle: Bundle) -> Iterator[ChainFacts]:
    """The bundle's own chain, every engine by itself, presets, and usual chains: what fits together of them."""
    default = choose_chain(bundle, None)
    presets = {str(choose_chain(bundle, preset)): preset for preset in PRESETS if _fits(bundle, preset)}
    wanted = [default, *(ChainSpec((), (name,)) for name in bundle.manifest.engines), *usual_chains(bundle.manifest.engines)]
    for chain in dict.fromkeys([*map(str, wanted), *presets]):
        if _fits(bundle, chain):
            plain = PLAIN if chain == default.target else None
            yield ChainFacts(chain, presets.get(chain, plain), chain == str(default))


def _fits(bundle: Bundle, chain: str) -> bool:
    try:
        check_fit(bundle, choose_chain(bundle, chain))
    except UsageError:
        return False
    return True


def _tokenizer(bundle: Bundle) -> TokenizerFacts:
    m = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_folder(), max(entry.vocab_size for entry in m.engines.values()))
    by_id = {token: text for text, token in tokenizer.vocabulary.items()}
    stop = tuple(StopToken(token, by_id.get(token)) for token in m.stop_token_ids)
    return TokenizerFacts(m.tokenizer, len(by_id), tuple(tokenizer.templates.names), stop)
