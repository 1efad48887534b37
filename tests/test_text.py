from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as TokenizerFile
from tokenizers import decoders, models, normalizers

import quasar.exporter
from quasar.engines.errors import BundleError, UsageError
from quasar.runtime.text import TextStream
from quasar.runtime.tokenizer import REPLACEMENT, StreamDecoder, Tokenizer

VOCAB_SIZE = 4096
FOLDER = Path(str(quasar.exporter.__file__)).parent / "demo"
TOKENIZER = Tokenizer(FOLDER, VOCAB_SIZE)

UNICODE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé漢字😀👨\u200d👩\u0301\u202e\n ")), max_size=20)
WHOLE = UNICODE.filter(lambda text: REPLACEMENT not in text)
SINGLE_BYTES = [TOKENIZER.encode(chr(point))[0] for point in range(128)] + [
    token for point in range(128, 2048, 64) for token in TOKENIZER.encode(chr(point))
]
IDS = st.lists(st.one_of(st.integers(0, VOCAB_SIZE - 1), st.sampled_from(SINGLE_BYTES), st.integers(0, 2)), max_size=25)
FAMILY = "👨\u200d👩\u200d👧 漢字かな交じり文 naïve 🏳️\u200d🌈"


def decoded(ids: list[int], tokenizer: Tokenizer = TOKENIZER) -> tuple[list[str], str]:
    """(the piece of each id, the flushed rest)."""
    decoder = StreamDecoder(tokenizer)
    return [decoder.push(token) for token in ids], decoder.flush()


def streamed(ids: list[int], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """Pieces up to a stop string, or to the end with what was held back."""
    stream, pieces = TextStream(TOKENIZER, stop), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    pieces.append(stream.flush())
    return pieces, stream.stopped


def cut_after_each_token(ids: list[int], stop: tuple[str, ...]) -> tuple[str, int | None]:
    """(the text before the first stop string, after how many tokens it was complete)."""
    for count in range(1, len(ids) + 1):
        text = TOKENIZER.decode(ids[:count])
        found = [text.index(word) for word in stop if word in text]
        if found:
            return text[: min(found)], count
    return TOKENIZER.decode(ids), None


def split_ids(words: list[str]) -> list[int]:
    """Ids whose borders are at least those of the words."""
    return [token for word in words for token in TOKENIZER.encode(word)]


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
@given(IDS)
@example([TOKENIZER.encode("😀")[0], 2, *TOKENIZER.encode("😀")[1:]])
@example(TOKENIZER.encode("漢")[:-1] + TOKENIZER.encode("a"))
@example(TOKENIZER.encode("漢")[1:] + TOKENIZER.encode("😀")[:-1])
@example([0, 1, 2, 0])
def test_pieces_of_any_ids_join_to_their_decoding(ids: list[int]) -> None:
    pieces, rest = decoded(ids)
    assert "".join(pieces) + rest == TOKENIZER.decode(ids)


@settings(max_examples=100, deadline=None)
@given(IDS)
def test_what_was_shown_of_any_ids_never_has_to_be_taken_back(ids: list[int]) -> None:
    pieces, _ = decoded(ids)
    whole = TOKENIZER.decode(ids)
    assert all(whole.startswith("".join(pieces[:count])) for count in range(len(pieces) + 1))


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


@pytest.fixture(scope="module")
def sentencepiece_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As Llama 2 and Mistral have it: a space at the beginning of a word's token, bytes for what has no token."""
    words = ["<unk>", "\u2581", *"abc", "\u2581a", "\u2581b", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [("\u2581", "a"), ("\u2581", "b")]
    file = TokenizerFile(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    file.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    file.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("sentencepiece")
    file.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder, len(words))


@settings(max_examples=100, deadline=None)
@given(st.text(st.one_of(st.sampled_from("abc  "), st.characters(codec="utf-8")), max_size=20))
@example(" a b  b")
@example("a " + FAMILY + " b")
def test_spaces_that_belong_to_words_survive_streaming(sentencepiece_like: Tokenizer, text: str) -> None:
    text = text.replace(REPLACEMENT, "").replace("\u2581", "")
    pieces, rest = decoded(sentencepiece_like.encode(text), sentencepiece_like)
    assert "".join(pieces) + rest == text
    assert not any(piece.endswith(REPLACEMENT) for piece in pieces)


# -------------------------------------------------------------------------------------------- stop strings

OVERLAPPING = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=8)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(max_examples=100, deadline=None)
@given(OVERLAPPING, STOPS)
@example(["a", "a", "a", "b"], ("aab",))
@example(["ab", "ab", "."], ("abab.", "b."))
def test_text_is_cut_at_the_first_stop_string_wherever_tokens_end(words: list[str], stop: tuple[str, ...]) -> None:
    ids = split_ids(words)
    expected, count = cut_after_each_token(ids, stop)
    pieces, stopped = streamed(ids, stop)
    assert "".join(pieces) == expected
    assert stopped == (count is not None)
    if count is not None:
        assert len(pieces) == count


@settings(max_examples=100, deadline=None)
@given(OVERLAPPING, STOPS)
def test_no_text_of_a_stop_string_is_ever_shown(words: list[str], stop: tuple[str, ...]) -> None:
    ids = split_ids(words)
    expected, _ = cut_after_each_token(ids, stop)
    pieces, _ = streamed(ids, stop)
    assert all(expected.startswith("".join(pieces[:count])) for count in range(len(pieces) + 1))


@settings(max_examples=50, deadline=None)
@given(OVERLAPPING, STOPS)
def test_only_a_possible_beginning_of_a_stop_string_is_held_back(words: list[str], stop: tuple[str, ...]) -> None:
    ids, stream, shown = split_ids(words), TextStream(TOKENIZER, stop), ""
    for count, token in enumerate(ids, start=1):
        shown += stream.push(token)
        if stream.stopped:
            break
        held = TOKENIZER.decode(ids[:count])[len(shown) :]
        assert not held or any(word.startswith(held) for word in stop)


@settings(max_examples=50, deadline=None)
@given(IDS)
def test_without_stop_strings_the_text_is_the_decoding(ids: list[int]) -> None:
    pieces, stopped = streamed(ids, ())
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert not stopped


@settings(max_examples=50, deadline=None)
@given(WHOLE, st.sampled_from(["漢字", "👩\u200d👧", "😀"]), WHOLE)
def test_a_stop_string_of_many_byte_characters_is_cut_exactly(before: str, stop: str, after: str) -> None:
    ids = split_ids([before, stop, after])
    whole = TOKENIZER.decode(ids)
    pieces, stopped = streamed(ids, (stop,))
    assert stopped == (stop in whole)
    assert "".join(pieces) == whole.split(stop)[0]


def test_a_disappointed_beginning_is_released_with_what_disproves_it() -> None:
    stream = TextStream(TOKENIZER, ("###",))
    a, hashes, b = (TOKENIZER.encode(text) for text in ("a", "#", "b"))
    assert [stream.push(token) for token in (*a, *hashes, *hashes, *b)] == ["a", "", "", "##b"]
    assert not stream.stopped


def test_a_beginning_at_the_end_of_the_text_is_flushed_once() -> None:
    stream = TextStream(TOKENIZER, ("xyz",))
    assert [stream.push(token) for token in split_ids(["x", "y"])] == ["", ""]
    assert stream.flush() == "xy"
    assert stream.flush() == ""
    assert not stream.stopped


@pytest.mark.parametrize("stop", [("two", "one"), ("one", "two")])
def test_of_several_stop_strings_the_earliest_wins(stop: tuple[str, ...]) -> None:
    pieces, stopped = streamed(TOKENIZER.encode("zero one two three"), stop)
    assert "".join(pieces) == "zero "
    assert stopped


# ----------------------------------------------------------------------------------------------- tokenizer


def test_a_vocabulary_too_small_for_the_tokenizer_is_a_bundle_error() -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json: token id 4095 .* 4095"):
        Tokenizer(FOLDER, VOCAB_SIZE - 1)


@pytest.mark.parametrize("content", [None, "", "{}", "\ud83d"])
def test_a_broken_tokenizer_file_is_a_bundle_error_that_names_it(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer(tmp_path, VOCAB_SIZE)


def test_chat_messages_end_with_the_turn_of_the_assistant() -> None:
    question = {"role": "user", "content": "Hi"}
    rendered = "<|im_start|>user\nHi<|im_end|>\n"
    assert TOKENIZER.render([question]) == rendered + "<|im_start|>assistant\n"
    assert TOKENIZER.encode_chat([question]) == TOKENIZER.encode(rendered + "<|im_start|>assistant\n")
    answered = [question, {"role": "assistant", "content": "Yes"}]
    assert TOKENIZER.encode_chat(answered) == TOKENIZER.encode(rendered + "<|im_start|>assistant\nYes<|im_end|>\n")


def test_messages_without_a_chat_template_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    plain = Tokenizer(tmp_path, VOCAB_SIZE)
    assert not plain.has_chat_template
    with pytest.raises(UsageError, match="no chat template"):
        plain.render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("text", ["\ud800", "caf\udce9"])
def test_text_that_is_not_unicode_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        TOKENIZER.encode(text)
