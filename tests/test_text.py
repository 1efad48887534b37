"""Stop strings in streamed text: cut exactly, never shown, held back no longer than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import quasar.exporter
from quasar.runtime.stream_decoder import REPLACEMENT
from quasar.runtime.text import TextStream
from quasar.runtime.tokenizer import Tokenizer

VOCAB_SIZE = 4096
FOLDER = Path(str(quasar.exporter.__file__)).parent / "demo"
TOKENIZER = Tokenizer(FOLDER, VOCAB_SIZE)

UNICODE = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé漢字😀👨\u200d👩\u0301\u202e\n ")), max_size=20)
WHOLE = UNICODE.filter(lambda text: REPLACEMENT not in text)
SINGLE_BYTES = [TOKENIZER.encode(chr(point))[0] for point in range(128)] + [
    token for point in range(128, 2048, 64) for token in TOKENIZER.encode(chr(point))
]
IDS = st.lists(st.one_of(st.integers(0, VOCAB_SIZE - 1), st.sampled_from(SINGLE_BYTES), st.integers(0, 2)), max_size=25)


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
