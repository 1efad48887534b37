"""Chains: how they are written, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from quasar.engines.errors import UsageError
from quasar.runtime.chain.cached import CachedTokens
from quasar.runtime.chain.verifier import Verifier
from quasar.runtime.proposers.grammar import Grammar
from quasar.runtime.proposers.prompt_lookup import PromptLookup
from quasar.runtime.proposers.proposer import Proposer
from quasar.runtime.proposers.suffix import Suffix, SuffixPool

SUFFIX_POOL = "suffix-pool"
WEIGHTLESS: Mapping[str, Callable[[SuffixPool], Proposer]] = {
    Grammar.name: lambda pool: Grammar(),
    "prompt-lookup": lambda pool: PromptLookup(),
    "suffix": lambda pool: Suffix(),
    SUFFIX_POOL: Suffix,
}
"""What proposes without an engine, made with the pool of the chain."""
QUANTSPEC = "quantspec"
"""The preset whose draft reads the upper halves of its verifier's cache."""
PRESETS: Mapping[str, str] = {
    "quasar": "prompt-lookup > int8",
    "lossless": "prompt-lookup > int8 > float",
    "qspec": "int4 > int4-a16",
    QUANTSPEC: "int4 > int8",
}
USUAL = ("float", "int8", "prompt-lookup > int8", "suffix > int8", "int4 > int8", "prompt-lookup > int8 > float")
"""Engines by themselves, and the chains that mostly speed them up."""
PLAIN = "plain"
"""The preset of the default chain's last engine alone."""


@dataclass(frozen=True)
class ChainSpec:
    """A chain as it is written, left to right.

    Attributes:
        proposers: what proposes to the first verifier, weightless or engines; the first that proposes anything wins. Empty
            for plain decoding.
        verifiers: engines; each one's output is the next one's proposal.
    """

    proposers: tuple[str, ...]
    verifiers: tuple[str, ...]

    def __str__(self) -> str:
        return " > ".join([*([",".join(self.proposers)] if self.proposers else []), *self.verifiers])

    @property
    def engines(self) -> tuple[str, ...]:
        """Every engine of the chain, the last one last."""
        return (*(name for name in self.proposers if name not in WEIGHTLESS), *self.verifiers)

    @property
    def target(self) -> str:
        """The engine whose distribution the output follows."""
        return self.verifiers[-1]


def usual_chains(engines: Collection[str]) -> list[ChainSpec]:
    """Those of `USUAL` that these engines are enough for."""
    return [chain for chain in map(parse_chain, USUAL) if all(name in engines for name in chain.engines)]


def parse_chain(text: str, default: str | None = None) -> ChainSpec:
    """Read a chain: `a,b > c > d`, or the name of a preset.

    Args:
        default: the chain whose last engine `plain` stands for.

    Raises:
        UsageError: it is none.
    """
    if text == PLAIN and default is not None:
        text = default.rsplit(">", 1)[-1]
    stages = [[name.strip() for name in stage.split(",")] for stage in PRESETS.get(text.strip(), text).split(">")]
    names = [name for stage in stages for name in stage]
    if not all(names):
        raise UsageError(f"chain {text!r}: a stage is empty; write ENGINE, or PROPOSER > ENGINE [> ENGINE ...]")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"chain {text!r}: {twice} is in it twice; name each part once")
    proposers, verifiers = (stages[0], stages[1:]) if len(stages) > 1 else ([], stages)
    for stage in verifiers:
        if len(stage) > 1:
            raise UsageError(f"chain {text!r}: only the first stage may be a list; {','.join(stage)} has to be one engine")
        if stage[0] in WEIGHTLESS:
            raise UsageError(f"chain {text!r}: {stage[0]} only proposes; put it first, and an engine after it: {stage[0]} > int8")
    return ChainSpec(tuple(proposers), tuple(stage[0] for stage in verifiers))


def build_chain(
    spec: ChainSpec, cached: Mapping[str, CachedTokens], draft_lengths: Sequence[int | None], pool: SuffixPool | None = None
) -> Verifier:
    """The parts of a chain, put together.

    Args:
        cached: of its engines, by name.
        draft_lengths: tokens proposed a round to each verifier; None for as many as pay.
        pool: of `suffix-pool`; None for an empty one.
    """
    return Verifier(cached[spec.target], proposers_of(spec, cached, draft_lengths, pool), draft_lengths[-1])


def proposers_of(
    spec: ChainSpec,
    cached: Mapping[str, CachedTokens],
    draft_lengths: Sequence[int | None],
    pool: SuffixPool | None = None,
) -> list[Proposer]:
    """What proposes to the last engine of a chain; see `build_chain`.

    Every engine has a `grammar` before all others, whether the chain names it or not: without a guide it proposes nothing.
    """
    pool = SuffixPool() if pool is None else pool
    names = [name for name in spec.proposers if name != Grammar.name]
    proposers: list[Proposer] = [
        WEIGHTLESS[name](pool) if name in WEIGHTLESS else Verifier(cached[name], [Grammar()], None) for name in names
    ]
    for name, draft_length in zip(spec.verifiers[:-1], draft_lengths, strict=False):
        proposers = [Verifier(cached[name], [Grammar(), *proposers], draft_length)]
    return [Grammar(), *proposers]
