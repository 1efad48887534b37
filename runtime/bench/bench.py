"""The whole bench: what is measured, in which order, and what comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quasar.engines.bundle.bundle import Bundle
from quasar.engines.errors import UsageError
from quasar.runtime.bench import fidelity, machine
from quasar.runtime.bench.figures import FLOAT, chain_figures, denominators
from quasar.runtime.bench.measure import Measurement, Variant, measure
from quasar.runtime.bench.prompts import Prompts
from quasar.runtime.bench.sweep import sweep_figures, sweep_variants
from quasar.runtime.chain.spec import ChainSpec, parse_chain
from quasar.runtime.engines import EnginePool
from quasar.runtime.execution import Execution
from quasar.runtime.model import DraftLength, Model, choose_chain, draft_lengths
from quasar.runtime.sampler import Acceptance
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.tokenizer import Tokenizer

FORMAT_VERSION = 1
Progress = Callable[[str, int], Any]
"""Called with a step's name and its number of parts; gives a context manager whose value has `update(1)`."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        params: of every answer.
        axes: of the sweep; empty for none.
        memory: run every chain once more in a process of its own for its peak memory.
    """

    params: SamplingParams
    repeats: int = 3
    draft_length: DraftLength = None
    axes: dict[str, list[Any]] = field(default_factory=dict)
    fidelity: bool = False
    memory: bool = True
    execution: Execution = field(default_factory=Execution)
    acceptance: Acceptance = "matching"


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
        self._pool = EnginePool(bundle, settings.execution)

    def run(self, chains: Sequence[str] | None) -> dict[str, Any]:
        """Results in the format of report.json.

        Args:
            chains: what to measure; None for what the bundle can do. Denominators are added.

        Raises:
            UsageError: a chain that the bundle cannot run, or fidelity without a float engine.
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
        temperature = settings.params.temperature
        variants = [Variant(chain, settings.draft_length if chain in asked else None, temperature) for chain in with_denominators]
        models = {variant: self._model(variant) for variant in variants}
        before = machine.read_bandwidth()
        measured = self._measure("chains", models, settings.repeats)
        after = machine.read_bandwidth()
        if not measured.first or not any(measured.first.values()):
            raise KeyboardInterrupt  # nothing is whole
        interrupted = measured.interrupted
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
        return {
            "format_version": FORMAT_VERSION,
            "bundle": {
                "name": self._bundle.root.resolve().name,
                "model": manifest.model.get("id"),
                "engines": {name: settings.execution.precision(self._bundle, e) for name, e in manifest.engines.items()},
                **_quantization(manifest.calibration),
            },
            "machine": machine.describe(settings.execution.backend_of(self._bundle), settings.execution.threads, [before, after]),
            "versions": machine.versions(),
            "settings": {
                "prompts": self._prompts.name,
                "prompts_sha256": self._prompts.sha256,
                "rows": len(self._prompts.turns),
                "template_options": dict(self._prompts.template_options),
                "max_new_tokens": settings.params.max_new_tokens,
                "repeats": settings.repeats,
                "ignore_eos": settings.params.ignore_eos,
                "draft_length": settings.draft_length,
                "batch_invariant": settings.execution.batch_invariant,
                "acceptance": settings.acceptance,
            },
            "interrupted": interrupted,
            "notes": self._notes(with_denominators, swept),
            "chains": [chain_figures(measured, v, v.chain in asked, peaks.get(v)) for v in variants],
            "sweep": None if swept is None else sweep_figures(swept, settings.axes),
            "fidelity": distances,
        }

    def _default_chains(self) -> list[ChainSpec]:
        """Plain engines, and the chains that speed them up."""
        engines = self._bundle.manifest.engines
        wanted = ("float", "int8", "prompt-lookup > int8", "suffix > int8", "int4 > int8", "prompt-lookup > int8 > float")
        chains = [chain for chain in map(parse_chain, wanted) if all(name in engines for name in chain.engines)]
        return chains or [choose_chain(self._bundle, None)]

    def _model(self, variant: Variant) -> Model:
        lengths = draft_lengths(variant.chain, variant.draft_length)
        self._pool.check(variant.chain)
        tokenizer = Tokenizer(self._bundle.tokenizer_folder(), self._bundle.engine(variant.chain.target).vocab_size)
        return Model(self._pool, tokenizer, variant.chain, lengths, self._settings.acceptance)

    def _measure(self, name: str, models: dict[Variant, Model], repeats: int) -> Measurement:
        for model in models.values():
            for turns in self._prompts.turns:
                self._prompts.tokens(model, turns)  # a prompt that does not fit is said now, not after an hour
            break
        with self._progress(name, len(models) * (1 + repeats * self._prompts.count)) as bar:

            def advance(chain: str) -> None:
                bar.set_postfix_str(chain, refresh=False)
                bar.update(1)

            return measure(models, self._prompts, self._settings.params, repeats, advance)

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
                peaks[variant] = machine.peak_memory(self._bundle.root, str(variant.chain), ids, self._settings.execution)
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
        if self._settings.acceptance == "rejection" and not self._settings.params.greedy:
            notes.append("with --acceptance rejection, sampled answers of different chains are not comparable token by token")
        return notes


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
