from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasar.calibration.prompts import PromptSet, load_prompts
from quasar.engines.errors import UsageError

FILLER = [{"text": f"filler {i}"} for i in range(4)]


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def encode_messages(messages: Sequence[Any]) -> list[int]:
    return encode("".join(f"<{message['role'][0]}>{message['content']}" for message in messages))


def decode(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def loaded(file: Path | None, **options: int) -> PromptSet:
    return load_prompts(file, encode, encode_messages, **options)


def texts(prompts: PromptSet) -> list[str]:
    return [decode(ids) for ids in prompts.calibration + prompts.gate]


def jsonl(tmp_path: Path, rows: Sequence[Any], name: str = "rows.jsonl") -> Path:
    file = tmp_path / name
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return file


def refused(file: Path) -> str:
    with pytest.raises(UsageError) as caught:
        loaded(file)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "one"}, "one"),
        ({"prompt": "two"}, "two"),
        ({"inputs_pretokenized": "three"}, "three"),
        ({"question": "four"}, "four"),
        ({"text": None, "question": "five", "id": 7}, "five"),
        ({"question": "later", "text": "first"}, "first"),
        ({"turns": ["hello"]}, "<u>hello"),
        ({"turns": ["q1", "q2"]}, "<u>q1"),
        ({"turns": ["q1", "q2"], "reference": ["a1", "a2"]}, "<u>q1<a>a1<u>q2<a>a2"),
        ({"turns": ["q1", "q2"], "reference": ["a1"]}, "<u>q1"),
        ({"turns": ["q1"], "reference": [None]}, "<u>q1"),
        ({"turns": ["q1"], "text": "plain"}, "<u>q1"),
        ({"turns": [], "text": "plain"}, "plain"),
        ({"turns": [{"role": "user"}], "prompt": "plain"}, "plain"),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}, "<s>s<u>q"),
        ({"messages": [{"role": "user", "content": "q"}], "text": "plain"}, "<u>q"),
        ({"messages": [{"role": "user", "content": ["parts"]}], "text": "plain"}, "plain"),
        ({"text": "漢字 😀"}, "漢字 😀"),
    ],
    ids=str,
)
def test_a_row_gives_its_text_or_its_chat(tmp_path: Path, row: Any, text: str) -> None:
    assert texts(loaded(jsonl(tmp_path, [row, *FILLER])))[0] == text


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=2, max_size=12))
def test_a_row_may_hold_any_character(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = jsonl(tmp_path_factory.mktemp("rows"), [{"text": text}, *FILLER])
    assert texts(loaded(file))[0] == text


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_inside_a_row_do_not_end_it(tmp_path: Path, separator: str) -> None:
    file = jsonl(tmp_path, [{"text": f"one{separator}two"}, *FILLER])
    assert texts(loaded(file))[0] == f"one{separator}two"


def test_blank_lines_and_windows_line_ends_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\r\n{"text": "one"}\r\n\r\n  \r\n{"text": "two"}\r\n{"text": "three"}')
    assert texts(loaded(file)) == ["one", "two", "three"]


def test_rows_keep_their_order_and_are_cut_to_the_length(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"text": f"{i}" * 9} for i in range(5)])
    assert texts(loaded(file, length=4)) == [f"{i}" * 4 for i in range(5)]


def test_rows_too_short_to_predict_anything_are_left_out(tmp_path: Path) -> None:
    file = jsonl(tmp_path, [{"text": ""}, {"text": "a"}, {"text": "bb"}, *FILLER])
    assert texts(loaded(file)) == ["bb", *(row["text"] for row in FILLER)]


# ------------------------------------------------------------------------------------------------ plain text


def test_plain_text_is_cut_into_windows_without_a_gap(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("abcdefghij{not json", encoding="utf-8")
    prompts = loaded(file, length=4)
    assert texts(prompts) == ["abcd", "efgh", "ij{n", "ot j", "son"]
    assert prompts.name == "book.txt"


def test_a_last_window_of_one_token_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("abcdefghijklm", encoding="utf-8")
    assert texts(loaded(file, length=4)) == ["abcd", "efgh", "ijkl"]


# ---------------------------------------------------------------------------------------------------- split


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 60), st.integers(2, 40))
def test_the_split_is_disjoint_in_order_and_within_what_was_asked(
    tmp_path_factory: pytest.TempPathFactory, rows: int, samples: int
) -> None:
    file = jsonl(tmp_path_factory.mktemp("rows"), [{"text": f"row {i}"} for i in range(rows)])
    prompts = loaded(file, samples=samples)
    kept = len(prompts.calibration) + len(prompts.gate)
    assert texts(prompts) == [f"row {i}" for i in range(kept)]
    assert kept == min(rows, samples + max(1, samples // 4))
    assert len(prompts.calibration) >= 2
    assert len(prompts.gate) >= 1


@pytest.mark.parametrize(
    ("rows", "samples", "sizes"),
    [(100, 32, (32, 8)), (100, 4, (4, 1)), (10, 32, (8, 2)), (3, 32, (2, 1)), (50, 8, (8, 2))],
)
def test_split_sizes(tmp_path: Path, rows: int, samples: int, sizes: tuple[int, int]) -> None:
    prompts = loaded(jsonl(tmp_path, [{"text": f"row {i}"} for i in range(rows)]), samples=samples)
    assert (len(prompts.calibration), len(prompts.gate)) == sizes


def test_the_built_in_set_fills_the_default_split_with_different_prompts() -> None:
    prompts = loaded(None)
    assert prompts.name == "built-in"
    assert (len(prompts.calibration), len(prompts.gate)) == (32, 8)
    assert len(set(texts(prompts))) == 40


def test_the_hash_depends_on_the_tokens_alone(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}"} for i in range(6)]
    sha = loaded(jsonl(tmp_path, rows)).sha256
    assert len(sha) == 64
    assert loaded(jsonl(tmp_path, rows, "other name.jsonl")).sha256 == sha
    changed = [*rows[:5], {"text": "row 6"}]
    assert loaded(jsonl(tmp_path, changed)).sha256 != sha
    assert loaded(jsonl(tmp_path, rows[::-1])).sha256 != sha
    assert loaded(jsonl(tmp_path, rows), length=3).sha256 != sha


def test_the_hash_tells_the_two_parts_apart() -> None:
    a, b, c = [1, 2], [3, 4], [5, 6]
    assert PromptSet("x", [a, b], [c]).sha256 != PromptSet("x", [a], [b, c]).sha256


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("content", ["", "\n", " \r\n\t\n"])
@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert refused(file).startswith(f"--calibration {file}: the file is empty")


def test_a_missing_file_and_a_folder_are_refused_with_the_reason(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.jsonl").startswith(f"--calibration {tmp_path / 'no.jsonl'}: cannot be read (No such file")
    assert refused(tmp_path).startswith(f"--calibration {tmp_path}: cannot be read (Is a directory")


@pytest.mark.parametrize("name", ["image.jsonl", "image.txt"])
def test_a_binary_file_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    assert "not UTF-8 text" in refused(file)


@pytest.mark.parametrize("broken", ['{"text": "x"', "text", '{"text": "x"} trailing', "[" * 100_000], ids=lambda row: row[:12])
def test_a_row_that_is_not_json_names_its_line(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"text": "fine"}}\n\n{broken}\n{{"text": "fine"}}\n')
    assert f"{file}, line 3: not JSON" in refused(file)


@pytest.mark.parametrize(
    "row",
    [{}, {"answer": "x"}, {"text": 5}, {"turns": [1]}, {"messages": [{"role": "user"}]}, [], "text", 3, None],
    ids=str,
)
def test_a_row_without_text_names_its_line_and_the_keys(tmp_path: Path, row: Any) -> None:
    message = refused(jsonl(tmp_path, [{"text": "fine"}, row]))
    assert "line 2: no text" in message
    assert all(key in message for key in ("text", "prompt", "inputs_pretokenized", "question", "turns", "messages"))


@pytest.mark.parametrize("usable", [0, 1, 2])
def test_too_few_usable_rows_are_counted(tmp_path: Path, usable: int) -> None:
    rows = [{"text": "fine"}] * usable + [{"text": "x"}] * 5
    assert f"{usable} usable rows; at least 3 are needed" in refused(jsonl(tmp_path, rows))


def test_too_short_a_text_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("ab")
    assert "1 usable rows" in refused(file)


def test_rows_past_what_is_needed_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n' * 5 + "broken\n")
    assert len(texts(loaded(file, samples=4))) == 5
