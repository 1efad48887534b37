"""Tier 3: answers of a form, by chains of real engines: the tokens of the last engine under the same masks, and always valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quasar.engines.errors import UsageError
from quasar.runtime import Guide, Model, SamplingParams, load
from quasar.runtime.cli import main
from quasar.runtime.speculation import Speculation

PROMPT = "A baker has 24 rolls and sells 9 of them. How many rolls are left? Answer with JSON."
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer_name": {"type": "string", "maxLength": 20},
        "order_status": {"enum": ["pending", "shipped", "partially_shipped"]},
        "number_of_rolls": {"type": "integer", "minimum": 0, "maximum": 999},
        "is_paid": {"type": "boolean"},
        "shipping_address": {
            "type": "object",
            "properties": {"street_name": {"type": "string", "maxLength": 15}, "floor": {"enum": [1, 2, 3, None]}},
            "required": ["street_name", "floor"],
            "additionalProperties": False,
        },
    },
    "required": ["customer_name", "order_status", "number_of_rolls", "is_paid", "shipping_address"],
    "additionalProperties": False,
}
SUM = r"[0-9]{1,3} (-|\+) [0-9]{1,3} = [0-9]{1,4}\."
LIST = 'start: item ("; " item){2,5} "."\nitem: /[a-z]{2,8}/ " " /[0-9]{1,2}/'
GUIDES = [Guide.json_schema(ORDER), Guide.regex(SUM), Guide.lark(LIST), Guide.json_object()]
NAMES = [guide.kind for guide in GUIDES]
GREEDY = SamplingParams(max_new_tokens=160)
SAMPLED = SamplingParams(max_new_tokens=160, temperature=1.2, top_p=0.95, repetition_penalty=1.1, seed=5)
ALONE = Speculation(draft_length=0)


def check(guide: Guide, text: str) -> None:
    """Whether a text is of the form."""
    if guide.kind == "regex":
        assert re.fullmatch(guide.text, text), text
    elif guide.kind == "lark":
        assert re.fullmatch(r"[a-z]{2,8} [0-9]{1,2}(; [a-z]{2,8} [0-9]{1,2}){2,5}\.", text), text
    elif guide.kind == "json_object":
        assert isinstance(json.loads(text), dict)
    else:
        check_order(json.loads(text))


def check_order(order: dict[str, Any]) -> None:
    """What a validator of JSON schemas would say."""
    assert list(order) == list(ORDER["properties"])
    assert isinstance(order["customer_name"], str)
    assert len(order["customer_name"]) <= 20
    assert order["order_status"] in ORDER["properties"]["order_status"]["enum"]
    assert type(order["number_of_rolls"]) is int
    assert 0 <= order["number_of_rolls"] <= 999
    assert type(order["is_paid"]) is bool
    assert list(order["shipping_address"]) == ["street_name", "floor"]
    assert len(order["shipping_address"]["street_name"]) <= 15
    assert order["shipping_address"]["floor"] in (1, 2, 3, None)


@pytest.fixture(scope="module")
def exact(demo_bundle: Path) -> Iterator[Model]:
    """int8, whose bits depend on nothing but the text."""
    with load(demo_bundle, chain="prompt-lookup > int8", sequences=4, batch_invariant=True) as model:
        yield model


@pytest.fixture(scope="module")
def lossless(demo_bundle: Path) -> Iterator[Model]:
    """float, whose last bits decide nothing."""
    with load(demo_bundle, chain="prompt-lookup > int8 > float", sequences=4) as model:
        yield model


@pytest.fixture(scope="module")
def own(demo_bundle: Path) -> Iterator[Model]:
    """int8 in own operators, where a row's bits depend on nothing but the row; drafted for by int4."""
    with load(demo_bundle, chain="int4 > int8", sequences=4) as model:
        if model.kernels["int8"].startswith("stock"):
            pytest.skip(model.kernels["int8"])
        yield model


# ------------------------------------------------------------------------------------------------ the tokens


@pytest.mark.parametrize("guide", GUIDES, ids=NAMES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("kind", "chain"),
    [
        ("exact", "int8"),
        ("exact", "grammar > int8"),
        ("exact", "grammar,prompt-lookup > int8"),
        ("own", "int4 > int8"),
        ("own", "suffix,grammar,int4 > int8"),
        ("lossless", "prompt-lookup > int8 > float"),
        ("lossless", "int4 > int8 > float"),
    ],
)
def test_tokens_are_those_of_the_last_engine_under_the_same_masks(
    request: pytest.FixtureRequest, kind: str, chain: str, params: SamplingParams, guide: Guide
) -> None:
    model: Model = request.getfixturevalue(kind)
    params = replace(params, guide=guide)
    alone = model.generate(PROMPT, params, speculation=ALONE)
    assert alone.statistics.proposed == 0
    if guide.kind != "json_object" or alone.finish_reason == "stop":  # any object may be a long one
        assert alone.finish_reason == "stop"
        check(guide, alone.text)
    for length in (1, 2, 3, 4, 5, 6, None):
        done = model.generate(PROMPT, params, speculation=Speculation(chain, length))
        assert (done.ids, done.text, done.finish_reason) == (alone.ids, alone.text, alone.finish_reason), length
        if guide.kind == "json_schema" and length == 6:
            assert done.statistics.drafted_by["grammar"] > len(alone.ids) / 3


@pytest.mark.parametrize("guide", GUIDES[:3], ids=NAMES[:3])
def test_rejection_keeps_to_the_form_too(demo_bundle: Path, guide: Guide) -> None:
    with load(demo_bundle, chain="int4 > int8", draft_length=3, acceptance="rejection") as model:
        for seed in range(4):
            done = model.generate(PROMPT, replace(SAMPLED, guide=guide, seed=seed))
            assert done.finish_reason == "stop"
            check(guide, done.text)


@pytest.mark.parametrize(
    "others",
    [
        {"repetition_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": {2: 100, 5: 50, 95: 100}},  # the end token among them
        {"min_tokens": 60},
        {"ignore_eos": True},
        {"temperature": 0.7, "top_k": 2},
        {"temperature": 2.0, "min_p": 0.5, "seed": 1},
        {"stop_token_ids": (4,), "min_tokens": 40},
        {"logprobs": 2},
    ],
    ids=lambda others: "-".join(others),
)
def test_other_parameters_go_with_a_form(exact: Model, others: dict[str, Any]) -> None:
    params = replace(GREEDY, guide=GUIDES[0], **{"seed": 3, **others})
    alone = exact.generate(PROMPT, params, speculation=ALONE)
    assert exact.generate(PROMPT, params, speculation=Speculation("prompt-lookup > int8", 3)).ids == alone.ids
    if "stop_token_ids" in others:
        assert alone.ids[-1] == 4
    else:
        check_order(json.loads(alone.text))
        assert alone.finish_reason == "stop"
        assert 2 not in alone.ids


def test_forms_and_free_answers_share_passes(exact: Model) -> None:
    model = exact
    asked = [replace(GREEDY, guide=guide) for guide in (*GUIDES[:3], None)]
    alone = [model.generate(PROMPT, params, speculation=ALONE).ids for params in asked]
    passes, score = [], model.engines["int8"].score
    model.engines["int8"].score = lambda feeds: passes.append(len(feeds)) or score(feeds)  # type: ignore[method-assign, func-returns-value]
    try:
        begun = [model.stream(PROMPT, params, speculation=Speculation(draft_length=6)) for params in asked]
        done = [one.finish() for one in begun]
    finally:
        model.engines["int8"].score = score  # type: ignore[method-assign]
    assert [one.ids for one in done] == alone
    assert max(passes) == 4
    assert "grammar" not in done[3].statistics.drafted_by
    assert done[0].statistics.drafted_by["grammar"] > 20


def test_what_is_forced_costs_no_pass_of_any_engine(demo_bundle: Path) -> None:
    params = replace(GREEDY, guide=GUIDES[0])
    with load(demo_bundle, chain="int8") as model:
        done = model.generate(PROMPT, params, speculation=Speculation(draft_length=8))
        alone = model.generate(PROMPT, params, speculation=ALONE)
    assert done.statistics.rounds < len(done.ids) / 2
    assert alone.statistics.rounds == len(alone.ids) - 1
    assert list(done.statistics.drafted_by) == ["grammar"]
    assert "drafted by grammar" in str(done.statistics)


# ------------------------------------------------------------------------------------------------ where it begins and ends


@pytest.mark.parametrize(
    ("kind", "chains"),
    [
        ("exact", ["prompt-lookup > int8"]),
        ("own", ["suffix,int4 > int8", "int4 > int8"]),
        ("lossless", ["prompt-lookup > int8 > float"]),
    ],
)
def test_the_form_holds_where_reasoning_ends_inside_a_draft(request: pytest.FixtureRequest, kind: str, chains: list[str]) -> None:
    """Drafts are the text as it would go on without the form."""
    model: Model = request.getfixturevalue(kind)
    endless = replace(GREEDY, max_new_tokens=60, logit_bias={2: -100})
    free = model.generate(PROMPT, endless)
    prompt = [*model.tokenize(PROMPT), *free.ids, *model.tokenize(PROMPT)]
    free = model.generate(prompt, endless)
    middle = free.text[len(free.text) // 3 :]
    marker = next(found[0] for found in re.finditer(r"\w+ \w+(?= )", middle) if free.text.count(found[0]) == 1)
    params = replace(GREEDY, guide=Guide.json_schema(ORDER, after=marker))
    alone = model.generate(prompt, params, speculation=ALONE)
    thought, found, answer = alone.text.partition(marker)
    assert found
    assert free.text.startswith(thought + marker)
    check_order(json.loads(answer))
    for chain in chains:
        for length in (*range(1, 9), None):
            done = model.generate(prompt, params, speculation=Speculation(chain, length))
            assert done.ids == alone.ids, (chain, length)
            assert length is None or {*done.statistics.drafted_by} > {"grammar"}  # the text before, too


def test_without_the_marker_nothing_ends_early(exact: Model) -> None:
    params = replace(GREEDY, max_new_tokens=80, guide=Guide.json_object(after="</think>"))
    done = exact.generate([{"role": "user", "content": PROMPT}], params)
    assert (done.finish_reason, len(done.ids)) == ("length", 80)
    closed = exact.generate(f"{PROMPT}<think>\n\n</think>\n\n", params)
    assert closed.text.startswith("{")


@pytest.mark.parametrize("limit", [1, 2, 7, 23])
def test_a_form_is_cut_at_the_limit_of_tokens(exact: Model, limit: int) -> None:
    params = replace(GREEDY, guide=GUIDES[0])
    whole = exact.generate(PROMPT, params)
    done = exact.generate(PROMPT, replace(params, max_new_tokens=limit))
    assert (done.ids, done.finish_reason) == (whole.ids[:limit], "length")


def test_a_form_that_may_end_ends_with_an_end_token(exact: Model) -> None:
    params = replace(GREEDY, guide=Guide.regex("[a-z]+( [a-z]+)*"), logit_bias={2: 100})
    done = exact.generate(PROMPT, params)
    assert (done.finish_reason, done.ids[-1]) == ("stop", 2)
    assert re.fullmatch("[a-z]+( [a-z]+)*", done.text)
    going = exact.generate(PROMPT, replace(params, ignore_eos=True))
    assert (going.finish_reason, 2 in going.ids) == ("length", False)


def test_a_form_that_no_token_can_keep_to_ends_its_answer_alone(exact: Model) -> None:
    model = exact
    dead = model.stream(PROMPT, replace(GREEDY, guide=Guide.regex("((a?){100}){100}a{100}")))
    beside = model.stream(PROMPT, GREEDY)
    with pytest.raises(UsageError, match=r"the answer cannot keep to its form after '.*': lexer error: .*; loosen the form"):
        dead.finish()
    assert dead.result.finish_reason == "error"
    assert beside.finish().ids == model.generate(PROMPT, GREEDY).ids
    mixed = model.generate([PROMPT, PROMPT], replace(GREEDY, guide=Guide.regex("((a?){100}){100}a{100}")))
    assert [one.finish_reason for one in mixed] == ["error", "error"]


def test_what_cannot_be_compiled_is_refused_before_anything_runs(exact: Model) -> None:
    bad = Guide.regex("(")
    with pytest.raises(UsageError, match="regex: unclosed group"):
        exact.prepare_guide(bad)
    with pytest.raises(UsageError, match="regex: unclosed group"):
        exact.generate(PROMPT, SamplingParams(guide=bad))
    assert not exact.step()


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("options", "guide"),
    [
        (["--json-object", "--seed", "4", "--temperature", "1"], GUIDES[3]),
        (["--json-schema", json.dumps(ORDER)], GUIDES[0]),
        (["--json-schema", "{tmp}/order.json"], GUIDES[0]),
        (["--regex", SUM], GUIDES[1]),
        (["--grammar", "{tmp}/list.lark"], GUIDES[2]),
    ],
)
def test_the_command_takes_forms(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], guide: Guide
) -> None:
    (tmp_path / "order.json").write_text(json.dumps(ORDER))
    (tmp_path / "list.lark").write_text(LIST)
    options = [option.replace("{tmp}", str(tmp_path)) for option in options]
    assert main([str(demo_bundle), PROMPT, "--chain", "int8", "--json", *options]) == 0
    check(guide, json.loads(capsys.readouterr().out)["text"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json-schema", "missing.json"], "--json-schema missing.json: cannot be read"),
        (["--json-schema", "{"], "json_schema: it is no JSON"),
        (["--json-schema", '{"type": "strng"}'], "json_schema: Invalid type: strng at $.type"),
        (["--regex", "("], "regex: unclosed group in '('"),
        (["--grammar", "missing.lark"], "--grammar missing.lark: cannot be read"),
        (["--guide-after", "x"], "--guide-after goes with --json-object"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_form(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main([str(demo_bundle), PROMPT, "--chain", "int8", *options]) == 2
    assert message in capsys.readouterr().err
