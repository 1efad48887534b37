"""Running chains over the same prompts, interleaved, so that a slow minute of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from quasar.runtime.bench.prompts import Prompts
from quasar.runtime.chain.spec import ChainSpec
from quasar.runtime.model import Model
from quasar.runtime.model_options import DraftLength
from quasar.runtime.sampling import SamplingParams
from quasar.runtime.statistics import Statistics

WARM_UP_TOKENS = 32


@dataclass(frozen=True)
class Variant:
    """Something to measure: a chain, with a draft length and a temperature."""

    chain: ChainSpec
    draft_length: DraftLength
    temperature: float


@dataclass(frozen=True)
class Run:
    """One answer."""

    ids: list[int]
    statistics: Statistics


@dataclass
class Measurement:
    """What was measured.

    Attributes:
        repeats: of each repeat, the runs of each variant, in the order of the prompts; all variants have as many.
        interrupted: whether more was wanted.
    """

    repeats: list[dict[Variant, list[Run]]] = field(default_factory=list)
    interrupted: bool = False

    @property
    def first(self) -> dict[Variant, list[Run]]:
        """The runs of the first repeat."""
        return self.repeats[0] if self.repeats else {}


def measure(
    models: Mapping[Variant, Model],
    prompts: Prompts,
    params: SamplingParams,
    repeats: int,
    advance: Callable[[str], object],
) -> Measurement:
    """Every variant on every prompt, `repeats` times. Ctrl-C ends it; what is whole by then is kept.

    A repeat that was cut short counts only when there is no whole one.

    Args:
        params: their temperature is the variant's.
        advance: called after each answer with the chain's name.
    """
    measured = Measurement()
    try:
        for variant, model in models.items():
            warm_up = replace(params, max_new_tokens=WARM_UP_TOKENS, temperature=variant.temperature)
            _answer(model, prompts, prompts.turns[0][:1], warm_up)
            advance(str(variant.chain))
        for number in range(repeats):
            # an earlier repeat's answers to these prompts would be cheating
            for model in models.values():
                model.forget()
            runs: dict[Variant, list[Run]] = {variant: [] for variant in models}
            if number == 0:
                measured.repeats.append(runs)
            for turns in prompts.turns:
                _interleave(models, prompts, turns, params, runs, number, advance)
            if number > 0:
                measured.repeats.append(runs)
    except KeyboardInterrupt:
        measured.interrupted = True
    return measured


def _interleave(
    models: Mapping[Variant, Model],
    prompts: Prompts,
    turns: tuple[str, ...],
    params: SamplingParams,
    runs: Mapping[Variant, list[Run]],
    shift: int,
    advance: Callable[[str], object],
) -> None:
    """Every variant on one question; the order changes with the repeats. Nothing is added unless all are done."""
    order = list(models)
    shift %= len(order)
    done = {}
    for variant in order[shift:] + order[:shift]:
        done[variant] = _answer(models[variant], prompts, turns, replace(params, temperature=variant.temperature))
        for _ in turns:
            advance(str(variant.chain))
    for variant, answers in done.items():
        runs[variant].extend(answers)


def _answer(model: Model, prompts: Prompts, turns: Sequence[str], params: SamplingParams) -> list[Run]:
    runs: list[Run] = []
    answers: list[str] = []
    for _ in turns:
        result = model.generate(prompts.tokens(model, turns, answers), params)
        answers.append(result.text)
        runs.append(Run(result.ids, result.statistics))
    return runs
