"""Tier 4: pools that are kept, through the API and the commands, on the demo model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edited import edit_manifest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import UsageError
from quasar.runtime import Result, SamplingParams, load
from quasar.runtime.cli import main as generate_main
from quasar.runtime.kept_pool import open_pool
from quasar.runtime.model_options import ModelOptions, options_from_strings
from quasar.runtime.serving.triton.cli import main as triton_main

CHAIN = "suffix-pool > int8"
QUESTIONS = [
    "A baker has 24 rolls and sells 9 of them. How many rolls are left?",
    "Tom buys 3 boxes of 8 pens. He gives 5 pens to each of his 2 friends. How many pens does he keep?",
]
SAMPLED = SamplingParams(max_new_tokens=60, temperature=0.8, seed=7)
GENERATE = [sys.executable, "-c", "import sys; from quasar.runtime.cli import main; sys.exit(main())"]

Capture = pytest.CaptureFixture[str]


def answers(bundle: Path, pool: Path | None, params: SamplingParams | None = None, **options: Any) -> list[Result]:
    """Answers of a model that is loaded and closed for them; tokens per round do not depend on measured times."""
    with load(bundle, CHAIN, pool=pool, draft_length=8, **options) as model:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        return model.generate(chats, params or SamplingParams(max_new_tokens=60))


def per_round(results: list[Result]) -> float:
    return sum(len(result.ids) for result in results) / sum(result.statistics.rounds for result in results)


def held(bundle: Path, pool: Path) -> list[int]:
    """Every token of a pool, and -1 behind each text."""
    array = open_pool(pool, open_bundle(bundle), 4096).read()
    assert array is not None
    return array._tokens.tolist()


def line(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """The one line that a command which fails prints."""
    assert generate_main([*arguments, "--max-new-tokens", "4"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


# ------------------------------------------------------------------------------------------------ what it brings


@pytest.mark.parametrize("params", [None, SAMPLED], ids=["greedy", "sampled"])
def test_answers_that_were_given_before_are_accepted_in_the_next_process(
    demo_bundle: Path, tmp_path: Path, params: SamplingParams | None
) -> None:
    without = answers(demo_bundle, None, params)
    first = answers(demo_bundle, tmp_path / "pool", params)
    again = answers(demo_bundle, tmp_path / "pool", params)
    assert [one.ids for one in without] == [one.ids for one in first] == [one.ids for one in again]
    assert held(demo_bundle, tmp_path / "pool") == [token for one in first for token in (*one.ids, -1)]
    assert per_round(again) > 4 > per_round(first)


def test_sequences_that_share_passes_share_the_pool(demo_bundle: Path, tmp_path: Path) -> None:
    first = answers(demo_bundle, tmp_path / "pool", sequences=2)
    again = answers(demo_bundle, tmp_path / "pool", sequences=2)
    assert [one.ids for one in first] == [one.ids for one in again]
    assert per_round(again) > 2 * per_round(first)


def test_what_is_forgotten_is_not_kept_and_what_was_kept_is_not_forgotten(demo_bundle: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with load(demo_bundle, CHAIN, pool=str(pool)) as model:
        model.generate("Once upon a time", SamplingParams(max_new_tokens=5))
        model.forget()
    assert not pool.exists()
    answers(demo_bundle, pool)
    before = held(demo_bundle, pool)
    with load(demo_bundle, CHAIN, pool=pool, draft_length=8) as model:
        model.generate("Once upon a time", SamplingParams(max_new_tokens=5))
        model.forget()
        done = model.generate([{"role": "user", "content": QUESTIONS[0]}], SamplingParams(max_new_tokens=60))
    assert done.statistics.tokens_per_round > 4
    assert sorted(held(demo_bundle, pool)) == sorted(before)


def test_two_models_add_to_one_file(demo_bundle: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with load(demo_bundle, CHAIN, pool=pool) as one, load(demo_bundle, CHAIN, pool=pool) as other:
        first = one.generate("Once upon a time", SamplingParams(max_new_tokens=5)).ids
        second = other.generate("1 + 1 =", SamplingParams(max_new_tokens=5)).ids
    assert held(demo_bundle, pool) == [*second, -1, *first, -1]


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_keeps_what_it_answered(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    command = [
        str(demo_bundle),
        QUESTIONS[0],
        "--chain",
        CHAIN,
        "--pool",
        str(tmp_path / "pool"),
        "--json",
        "--draft-length",
        "8",
    ]
    rows = []
    for _ in range(2):
        assert generate_main([*command, "--json", "--draft-length", "8"]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert rows[0]["ids"] == rows[1]["ids"]
    assert held(demo_bundle, tmp_path / "pool") == [*rows[0]["ids"], -1]
    assert rows[1]["statistics"]["tokens_per_round"] > 2 * rows[0]["statistics"]["tokens_per_round"]


@pytest.mark.parametrize(
    ("chain", "advice"),
    [
        (None, "the chain prompt-lookup > int8 proposes nothing of it; give the chain 'suffix-pool > int8'"),
        ("plain", "the chain int8 proposes nothing of it; give the chain 'suffix-pool > int8'"),
        ("suffix,int4 > int8 > float", "give the chain 'suffix-pool,int4 > int8 > float'"),
        ("int4 > int8", "give the chain 'suffix-pool,int4 > int8'"),
    ],
)
def test_a_chain_without_the_pool_is_told_which_to_use(
    demo_bundle: Path, tmp_path: Path, capsys: Capture, chain: str | None, advice: str
) -> None:
    pool = str(tmp_path / "pool")
    (tmp_path / "text.txt").write_text("Once upon a time")
    chosen = [] if chain is None else ["--chain", chain]
    assert advice in line(capsys, str(demo_bundle), "hi", "--pool", pool, *chosen)
    assert advice in line(capsys, str(demo_bundle), "hi", "--pool", pool, *chosen, "--pool-from", str(tmp_path / "text.txt"))
    assert not Path(pool).exists()


def test_a_pool_of_another_tokenizer_is_refused(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    pool, bundle = tmp_path / "pool", tmp_path / "bundle"
    answers(demo_bundle, pool)
    before = pool.read_bytes()
    shutil.copytree(demo_bundle, bundle)

    def another(manifest: dict[str, Any]) -> None:
        next(f for f in manifest["files"] if f["path"] == "tokenizer/tokenizer.json")["sha256"] = "0" * 64

    edit_manifest(bundle, another)
    said = line(capsys, str(bundle), "hi", "--chain", CHAIN, "--pool", str(pool))
    assert said == (
        f"quasar-generate: pool {pool}: its texts are of another model's tokenizer; "
        "give another file, or remove it to begin again\n"
    )
    assert pool.read_bytes() == before


def test_other_bundles_of_the_model_share_a_pool(demo_bundle: Path, tmp_path: Path) -> None:
    """A bundle is the model's as long as the tokenizer is."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    edit_manifest(bundle, lambda manifest: manifest["model"].update(id="elsewhere/demo"))
    answers(demo_bundle, tmp_path / "pool")
    assert per_round(answers(bundle, tmp_path / "pool")) > 4


def test_a_file_of_something_else_is_refused_before_anything_is_loaded(
    demo_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    for more in ([], ["--pool-from", str(notes)]):
        said = line(capsys, str(demo_bundle), "hi", "--chain", CHAIN, "--pool", str(notes), *more)
        assert "notes.txt: not a file that --pool wrote; give another file, or remove it to begin again" in said
    assert notes.read_text() == "my notes\n"
    assert "no such folder" in line(capsys, str(demo_bundle), "hi", "--chain", CHAIN, "--pool", str(tmp_path / "no" / "pool"))


@pytest.mark.parametrize("ruin", [lambda pool: pool.mkdir(), lambda pool: pool.write_text("notes")], ids=["folder", "notes"])
def test_where_the_pool_cannot_be_kept_the_answer_stands(
    demo_bundle: Path, tmp_path: Path, ruin: Callable[[Path], object]
) -> None:
    """What is in its place by then came while the question was typed."""
    pool = tmp_path / "pool"
    command = [*GENERATE, str(demo_bundle), "--chain", CHAIN, "--pool", str(pool), "--json", "--max-new-tokens", "8"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        chat.stdin.write(f"{QUESTIONS[0]}\n")
        chat.stdin.flush()
        assert len(json.loads(chat.stdout.readline())["ids"]) == 8
        ruin(pool)
        _, said = chat.communicate(timeout=60)
    assert chat.returncode == 0
    assert said.startswith(f"pool {pool}: not a file")
    assert said.count("\n") == 1


def test_paths_of_the_api_are_paths(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match="pool is 3; give the path of a file"):
        load(demo_bundle, CHAIN, pool=3)


# ------------------------------------------------------------------------------------------------ a corpus


def build(bundle: Path, pool: Path, *files: Path) -> int:
    return generate_main([str(bundle), "--pool", str(pool), *(part for file in files for part in ("--pool-from", str(file)))])


def test_texts_are_proposed_from_the_first_answer_on(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    plain = answers(demo_bundle, None)
    (tmp_path / "one.txt").write_text(plain[0].text)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": plain[1].text}) + "\n")
    assert build(demo_bundle, tmp_path / "pool", tmp_path / "one.txt", tmp_path / "rows.jsonl") == 0
    printed = capsys.readouterr()
    tokens = held(demo_bundle, tmp_path / "pool")
    assert printed.out == f"{tmp_path / 'pool'}: {len(tokens) - 2} tokens\n"
    assert printed.err == ""
    done = answers(demo_bundle, tmp_path / "pool")
    assert [one.ids for one in done] == [one.ids for one in plain]
    assert per_round(done) > 2 * per_round(plain)


def test_rows_are_those_of_calibration_files(demo_bundle: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Once upon a time"},
        {"turns": ["Why?"], "reference": ["Because."]},
        {"messages": [{"role": "user", "content": "Hello"}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert build(demo_bundle, tmp_path / "pool", tmp_path / "rows.jsonl") == 0
    with load(demo_bundle, "int8") as model:
        tokenizer = model.tokenizer
    array = held(demo_bundle, tmp_path / "pool")
    ends = [place for place, token in enumerate(array) if token == -1]
    texts = [tokenizer.decode(array[begin + 1 : end]) for begin, end in zip([-1, *ends], ends, strict=False)]
    assert texts[0] == "Once upon a time"
    assert "Why?" in texts[1]
    assert "Because." in texts[1]
    assert "Hello" in texts[2]
    assert len(texts) == 3


def test_texts_are_added_before_the_answer(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time")
    common = [str(demo_bundle), "--chain", CHAIN, "--pool", str(tmp_path / "pool"), "--json", "--max-new-tokens", "5"]
    assert generate_main([*common, "--pool-from", str(tmp_path / "text.txt"), QUESTIONS[0]]) == 0
    ids = json.loads(capsys.readouterr().out)["ids"]
    tokens = held(demo_bundle, tmp_path / "pool")
    assert tokens[-len(ids) - 2 :] == [-1, *ids, -1]
    assert len(tokens) > len(ids) + 2


def test_the_same_texts_again_change_nothing(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time")
    pool = tmp_path / "pool"
    assert build(demo_bundle, pool, tmp_path / "text.txt") == 0
    before = pool.read_bytes()
    assert build(demo_bundle, pool, tmp_path / "text.txt", tmp_path / "text.txt") == 0
    assert pool.read_bytes() == before


def test_texts_that_cannot_be_read_are_named(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n{"id": 3}\n')
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "text.txt").write_text("Once upon a time")
    for name, said in (
        ("rows.jsonl", f"--pool-from {tmp_path}/rows.jsonl, line 2: no text; a row needs one of text, prompt, "),
        ("empty.txt", f"--pool-from {tmp_path}/empty.txt: the file is empty; give a .jsonl or .txt file with text"),
        ("empty.jsonl", f"--pool-from {tmp_path}/empty.jsonl: no text; give a .jsonl or .txt file with text"),
        ("none.txt", f"--pool-from {tmp_path}/none.txt: cannot be read (No such file or directory); give a"),
    ):
        assert said in line(capsys, str(demo_bundle), "--pool", str(tmp_path / "pool"), "--pool-from", str(tmp_path / name))
    assert not (tmp_path / "pool").exists()
    assert "say with --pool FILE where that is" in line(capsys, str(demo_bundle), "--pool-from", str(tmp_path / "text.txt"))


# ------------------------------------------------------------------------------------------------ other commands


def test_a_server_finds_the_pool_wherever_it_starts(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [str(demo_bundle.absolute()), "--repository", "models", "--name", "m", "--pool", "answers.pool"]
    assert triton_main([*command, "--chain", CHAIN]) == 0
    config = text_format.Parse((tmp_path / "models" / "m" / "config.pbtxt").read_text(), pb.ModelConfig())
    options = options_from_strings({name: value.string_value for name, value in config.parameters.items()})
    assert options == ModelOptions(CHAIN, 8, pool=tmp_path / "answers.pool")
    capsys.readouterr()
    assert triton_main(command) == 2
    assert "give the chain 'suffix-pool > int8'" in capsys.readouterr().err
