"""The whole bench: what is measured, in which order, and what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.bundle.manifest import EngineEntry, PlanEntry
from quasar.engines.errors import UsageError
from quasar.runtime.bench import fidelity, machine
from quasar.runtime.bench.figures import FLOAT, chain_figures, denominators
from quasar.runtime.bench.load import LoadMeasurement, load_figures, measure_load
from quasar.runtime.bench.measure import Measurement, Variant, measure
from quasar.runtime.bench.prompts import Prompts
from quasar.runtime.bench.sweep import sweep_figures, sweep_variants
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.chain.spec import ChainSpec, usual_chains
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import backend_of, describe_kernels, running_entry
from quasar.runtime.model import Model
from quasar.runtime.model_options import ModelOptions
from quasar.runtime.sampling import SamplingParams

FORMAT_VERSION = 2
Progress = Callable[[str, int], Any]
"""Called with a step's name and its number of parts; gives a context manager whose value has `update(1)`."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        params: of every answer.
        axes: of the sweep; empty for none.
        memory: run every chain once more in a process of its own for its peak memory.
        concurrency: numbers of answers in flight at which chains are measured under load, 1 among them; none but 1 for no load.
        options: of every model, but for chain, slots and prefix caching.
    """

    params: SamplingParams
    repeats: int = 3
    axes: dict[str, list[Any]] = field(default_factory=dict)
    fidelity: bool = False
    memory: bool = True
    concurrency: tuple[int, ...] = (1,)
    options: ModelOptions = field(default_factory=ModelOptions)


class Bench:
    """Measures chains of a bundle.

    Args:
        progress: shows how far each step is.
    """

    def __init__(self, bundle: Bundle, prompts: Prompts, settings: Settings, progress: Progress) -> None:
        self._bundle = bundle
        self._prompts = prompts
        self._settings = settings
        self._progress = progress
        # what earlier prompts left in the cache would not be read again, and reading is measured
        self._options = replace(settings.options, chain=None, sequences=max(settings.concurrency), prefix_caching=False)
        self._pool = EnginePool(bundle, self._options)

    def run(self, chains: Sequence[str] | None) -> dict[str, Any]:
        """Results in the format of report.json.

        Args:
            chains: what to measure; None for what the bundle can do. Denominators are added.

        Raises:
            UsageError: a chain that the bundle cannot run, fewer slots than answers in flight, or fidelity without a float
                engine.
        """
        settings, manifest = self._settings, self._bundle.manifest
        asked = [choose_chain(self._bundle, chain) for chain in chains] if chains else self._default_chains()
        asked = list(dict.fromkeys(asked))
        points = sweep_variants(asked, settings.axes, settings.params.temperature) if settings.axes else []
        if settings.fidelity and FLOAT not in manifest.engines:
            raise UsageError(f"--fidelity: {self._bundle.root} has no float engine to compare with; export it with --engines")
        with_denominators = dict.fromkeys(
            chain
            for one in asked
            for chain in (*denominators(one).values(), one)
            if chain is not None and chain.target in manifest.engines
        )
        self._check_slots(with_denominators)
        temperature, lengths = settings.params.temperature, settings.options.draft_length
        variants = [Variant(chain, lengths if chain in asked else None, temperature) for chain in with_denominators]
        models = {variant: self._model(variant) for variant in variants}
        before = machine.read_bandwidth()
        measured = self._measure("chains", models, settings.repeats)
        if not measured.first or not any(measured.first.values()):
            raise KeyboardInterrupt  # nothing is whole
        interrupted = measured.interrupted
        loaded = None
        if len(settings.concurrency) > 1 and not interrupted:
            targets = {ChainSpec((), (chain.target,)) for chain in asked}
            loaded = self._load({v: model for v, model in models.items() if v.chain in asked or v.chain in targets})
            interrupted = loaded.interrupted
        after = machine.read_bandwidth()
        swept = None
        if points and not interrupted:
            swept = self._measure("sweep", {variant: self._model(variant) for variant in points}, 1)
            interrupted = swept.interrupted
        distances = None
        if settings.fidelity and not interrupted:
            try:
                distances = self._fidelity()
            except KeyboardInterrupt:
                interrupted = True
        self._pool.close()
        peaks: dict[Variant, int | None] = {}
        if settings.memory and not interrupted:
            try:
                peaks = self._peaks(models)
            except KeyboardInterrupt:
                interrupted = True
        kernels = describe_kernels(self._options, self._bundle, sorted({e for chain in with_denominators for e in chain.engines}))
        return {
            "format_version": FORMAT_VERSION,
            "bundle": {
                "name": self._bundle.root.resolve().name,
                "model": manifest.model.get("id"),
                "engines": {name: self._runs(entry).precision for name, entry in manifest.engines.items()},
                **_quantization(manifest.calibration),
            },
            "machine": machine.describe(backend_of(self._options, self._bundle), self._options.threads, kernels, [before, after]),
            "versions": machine.versions(),
            "settings": {
                "prompts": self._prompts.name,
                "prompts_sha256": self._prompts.sha256,
                "rows": len(self._prompts.turns),
                "template_options": dict(self._prompts.template_options),
                "max_new_tokens": settings.params.max_new_tokens,
                "repeats": settings.repeats,
                "ignore_eos": settings.params.ignore_eos,
                "draft_length": lengths,
                "batch_invariant": settings.options.batch_invariant,
                "acceptance": settings.options.acceptance,
                "concurrency": list(settings.concurrency),
            },
            "interrupted": interrupted,
            "notes": self._notes(with_denominators, swept),
            "chains": [chain_figures(measured, v, v.chain in asked, peaks.get(v)) for v in variants],
            "load": None if loaded is None else load_figures(loaded, settings.concurrency, asked),
            "sweep": None if swept is None else sweep_figures(swept, settings.axes),
            "fidelity": distances,
        }

    def _default_chains(self) -> list[ChainSpec]:
        """Plain engines, and the chains that speed them up."""
        return usual_chains(self._bundle.manifest.engines) or [choose_chain(self._bundle, None)]

    def _model(self, variant: Variant) -> Model:
        return Model(self._pool, self._model_options(variant))

    def _model_options(self, variant: Variant) -> ModelOptions:
        return replace(self._options, chain=str(variant.chain), draft_length=variant.draft_length)

    def _check_slots(self, chains: Iterable[ChainSpec]) -> None:
        """Refuse more answers in flight than an engine has slots for."""
        most = max(self._settings.concurrency)
        for entry in (self._bundle.engine(name) for chain in chains for name in chain.engines):
            slots = self._runs(entry).cache.slots
            if slots < most:
                raise UsageError(
                    f"--concurrency {most}: engine {entry.name} was exported for {slots} sequences; ask for at most "
                    f"{slots}, or export with --max-sequences {most}"
                )

    def _runs(self, entry: EngineEntry) -> EngineEntry | PlanEntry:
        return running_entry(self._options, self._bundle, entry)

    def _measure(self, name: str, models: dict[Variant, Model], repeats: int) -> Measurement:
        for model in models.values():
            for turns in self._prompts.turns:
                self._prompts.tokens(model, turns)  # a prompt that does not fit is said now, not after an hour
            break
        with self._progress(name, len(models) * (1 + repeats * self._prompts.count)) as bar:
            return measure(models, self._prompts, self._settings.params, repeats, _advance(bar))

    def _load(self, models: dict[Variant, Model]) -> LoadMeasurement:
        settings = self._settings
        parts = len(models) * len(settings.concurrency) * (1 + settings.repeats * self._prompts.count)
        with self._progress("load", parts) as bar:
            return measure_load(models, self._prompts, settings.params, settings.concurrency, settings.repeats, _advance(bar))

    def _fidelity(self) -> dict[str, Any]:
        """The `fidelity` of report.json."""
        params = SamplingParams(max_new_tokens=self._settings.params.max_new_tokens)
        names = [name for name in self._bundle.manifest.engines if name != FLOAT]
        plain = {name: self._model(Variant(ChainSpec((), (name,)), None, 0.0)) for name in (FLOAT, *names)}
        prompts = [self._prompts.tokens(plain[FLOAT], turns) for turns in self._prompts.turns]
        with self._progress("fidelity", (1 + 2 * len(names)) * len(prompts)) as bar:

            def answer(model: Model, prompt: list[int]) -> list[int]:
                ids = model.generate(prompt, params).ids
                bar.update(1)
                return ids

            answers = {name: [answer(model, prompt) for prompt in prompts] for name, model in plain.items()}
            reference = plain[FLOAT].engines[FLOAT]
            rows = [
                fidelity.engine_figures(
                    name,
                    fidelity.compare(reference, plain[name].engines[name], prompts, answers[FLOAT], lambda: bar.update(1)),
                    answers[FLOAT],
                    answers[name],
                )
                for name in names
            ]
        return {
            "reference": FLOAT,
            "prompts": len(prompts),
            "tokens": sum(map(len, answers[FLOAT])),
            "confidence": fidelity.CONFIDENCE,
            "engines": rows,
        }

    def _peaks(self, models: dict[Variant, Model]) -> dict[Variant, int | None]:
        ids = self._prompts.tokens(next(iter(models.values())), self._prompts.turns[0])
        peaks = {}
        with self._progress("memory", len(models)) as bar:
            for variant in models:
                peaks[variant] = machine.peak_memory(self._bundle.root, ids, self._model_options(variant))
                bar.update(1)
        return peaks

    def _notes(self, chains: Sequence[ChainSpec] | dict[ChainSpec, None], swept: Measurement | None) -> list[str]:
        notes = []
        if FLOAT not in self._bundle.manifest.engines:
            notes.append("float is not in the bundle: ratios to it are missing; export it too, with --engines")
        for name in dict.fromkeys(chain.target for chain in chains if chain.target != FLOAT):
            if distance := _distance(self._bundle.engine(name).gate):
                notes.append(f"{name} as the last engine says what {name} says, not what float says: {distance}")
        if any("suffix-pool" in chain.proposers for chain in chains):
            notes.append("suffix-pool learns from the answers to earlier prompts of the same repeat")
        most, questions = max(self._settings.concurrency), len(self._prompts.turns)
        if questions < most:
            notes.append(f"{most} answers at once were asked for, but there are only {questions} questions to keep in flight")
        if self._settings.options.acceptance == "rejection" and not self._settings.params.greedy:
            notes.append("with --acceptance rejection, sampled answers of different chains are not comparable token by token")
        return notes


def _advance(bar: Any) -> Callable[[str], None]:
    """Moves a progress bar on, naming what was done."""

    def advance(name: str) -> None:
        bar.set_postfix_str(name, refresh=False)
        bar.update(1)

    return advance


def _quantization(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """What was chosen at export, as counts of linears; nothing where the bundle does not say."""
    linears = calibration.get("linears")
    if not isinstance(linears, Mapping) or not linears:
        return {}
    schemes = Counter(str(linear.get("scheme")) for linear in linears.values() if isinstance(linear, Mapping))
    return {"rotated": bool(calibration.get("rotated")), "int8_activations": dict(schemes.most_common())}


def _distance(gate: Mapping[str, Any]) -> str:
    """How far an engine was from the float model when it was exported; empty where the bundle does not say."""
    kl, agreement, tokens = (gate.get(figure) for figure in ("mean_kl", "top1_agreement", "tokens"))
    if not (isinstance(kl, float) and isinstance(agreement, float) and isinstance(tokens, int)):
        return ""
    return f"KL {kl:.3g} nats, the same likeliest token on {agreement:.1%} of {tokens} tokens when it was exported"
