"""Pieces of a stream join to what the whole decodes to, for any ids and every kind of tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_tokenizers import FILES, PIECES, SPECIAL, opened
from tokenizers import Tokenizer as File

import quasar.exporter
from quasar.runtime.stream_decoder import MOST, REPLACEMENT, StreamDecoder
from quasar.runtime.tokenizer import Tokenizer

FOLDER = Path(str(quasar.exporter.__file__)).parent / "demo"
TOKENIZER = Tokenizer(FOLDER, 4096)
DEMO = File.from_file(str(FOLDER / "tokenizer.json"))
BAD_BYTES = ("<0x41>", "<0x80>", "<0xBF>", "<0xC3>", "<0xE6>", "<0xF0>", "<0xFF>")

UNICODE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé漢字😀👨\u200d👩\u0301\u202e\n ")), max_size=20)
WHOLE = UNICODE.filter(lambda text: REPLACEMENT not in text)
FAMILY = "👨\u200d👩\u200d👧 漢字かな交じり文 naïve 🏳️\u200d🌈"
KINDS = st.sampled_from([*FILES, "demo"])


def decoded(ids: Sequence[int], tokenizer: Tokenizer = TOKENIZER, context: Sequence[int] = ()) -> tuple[list[str], str]:
    """(the piece of each id, the flushed rest)."""
    decoder = StreamDecoder(tokenizer, context)
    return [decoder.push(token) for token in ids], decoder.flush()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {"demo": TOKENIZER, **{kind: opened(file, folder / kind) for kind, file in FILES.items()}}


@st.composite
def any_ids(draw: st.DrawFn, kind: str, max_size: int = 40) -> list[int]:
    """Ids of everything: tokens, special ones, bytes that are no UTF-8 or a character in parts, and ids of no token."""
    file = DEMO if kind == "demo" else FILES[kind]
    written = [file.encode(text).ids for text in ("漢", "😀", "é", "a", " ", "\ufffd", "[TOOL]", *SPECIAL)]
    known = [[token] for text in (*PIECES, *BAD_BYTES) if (token := file.token_to_id(text)) is not None]
    single = st.integers(0, file.get_vocab_size() + 3).map(lambda token: [token])
    parts = st.one_of(single, st.sampled_from(written), st.sampled_from(known))
    return [token for part in draw(st.lists(parts, max_size=max_size)) for token in part]


IDS = KINDS.flatmap(lambda kind: st.tuples(st.just(kind), any_ids(kind)))
WITH_CONTEXT = KINDS.flatmap(lambda kind: st.tuples(st.just(kind), any_ids(kind, 15), any_ids(kind)))
MANY = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ------------------------------------------------------------------------------------------------- any ids


@MANY
@given(IDS)
def test_pieces_of_any_ids_join_to_their_decoding(tokenizers: Mapping[str, Tokenizer], case: tuple[str, list[int]]) -> None:
    kind, ids = case
    pieces, rest = decoded(ids, tokenizers[kind])
    assert "".join(pieces) + rest == tokenizers[kind].decode(ids)


@MANY
@given(IDS)
def test_what_was_shown_is_never_taken_back(tokenizers: Mapping[str, Tokenizer], case: tuple[str, list[int]]) -> None:
    kind, ids = case
    pieces, _ = decoded(ids, tokenizers[kind])
    whole = tokenizers[kind].decode(ids)
    assert all(whole.startswith("".join(pieces[:count])) for count in range(len(pieces) + 1))


@MANY
@given(WITH_CONTEXT)
def test_after_a_context_the_pieces_are_what_it_lacks_of_the_whole(
    tokenizers: Mapping[str, Tokenizer], case: tuple[str, list[int], list[int]]
) -> None:
    kind, context, ids = case
    tokenizer = tokenizers[kind]
    before, whole = tokenizer.decode(context), tokenizer.decode([*context, *ids])
    pieces, rest = decoded(ids, tokenizer, context)
    # where they complete a character of the context, there is no telling what they add to U+FFFD
    if whole.startswith(before):
        assert "".join(pieces) + rest == whole[len(before) :]


def test_the_cost_of_a_token_does_not_grow_with_the_text(
    tokenizers: Mapping[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, tokenizer in tokenizers.items():
        longest, decode = 0, tokenizer.decode

        def counted(ids: Sequence[int], decode=decode) -> str:  # type: ignore[no-untyped-def]
            nonlocal longest
            longest = max(longest, len(ids))
            return decode(ids)

        with monkeypatch.context() as patch:
            patch.setattr(tokenizer, "decode", counted)
            decoded(tokenizer.encode("Tom has  boxes of a, 漢字 é. " * 40), tokenizer)
        # a run of byte tokens is one text, here of two characters that are two and three bytes long
        assert longest <= MOST + 6, kind


# ----------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "byte-level"])
def test_the_space_after_a_special_token_is_shown(tokenizers: Mapping[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    words = ["T", "o", "m", "▁has", "<|end|>", "▁boxes", "▁of", "<s>", "▁a"]
    ids = [token for word in words if (token := tokenizer.token_id(word)) is not None]
    pieces, rest = decoded(ids, tokenizer)
    assert "".join(pieces) + rest == tokenizer.decode(ids) == "Tom has boxes of a"
    assert pieces == ["T", "o", "m", " has", "", " boxes", " of", "", " a"]


@settings(max_examples=100, deadline=None)
@given(st.text(st.one_of(st.sampled_from("abc  "), st.characters(codec="utf-8")), max_size=20))
@example(" a b  b")
@example("a " + FAMILY + " b")
def test_spaces_that_belong_to_words_survive_streaming(tokenizers: Mapping[str, Tokenizer], text: str) -> None:
    text = text.replace(REPLACEMENT, "").replace("\u2581", "")
    tokenizer = tokenizers["byte-fallback"]
    ids = tokenizer.encode(text)
    pieces, rest = decoded(ids, tokenizer)
    assert "".join(pieces) + rest == tokenizer.decode(ids)
    assert not any(REPLACEMENT in piece for piece in pieces)


# ------------------------------------------------------------------------------------------ whole characters


@settings(max_examples=100, deadline=None)
@given(UNICODE)
@example(FAMILY)
@example("\ufffd a \ufffd\ufffd")
def test_pieces_of_any_text_join_to_its_decoding(text: str) -> None:
    ids = TOKENIZER.encode(text)
    pieces, rest = decoded(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text)


@settings(max_examples=100, deadline=None)
@given(WHOLE)
@example(FAMILY)
def test_no_piece_ends_inside_a_character(text: str) -> None:
    pieces, rest = decoded(TOKENIZER.encode(text))
    assert REPLACEMENT not in "".join(pieces)
    assert rest == ""


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_complete_characters_are_shown_at_once(text: str) -> None:
    ids = TOKENIZER.encode(text)
    pieces, _ = decoded(ids)
    for count in range(1, len(ids) + 1):
        assert "".join(pieces[:count]) == TOKENIZER.decode(ids[:count])


def test_a_character_is_shown_with_its_last_token() -> None:
    ids = TOKENIZER.encode("😀")
    assert len(ids) > 1
    assert decoded(ids) == ([""] * (len(ids) - 1) + ["😀"], "")


def test_a_character_that_was_never_completed_is_flushed_once() -> None:
    decoder = StreamDecoder(TOKENIZER)
    assert "".join(decoder.push(token) for token in TOKENIZER.encode("a漢")[:-1]) == "a"
    assert decoder.flush() == REPLACEMENT
    assert decoder.flush() == ""


def test_a_run_of_byte_tokens_is_shown_when_it_ends(tokenizers: Mapping[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-fallback"]
    bad, good = ([tokenizer.token_id(f"<0x{byte:02X}>") or 0 for byte in run] for run in (b"\xe6\xbc", "😀".encode()))
    letter = tokenizer.token_id("b") or 0
    assert decoded([*good, letter], tokenizer) == (["", "", "", "", "😀b"], "")
    assert decoded([*bad, letter], tokenizer) == (["", "", REPLACEMENT * 2 + "b"], "")
    assert decoded(bad, tokenizer) == (["", ""], REPLACEMENT * 2)
