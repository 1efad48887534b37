"""One answer, another speculation: the tokens stay, and all of them share passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quasar.engines.errors import UsageError
from quasar.runtime import Model, SamplingParams, load
from quasar.runtime.chain.branches import MOST_BRANCHES
from quasar.runtime.speculation import Speculation, read_speculation

PARAMS = SamplingParams(max_new_tokens=40, ignore_eos=True)
PROMPTS = [f"A baker has {n} rolls and sells {n // 3} of them. How many are left?" for n in (24, 36, 48, 60, 72, 84)]
WAYS: list[Any] = ["off", 4, None, "suffix > int8", "int4 > int8", {"chain": "prompt-lookup,int4 > int8", "draft_length": 3}]


@pytest.fixture(scope="module")
def model(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, chain="prompt-lookup > int8", sequences=6) as made:
        yield made


@pytest.mark.parametrize("sampled", [{}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "sampled"])
def test_answers_are_the_same_whatever_drafts_for_them(model: Model, demo_bundle: Path, sampled: dict[str, Any]) -> None:
    params = SamplingParams(max_new_tokens=40, ignore_eos=True, **sampled)
    with load(demo_bundle, chain="int8") as alone:
        wanted = [alone.generate(prompt, params).ids for prompt in PROMPTS]
    passes, score = [], model.engines["int8"].score
    model.engines["int8"].score = lambda feeds: passes.append(len(feeds)) or score(feeds)  # type: ignore[method-assign, func-returns-value]
    try:
        begun = [
            model.stream(prompt, params, speculation=read_speculation(way)) for prompt, way in zip(PROMPTS, WAYS, strict=True)
        ]
        done = [one.finish() for one in begun]
    finally:
        model.engines["int8"].score = score  # type: ignore[method-assign]
    assert [one.ids for one in done] == wanted
    assert max(passes) == len(PROMPTS)
    assert (done[0].statistics.proposed, done[0].statistics.rounds) == (0, 39)
    assert [level.engine for level in done[4].statistics.levels] == ["int4", "int8"]
    fixed = done[1].statistics.levels[-1]
    assert len(fixed.proposed_per_position) == 4


def test_each_token_says_who_drafted_it(model: Model) -> None:
    way = read_speculation({"chain": "prompt-lookup,int4 > int8", "draft_length": 4})
    generation = model.stream(PROMPTS[0], PARAMS, speculation=way)
    origins = [origin for piece in generation for origin in piece.origins]
    statistics = generation.result.statistics
    assert len(origins) == len(generation.result.ids)
    assert sum(map(bool, origins)) in (statistics.accepted, statistics.accepted - 1)  # the last run may be cut
    assert set(origins) == {"", "prompt-lookup", "int4"}


def test_a_token_of_a_chain_of_three_keeps_its_first_origin(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8 > float", draft_length=4) as model:
        origins = {origin for piece in model.stream(PROMPTS[0] * 2, PARAMS) for origin in piece.origins}
    assert origins == {"", "prompt-lookup", "int8"}


def test_a_chain_that_ends_in_another_engine_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match=r"chain 'int8 > float' ends in float, .* give a chain that ends in it, such as"):
        model.stream("a", PARAMS, speculation=Speculation("int8 > float"))
    with pytest.raises(UsageError, match="no engine"):
        model.stream("a", PARAMS, speculation=Speculation("int2 > int8"))
    assert not model.step()


def test_ever_other_chains_take_no_more_room(model: Model) -> None:
    wanted = model.generate(PROMPTS[0], PARAMS).ids
    ways = [
        Speculation(chain, length)
        for chain in ("suffix > int8", "prompt-lookup,suffix > int8", "suffix,prompt-lookup > int8")
        for length in range(MOST_BRANCHES // 2)
    ]
    waiting = model.stream(PROMPTS[0], PARAMS, speculation=ways[0])  # whose branch is taken away before it begins
    for way in ways[1:]:
        model.stream(PROMPTS[0], SamplingParams(max_new_tokens=1), speculation=way).cancel()
    assert waiting.finish().ids == wanted
    assert len(model.verifier._branches) <= MOST_BRANCHES + 1


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (None, None),
        ("off", Speculation(draft_length=0)),
        ("int4 > int8", Speculation("int4 > int8")),
        (5, Speculation(draft_length=5)),
        ({"chain": "off"}, Speculation(draft_length=0)),
        ({"chain": "quasar", "draft_length": 2}, Speculation("quasar", 2)),
    ],
)
def test_speculation_is_read_from_json(written: Any, read: Speculation | None) -> None:
    assert read_speculation(written) == read


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (True, "it is bool"),
        (-1, "draft_length is -1; give 0 to 32"),
        (10**9, "draft_length is 1000000000"),
        (2.5, "it is float"),
        ({"chain": 3}, "chain is 3; give text"),
        ({"draft_length": "4"}, "draft_length is '4'"),
        ({"lenght": 4}, "'lenght' is not known"),
        (["int8"], "it is list"),
    ],
)
def test_what_is_no_speculation_is_refused(written: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_speculation(written)
