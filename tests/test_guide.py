"""Tier 0: forms of answers, as they are asked for, compiled and followed, with the demo model's tokenizer and no engine."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DEMO

from quasar.engines.errors import UsageError
from quasar.runtime import Guide, SamplingParams
from quasar.runtime.guided.compiler import Guides
from quasar.runtime.guided.guide import MOST_CHARACTERS
from quasar.runtime.guided.marker import Marker
from quasar.runtime.guided.matcher import Matcher
from quasar.runtime.sampler import Sampler
from quasar.runtime.tokenizer import Tokenizer

END = 2
VOCAB = 4096
TOKENIZER = Tokenizer(DEMO, VOCAB)
GUIDES = Guides(TOKENIZER, VOCAB, [END, VOCAB + 7])
PROMPT = TOKENIZER.encode("A baker has 24 rolls.")
PERSON = {
    "type": "object",
    "properties": {
        "full_name": {"type": "string", "maxLength": 12},
        "favourite_colour": {"enum": ["red", "green", "greenish blue"]},
        "age": {"type": "integer"},
        "home": {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]},
    },
    "required": ["full_name", "favourite_colour"],
    "additionalProperties": False,
}
FORMS = [
    Guide.json_object(),
    Guide.json_schema(PERSON),
    Guide.json_schema({"type": "array", "items": {"type": "integer"}}),
    Guide.regex("(ab|a)*c?"),
    Guide.lark('start: "yes" | "no" | word+\nword: /[a-z]+/ " "'),
    Guide.lark('root ::= [0-9]+ "." [0-9]'),
    Guide.regex("x{3}", after="</think>"),
    Guide.json_schema(PERSON, after="so:"),
]


def matcher(guide: Guide, **options: Any) -> Matcher:
    return GUIDES.matcher(guide, PROMPT, **options)


def text_ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, special_tokens=False)


WISHES = [
    END,
    *{token for text in ("</think>", "so:", "xxx", '{"full_name":"Ann","age":1', "9.", "abc") for token in text_ids(text)},
]


def answer(guide: Guide, text: str) -> list[int]:
    """Prompt and answer, whose every token must be allowed."""
    followed, tokens = matcher(guide), list(PROMPT)
    for token in text_ids(text):
        assert followed.allowed(tokens)[token], (TOKENIZER.decode(tokens[len(PROMPT) :]), TOKENIZER.decode([token]))
        tokens.append(token)
    return tokens


# ------------------------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Guide("xml"), "guide: kind is 'xml'; it must be one of json_object, json_schema, regex, lark"),
        (lambda: Guide("regex", 3), "regex: text is int; give text"),
        (lambda: Guide.regex(""), "regex: it is empty"),
        (lambda: Guide("json_object", "{}"), "json_object: it takes no text"),
        (lambda: Guide.regex("a", after=None), "regex: after is NoneType; give text"),
        (lambda: Guide.regex("\ud800"), "regex: text is not Unicode at character 0; give UTF-8"),
        (lambda: Guide.lark("a" * (MOST_CHARACTERS + 1)), f"lark: {MOST_CHARACTERS + 1} characters; give at most"),
        (lambda: Guide.json_schema("{"), "json_schema: it is no JSON"),
        (lambda: Guide.json_schema("[]"), "json_schema: it is list; give an object"),
        (lambda: Guide.json_schema({"a": {1}}), "json_schema: it is no JSON"),
        (lambda: Guide.json_schema({"a": float("nan")}), "json_schema: it is no JSON"),
        (lambda: Guide.json_schema('{"items":' * 10_000 + "{}" + "}" * 10_000), "json_schema: it is no JSON"),
        (lambda: SamplingParams(guide={"type": "object"}), r"guide is dict; give a Guide, such as Guide.json_schema\(\{...\}\)"),
    ],
)
def test_what_is_no_guide_is_refused(made: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made()


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Guide.json_schema({"properties": {"a": {"type": "strng"}}}), r"Invalid type: strng at \$.properties.a.type; write"),
        (Guide.json_schema({"anyOf": [{"items": {"not": {}}}]}), r'Unimplemented keys: \["not"\] at \$.anyOf\[0\].items.not;'),
        (Guide.json_schema({"items": {"type": "string", "format": "foo"}}), r"Unknown format: foo at \$.items.format;"),
        (Guide.json_schema({"items": {"type": "string", "pattern": "(?=a)b"}}), r"look-around, .* at \$.items.pattern;"),
        (Guide.json_schema({"type": "integer", "minimum": 5, "maximum": 3}), "Unsatisfiable schema"),
        (Guide.json_schema({"$ref": "#/$defs/a"}), "Pointer '/.defs/a' does not exist"),
        (Guide.json_schema({"$ref": "#"}), "json_schema: "),  # has no end
        (Guide.json_schema('{"items":' * 900 + "{}" + "}" * 900), "recursion limit exceeded"),
        (Guide.regex("[0-9{3}("), r"regex: unclosed character class in '\[0-9\{3\}\('; give a regular expression"),
        (Guide.regex(r"(a)\1"), "backreferences are not supported"),
        (Guide.regex("a^b"), "lookarounds not supported yet"),
        (Guide.regex("(" * 300 + "a" + ")" * 300), "regex: exceed the maximum number of nested parentheses"),
        (Guide.lark("start: foo"), 'lark: line 1, column 8: unknown name: "foo"; give a grammar'),
        (Guide.lark("start: a\nfoo bar"), "lark: line 2, column 5: Expected token ':'"),
        (Guide.lark("root ::= foo"), "lark: Rule 'foo' not found"),
        (Guide.lark("root ::= " + "(" * 50_000), "lark: maximum recursion depth exceeded"),
        (Guide.lark("start: start"), "lark: "),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_said_in_a_line_with_its_place(guide: Guide, message: str) -> None:
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(UsageError, match=message) as caught:
            GUIDES.compile(guide)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99_999_999},
        {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(30)]},
    ],
    ids=["multiple", "patterns"],
)
def test_what_would_take_for_ever_is_given_up(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="json_schema: it is too large or too deep to be compiled in time; make it simpler"):
        GUIDES.compile(Guide.json_schema(schema))


def test_many_properties_are_too_many() -> None:
    schema = {"properties": {f"p{i}": {} for i in range(3000)}}
    with pytest.raises(UsageError, match=r"grammar size .* too big"):
        GUIDES.compile(Guide.json_schema(schema))


def test_a_form_is_compiled_once_for_all_threads() -> None:
    guides, found = Guides(TOKENIZER, VOCAB, [END]), list[Any]()
    threads = [threading.Thread(target=lambda: found.append(guides.compile(Guide.regex("[a-z]+")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_without_llguidance_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"guided answers need llguidance .*: pip install 'quasar-toolchain\[guided\]'"):
        Guides(TOKENIZER, VOCAB, [END]).matcher(Guide.regex("a"), PROMPT)


def test_a_model_without_end_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="guided answers need an end token"):
        Guides(TOKENIZER, VOCAB, []).compile(Guide.regex("a"))


# ------------------------------------------------------------------------------------------------ what may follow


@pytest.mark.parametrize(
    ("guide", "text"),
    [
        (Guide.json_schema(PERSON), '{"full_name":"Ann","favourite_colour":"greenish blue"}'),
        (Guide.json_schema(PERSON), '{"full_name":"","favourite_colour":"red","age":-3,"home":{"street":"a\\"b","x":[1]}}'),
        (Guide.json_object(), '{"a":{"b":[null,true,1.5e3]}}'),
        (Guide.regex("^[0-9]{3}$"), "123"),
        (Guide.regex("a|ab"), "ab"),
        (Guide.lark('root ::= "x" [0-9]+ "."'), "x12."),
    ],
)
def test_a_text_of_the_form_may_be_written_and_ends(guide: Guide, text: str) -> None:
    tokens = answer(guide, text)
    followed = matcher(guide)
    assert followed.ended(tokens)
    assert not any(followed.ended(tokens[:i]) for i in range(len(PROMPT), len(tokens)))
    assert np.flatnonzero(followed.allowed(tokens)).tolist() == [END]
    assert followed.ended([*tokens, END])
    assert followed.ended([*tokens, END, END])


def test_an_end_may_come_where_the_form_is_complete_and_may_go_on() -> None:
    followed = matcher(Guide.regex("a*"))
    two = [*PROMPT, *text_ids("a") * 2]
    assert followed.allowed(two)[END]
    assert not followed.ended(two)
    assert followed.ended([*two, END])
    assert not matcher(Guide.regex("a*"), ignore_eos=True).allowed(two)[END]
    assert not followed.allowed(PROMPT + text_ids("a"))[text_ids("b")[0]]


@pytest.mark.parametrize("text", ['{"full_name":"Ann"}', "{{", ' {"full', "x"])
def test_what_is_not_of_the_form_is_found_at_its_token(text: str) -> None:
    followed = matcher(Guide.json_schema(PERSON))
    tokens = [*PROMPT, *text_ids(text)]
    with pytest.raises(UsageError, match=r"the answer cannot keep to its form after .*: no token of the model can come next"):
        followed.ended(tokens)
    good = text_ids('{"full')
    assert not followed.ended([*PROMPT, *good])
    with pytest.raises(UsageError, match="the answer cannot keep"):
        followed.ended([*PROMPT, *good, END])


def test_limits_while_an_answer_grows_end_it_with_a_reason() -> None:
    followed = matcher(Guide.regex("((a?){100}){100}a{100}"))
    tokens = list(PROMPT)
    with pytest.raises(UsageError, match=r"cannot keep to its form after .*: lexer error: too many expressions"):  # noqa: PT012
        for _ in range(200):
            tokens.append(int(np.flatnonzero(followed.allowed(tokens))[-1]))
            followed.ended(tokens)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMS), st.data())
def test_what_may_follow_depends_on_the_text_alone(guide: Guide, data: st.DataObject) -> None:
    """Whatever was asked before: engines run ahead, and come back to another text."""
    known, texts = matcher(guide), [list(PROMPT)]
    for _ in range(data.draw(st.integers(4, 30))):
        text = data.draw(st.sampled_from(texts))
        tokens, fresh = text[: data.draw(st.integers(len(PROMPT), len(text)))], matcher(guide)
        allowed = known.allowed(tokens)
        assert (allowed == fresh.allowed(tokens)).all()
        assert known.forced(tokens) == fresh.forced(tokens)
        assert known.ended(tokens) == fresh.ended(tokens)
        wish, choices = data.draw(st.sampled_from(WISHES)), np.flatnonzero(allowed)
        texts.append([*tokens, wish if allowed[wish] else int(choices[data.draw(st.integers(0, len(choices) - 1))])])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMS), st.data())
def test_forced_tokens_are_the_only_ones_and_likely_ones_may_come(guide: Guide, data: st.DataObject) -> None:
    followed, tokens = matcher(guide), list(PROMPT)
    for _ in range(data.draw(st.integers(1, 15))):
        certain, likely = followed.forced(tokens)
        assert followed.kept(tokens, [*certain, *likely]) == len(certain) + len(likely)
        for i, token in enumerate(certain):
            assert np.flatnonzero(followed.allowed(tokens + certain[:i])).tolist() == [token]
        for i, token in enumerate(likely):
            assert followed.allowed([*tokens, *certain, *likely[:i]])[token]
        tokens += certain
        choices = np.flatnonzero(followed.allowed(tokens))
        tokens.append(int(choices[data.draw(st.integers(0, len(choices) - 1))]))


def test_names_and_quotes_of_a_schema_are_forced() -> None:
    followed = matcher(Guide.json_schema(PERSON))
    certain, likely = followed.forced(PROMPT)
    assert TOKENIZER.decode(certain + likely) == '{"full_name":"'
    certain, likely = followed.forced(answer(Guide.json_schema(PERSON), '{"full_name":"Ann","favourite_colour":"re'))
    assert TOKENIZER.decode(certain + likely) == 'd"'
    assert matcher(Guide.json_object()).forced([*PROMPT, *text_ids('{"')]) == ([], [])


def test_of_a_draft_what_cannot_follow_is_cut() -> None:
    followed = matcher(Guide.json_schema(PERSON))
    tokens = answer(Guide.json_schema(PERSON), '{"full_name":"Ann')
    draft = text_ids('","favourite_colour":"blue"')
    assert TOKENIZER.decode(draft[: followed.kept(tokens, draft)]) == '","favourite_colour":"'
    assert followed.kept([*PROMPT, *text_ids('{"full_name":"Ann","favourite_colour":"red"}'), END], draft) == 0


# ------------------------------------------------------------------------------------------------ after a text


def test_the_form_holds_exactly_from_the_token_behind_the_marker() -> None:
    guide = Guide.json_schema(PERSON, after="</think>")
    followed = matcher(guide)
    thought = [*PROMPT, *text_ids('Let me see. {"a": 1} </thin </think')]
    assert not any(followed.allowed(thought[:i])[END] for i in range(len(PROMPT), len(thought)))
    assert followed.allowed(thought).sum() > VOCAB / 2
    assert followed.forced(thought) == ([], [])
    assert followed.kept(thought, text_ids("> anything")) == len(text_ids("> anything"))
    done = [*thought, *text_ids(">")]
    assert np.flatnonzero(followed.allowed(done)).tolist() == text_ids("{")
    assert TOKENIZER.decode([token for part in followed.forced(done) for token in part]) == '{"full_name":"'
    # back, to a text in which it does not end there
    assert followed.allowed([*thought, *text_ids("!")]).sum() > VOCAB / 2
    assert followed.ended([*done, *text_ids('{"full_name":"Ann","favourite_colour":"red"}')])
    with pytest.raises(UsageError, match="cannot keep to its form"):
        followed.ended([*done, *text_ids("{{")])
    with pytest.raises(UsageError, match="cannot keep to its form"):  # no answer ends before its form began
        followed.ended([*thought, END])


@pytest.mark.parametrize("end", ["</think>", "</think>\n\n"])
def test_a_prompt_that_ends_with_the_marker_has_it_already(end: str) -> None:
    prompt = TOKENIZER.encode(f"A <think>none{end}")
    followed = GUIDES.matcher(Guide.regex("x+", after="</think>"), prompt)
    assert TOKENIZER.decode(np.flatnonzero(followed.allowed(prompt))[:1].tolist()).startswith("x")
    other = TOKENIZER.encode(f"A <think>none{end} and more")
    assert GUIDES.matcher(Guide.regex("x+", after="</think>"), other).allowed(other).sum() > VOCAB / 2


PIECES = [
    b"",
    b"e",
    b"en",
    b"d",
    b"nd",
    b"end",
    b"nd>",
    b"d>",
    b">",
    b">\n",
    b">{",
    b"end> ",
    b"end>{",
    b"<end",
    b"a",
    b"<",
    b"x<e",
]


@given(st.lists(st.integers(1, len(PIECES) - 1), max_size=12))
def test_a_marker_is_found_however_it_is_cut(tokens: list[int]) -> None:
    marker, matched, text = Marker(b"<end>", PIECES, [0]), 0, b""
    for i, token in enumerate(tokens):
        text += PIECES[token]
        behind = text.partition(b"<end>")[2].strip()
        assert marker.allowed(matched)[token] == (not behind)
        assert not marker.allowed(matched)[0]
        assert marker.ends(tokens[: i + 1]) == text.rstrip().endswith(b"<end>")
        found = marker.follow(matched, token)
        if found is None:
            assert b"<end>" in text
            return
        assert b"<end>" not in text
        assert [n for n in range(5) if text.endswith(b"<end>"[:n])][-1] == found
        matched = found


# ------------------------------------------------------------------------------------------------ what is chosen


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_else_is_chosen_whatever_is_likely(temperature: float) -> None:
    rng = np.random.default_rng(1)
    for options in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}, {"repetition_penalty": 1.5, "logit_bias": {END: 100}}):
        params = SamplingParams(temperature=temperature, seed=3, min_tokens=30, **options)
        guide = Guide.regex("[0-9]{2,4}")
        sampler = Sampler(params, len(PROMPT), ends=[END], guide=matcher(guide))
        tokens = list(PROMPT)
        while not matcher(guide).ended(tokens):
            logits = (5 * rng.standard_normal(VOCAB)).astype(np.float32)
            p = sampler.distribution(logits, tokens) if temperature else None
            token = sampler.choose(logits, tokens)
            assert p is None or (p[token] > 0 and p[~matcher(guide).allowed(tokens)].sum() == 0)
            tokens.append(token)
        assert len(TOKENIZER.decode(tokens[len(PROMPT) :])) == 4  # min_tokens: no end before


def test_a_guide_is_one_of_the_parameters() -> None:
    guide = Guide.json_schema(PERSON)
    assert json.loads(guide.text) == PERSON
    assert SamplingParams(guide=guide) == SamplingParams(guide=Guide.json_schema(json.dumps(PERSON)))
    assert hash(SamplingParams(guide=guide)) == hash(SamplingParams(guide=guide))
    assert not Sampler(SamplingParams(guide=guide), 1, guide=matcher(guide)).takes_best
