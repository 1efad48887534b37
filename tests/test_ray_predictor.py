"""Tier 2: rows of batches, answered; and the same as a Ray dataset, on a local cluster of two CPUs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quasar.engines.errors import UsageError
from quasar.runtime import Model, SamplingParams, load

ray = pytest.importorskip("ray", reason="the extra ray is not installed: pip install -c constraints.txt '.[ray]'")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from quasar.runtime.serving.ray.predictor import Predictor, row_seed  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["Once upon a time", "A baker has 24 rolls. She sells 9 of them.", "Tom", "How many legs have 3 cats and 2 birds?"]
GREEDY = SamplingParams(max_new_tokens=12)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0, ignore_eos=True)


@pytest.fixture(scope="module")
def library(demo_bundle: Path) -> Iterator[Model]:
    with load(demo_bundle, chain="int8") as model:
        yield model


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A real one, in processes of this machine."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


# ------------------------------------------------------------------------------------------------ batches


def test_rows_keep_their_order_and_have_the_library_s_answers(demo_bundle: Path, library: Model) -> None:
    predictor = Predictor(demo_bundle, GREEDY, chain="int8")
    rows = predictor(table(prompt=PROMPTS, id=[3, 2, 1, 0])).to_pylist()
    assert [row["id"] for row in rows] == [3, 2, 1, 0]
    for row, prompt in zip(rows, PROMPTS, strict=True):
        alone = library.generate(prompt, GREEDY)
        assert (row["generated_text"], row["generated_tokens"]) == (alone.text, alone.ids)
        assert row["num_input_tokens"] == alone.statistics.prompt_tokens
        assert (row["num_generated_tokens"], row["num_rounds"]) == (len(alone.ids), alone.statistics.rounds)
        assert (row["finish_reason"], row["error"]) == (alone.finish_reason, "")


def test_the_longest_prompts_begin(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    answer = Model.answer

    def noted(self: Model, prompt: Any, *args: Any) -> Any:
        begun.append(len(prompt.ids))
        return answer(self, prompt, *args)

    monkeypatch.setattr(Model, "answer", noted)
    Predictor(demo_bundle, GREEDY, chain="int8", sequences=2)(table(prompt=PROMPTS))
    assert begun == sorted(begun, reverse=True)
    assert begun[0] > begun[-1]


def test_prompts_may_be_chats_and_token_ids(demo_bundle: Path, library: Model) -> None:
    chats = [[{"role": "user", "content": text, "name": None}] for text in PROMPTS]
    ids = [library.tokenize(text) for text in PROMPTS]
    for prompts in (chats, ids, [row[:2] for row in ids]):
        rows = Predictor(demo_bundle, GREEDY, prompt="asked", chain="int8")(table(asked=prompts)).to_pylist()
        assert [row["error"] for row in rows] == [""] * 4
        expected: Any = [library.generate(prompt, GREEDY) for prompt in prompts]  # type: ignore[call-overload]
        assert [row["generated_text"] for row in rows] == [one.text for one in expected]


def test_an_error_is_a_row(demo_bundle: Path, library: Model) -> None:
    changes = [None, None, None, None, {"temperature": -1.0}, {"top_k": 5, "speed": 2}]
    batch = table(prompt=["Tom", None, "", "word " * 9000, "Tom", "Tom"], sampling=changes)
    done = Predictor(demo_bundle, GREEDY, sampling="sampling", chain="int8")(batch)
    first, *others = done.to_pylist()
    assert first["generated_text"] == library.generate("Tom", GREEDY).text
    for row, part in zip(others, ("no prompt", "empty", "a context of", "temperature is -1.0", "no speed"), strict=True):
        assert part in row["error"]
        assert "\n" not in row["error"]
        assert (row["finish_reason"], row["generated_tokens"]) == ("error", [])
    of_errors = Predictor(demo_bundle, GREEDY, chain="int8")(table(prompt=pa.array([None], pa.string())))
    assert of_errors.schema == done.drop_columns("sampling").schema, "tables of errors alone have the same types"


def test_errors_of_ids_and_parameters_are_rows(demo_bundle: Path) -> None:
    rows = Predictor(demo_bundle, GREEDY, chain="int8")(table(prompt=[[5, 6], [1, 10**6]])).to_pylist()
    assert "vocabulary" in rows[1]["error"]
    assert rows[0]["error"] == ""
    (row,) = Predictor(demo_bundle, GREEDY, chain="int8")(table(prompt=[3.5])).to_pylist()
    assert "float" in row["error"]
    biased = SamplingParams(max_new_tokens=4, logit_bias={10**6: 1.0})
    (row,) = Predictor(demo_bundle, biased, chain="int8")(table(prompt=["Tom"])).to_pylist()
    assert "logit_bias" in row["error"]
    (row,) = Predictor(demo_bundle, GREEDY, sampling="how", chain="int8")(table(prompt=["Tom"], how=["fast"])).to_pylist()
    assert "how is str; give a structure" in row["error"]


def test_a_pass_that_fails_is_an_error_of_its_rows(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(demo_bundle, GREEDY, chain="int8")

    def fail(*_: Any) -> Any:
        raise RuntimeError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(predictor._model.engines["int8"], "score", fail)
        rows = predictor(table(prompt=PROMPTS)).to_pylist()
    assert [row["error"] for row in rows] == ["no memory left"] * 4
    assert [row["error"] for row in predictor(table(prompt=PROMPTS)).to_pylist()] == [""] * 4


def test_rows_change_parameters(demo_bundle: Path) -> None:
    changes = [{"max_new_tokens": 3, "stop": None}, {"max_new_tokens": None, "stop": "a"}]
    first, second = Predictor(demo_bundle, GREEDY, sampling="how", chain="int8")(
        table(prompt=PROMPTS[:2], how=changes)
    ).to_pylist()
    assert first["num_generated_tokens"] == 3
    assert "a" not in second["generated_text"]


def test_columns_of_an_earlier_run_are_replaced(demo_bundle: Path) -> None:
    predictor = Predictor(demo_bundle, GREEDY, chain="int8")
    once = predictor(table(prompt=PROMPTS))
    assert predictor(once).equals(once)


def test_seeds_come_from_a_key_and_not_from_the_batch(demo_bundle: Path) -> None:
    predictor = Predictor(demo_bundle, SAMPLED, seed_from="id", chain="int8", batch_invariant=True)

    def texts(keys: list[str]) -> list[str]:
        found: list[str] = predictor(table(prompt=["Tom"] * len(keys), id=keys))["generated_text"].to_pylist()
        return found

    keys = ["first", "second", "third", "fourth"]
    together = texts(keys)
    assert len(set(together)) > 1, "rows of other keys are other samples"
    assert texts(keys[::-1])[::-1] == together == [texts([key])[0] for key in keys]


def test_row_seeds_are_spread() -> None:
    seeds = {row_seed(seed, key) for seed in (None, 0, 1) for key in range(1000)}
    assert len(seeds) == 3000
    assert max(seeds) < 1 << 64
    assert row_seed(7, 12) == row_seed(7, "12"), "a key that was read as text is the same key"


def test_a_row_without_a_key_is_an_error(demo_bundle: Path) -> None:
    (row,) = Predictor(demo_bundle, SAMPLED, seed_from="id", chain="int8")(table(prompt=["Tom"], id=[None])).to_pylist()
    assert "no key" in row["error"]


def test_wrong_use_ends_the_job(demo_bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(demo_bundle, chain="int8", seed_from="key")
    with pytest.raises(UsageError, match="no column 'prompt'; there are text, key"):
        predictor(table(text=["Tom"], key=[1]))
    with pytest.raises(UsageError, match='batch_format="pyarrow"'):
        predictor({"prompt": ["Tom"]})
    with pytest.raises(UsageError, match="speed: no such option"):
        Predictor(demo_bundle, speed=2)
    with pytest.raises(UsageError, match="no engine"):
        Predictor(demo_bundle, chain="int9")
    with pytest.raises(UsageError):
        Predictor(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------ datasets


def test_actors_of_a_cluster_answer_a_dataset(cluster: None, demo_bundle: Path, library: Model, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": number, "prompt": PROMPTS[number % 4]} for number in range(24)]
    for number in (*range(8, 12), 20):  # among them all rows of a batch
        rows[number]["prompt"] = None
    done = ray.data.from_items(rows, override_num_blocks=6).map_batches(
        Predictor,
        fn_constructor_kwargs={"bundle": demo_bundle, "params": GREEDY, "chain": "int8"},
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
        batch_size=4,
        batch_format="pyarrow",
    )
    done.write_parquet(str(tmp_path / "answers"), ray_remote_args={"num_cpus": 0})
    answers = {row["id"]: row for row in parquet.read_table(tmp_path / "answers").to_pylist()}
    expected = [library.generate(prompt, GREEDY) for prompt in PROMPTS]
    assert sorted(answers) == list(range(24))
    for number, row in answers.items():
        if rows[number]["prompt"] is None:
            assert (row["finish_reason"], row["generated_tokens"]) == ("error", [])
            assert "no prompt" in row["error"]
        else:
            assert row["generated_tokens"] == expected[number % 4].ids
            assert (row["generated_text"], row["error"]) == (expected[number % 4].text, "")


def test_an_actor_has_as_many_threads_as_cpus(cluster: None, demo_bundle: Path) -> None:
    class Options(Predictor):
        def __call__(self, batch: Any) -> Any:
            options = self._model.options
            return pa.table({"threads": [options.threads], "sequences": [options.sequences]})

    def options(cpus: int, **given: Any) -> tuple[int, int]:
        row = ray.data.from_items([{"id": 0}]).map_batches(
            Options,
            fn_constructor_kwargs={"bundle": demo_bundle, **given},
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=cpus,
            batch_format="pyarrow",
        )
        return tuple(row.take(1)[0].values())

    assert Predictor(demo_bundle)._model.options.threads == 0, "this is no actor"
    assert options(1) == (1, 8)
    assert options(2, sequences=3) == (2, 3)
    assert options(1, threads=2) == (2, 8)


def run(command: list[str], folder: Path) -> str:
    local = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, timeout=300, env=local)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_docs(demo_bundle: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "ray.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("/models/demo-int8", str(demo_bundle)).replace("/tmp/answers", str(tmp_path / "answers"))
    run(["-c", code], tmp_path)
    rows = parquet.read_table(tmp_path / "answers").to_pylist()
    assert sorted(row["id"] for row in rows) == list(range(100))
    assert {row["error"] for row in rows} == {""}


def test_the_script_answers_a_file(demo_bundle: Path, tmp_path: Path) -> None:
    chats = [{"id": f"row-{number}", "messages": [{"role": "user", "content": text}]} for number, text in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    script = [str(ROOT / "scripts" / "ray_batch.py"), str(demo_bundle), "prompts.jsonl", "answers", "--max-new-tokens", "8"]
    assert "4 rows, 0 of them with an error" in run(script, tmp_path)
    rows = parquet.read_table(tmp_path / "answers").to_pylist()
    assert {row["id"] for row in rows} == {chat["id"] for chat in chats}
    assert all(row["generated_text"] for row in rows)
