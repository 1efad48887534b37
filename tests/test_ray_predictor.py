"""Tier 2: rows of batches, answered; and the same as a Ray dataset, on a local cluster of two CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quasar.engines.errors import UsageError
from quasar.runtime import Model, SamplingParams, load

ray = pytest.importorskip("ray", reason="the extra ray is not installed: pip install -c constraints.txt '.[ray]'")

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
    os.environ["RAY_TRAIN_V2_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def column(values: list[Any]) -> np.ndarray[Any, Any]:
    """As Ray gives a column whose values are no numbers."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


# ------------------------------------------------------------------------------------------------ batches


def test_rows_keep_their_order_and_have_the_library_s_answers(demo_bundle: Path, library: Model) -> None:
    predictor = Predictor(demo_bundle, GREEDY, chain="int8")
    batch = predictor({"prompt": column(PROMPTS), "id": np.arange(4)})
    alone = [library.generate(prompt, GREEDY) for prompt in PROMPTS]
    assert batch["id"].tolist() == [0, 1, 2, 3]
    assert batch["generated_text"].tolist() == [one.text for one in alone]
    assert [ids.tolist() for ids in batch["generated_tokens"]] == [one.ids for one in alone]
    assert batch["num_input_tokens"].tolist() == [one.statistics.prompt_tokens for one in alone]
    assert batch["num_generated_tokens"].tolist() == [len(one.ids) for one in alone]
    assert batch["num_rounds"].tolist() == [one.statistics.rounds for one in alone]
    assert batch["error"].tolist() == [""] * 4


def test_the_longest_prompts_begin(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    answer = Model.answer

    def noted(self: Model, prompt: Any, *args: Any) -> Any:
        begun.append(len(prompt.ids))
        return answer(self, prompt, *args)

    monkeypatch.setattr(Model, "answer", noted)
    Predictor(demo_bundle, GREEDY, chain="int8", sequences=2)({"prompt": column(PROMPTS)})
    assert begun == sorted(begun, reverse=True)
    assert begun[0] > begun[-1]


@pytest.mark.parametrize("kind", ["messages", "ids", "ids of one length"])
def test_prompts_may_be_chats_and_token_ids(demo_bundle: Path, library: Model, kind: str) -> None:
    prompts: list[Any]
    values: np.ndarray[Any, Any]
    if kind == "messages":
        prompts = [[{"role": "user", "content": text}] for text in PROMPTS]
        # what Arrow makes of them: arrays of structures, with all names in each
        values = column([np.array([{**chat[0], "name": None}], dtype=object) for chat in prompts])
    else:
        prompts = [library.tokenize(text) for text in PROMPTS]
        shortest = min(map(len, prompts))
        if kind == "ids":
            values = column([np.array(ids) for ids in prompts])
        else:
            prompts = [ids[:shortest] for ids in prompts]
            values = np.array(prompts)
    batch = Predictor(demo_bundle, GREEDY, prompt="asked", chain="int8")({"asked": values})
    assert batch["generated_text"].tolist() == [library.generate(prompt, GREEDY).text for prompt in prompts]


def test_an_error_is_a_row(demo_bundle: Path, library: Model) -> None:
    prompts: list[Any] = ["Tom", None, "", 3.5, "word " * 9000, np.array([1, 10**6]), "Tom", "Tom", "Tom"]
    changes: list[Any] = [None] * 6 + [{"temperature": -1.0}, {"speed": 2}, {"logit_bias": {10**6: 1.0}}]
    batch = Predictor(demo_bundle, GREEDY, sampling="sampling", chain="int8")(
        {"prompt": column(prompts), "sampling": column(changes)}
    )
    assert batch["generated_text"][0] == library.generate("Tom", GREEDY).text
    assert batch["finish_reason"][1:].tolist() == ["error"] * 8
    parts = (
        "no prompt",
        "empty",
        "float",
        "a context of",
        "vocabulary",
        "temperature is -1.0",
        "there is no speed",
        "logit_bias",
    )
    for part, error in zip(parts, batch["error"][1:], strict=True):
        assert part in error
        assert "\n" not in error
    assert batch["num_generated_tokens"][1:].tolist() == [0] * 8
    assert {name: values.dtype for name, values in batch.items() if name.startswith("num_")} == {
        name: np.dtype(np.int64) for name in ("num_input_tokens", "num_generated_tokens", "num_rounds")
    }


def test_rows_change_parameters(demo_bundle: Path, library: Model) -> None:
    changes = [{"max_new_tokens": 3, "stop": None}, {"max_new_tokens": None, "stop": "a"}]
    batch = Predictor(demo_bundle, GREEDY, sampling="how", chain="int8")({"prompt": column(PROMPTS[:2]), "how": column(changes)})
    assert batch["num_generated_tokens"][0] == 3
    assert "a" not in batch["generated_text"][1]


def test_seeds_come_from_a_key_and_not_from_the_batch(demo_bundle: Path) -> None:
    predictor = Predictor(demo_bundle, SAMPLED, seed_from="id", chain="int8", batch_invariant=True)
    keys = ["first", "second", "third", "fourth"]
    together = predictor({"prompt": column(["Tom"] * 4), "id": column(keys)})["generated_text"].tolist()
    assert len(set(together)) > 1, "rows of other keys are other samples"
    backwards = predictor({"prompt": column(["Tom"] * 4), "id": column(keys[::-1])})["generated_text"].tolist()
    alone = [predictor({"prompt": column(["Tom"]), "id": column([key])})["generated_text"][0] for key in keys]
    assert together == backwards[::-1] == alone


def test_row_seeds_are_spread() -> None:
    seeds = {row_seed(seed, key) for seed in (None, 0, 1) for key in range(1000)}
    assert len(seeds) == 3000
    assert max(seeds) < 1 << 64
    assert row_seed(7, 12) == row_seed(7, "12"), "a key that was read as text is the same key"


def test_a_row_without_a_key_is_an_error(demo_bundle: Path) -> None:
    batch = Predictor(demo_bundle, SAMPLED, seed_from="id", chain="int8")({"prompt": column(["Tom"]), "id": column([None])})
    assert "no key" in batch["error"][0]


def test_wrong_use_ends_the_job(demo_bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(demo_bundle, chain="int8", seed_from="key")
    with pytest.raises(UsageError, match="no column 'prompt'; there are text, key"):
        predictor({"text": column(["Tom"]), "key": np.arange(1)})
    with pytest.raises(UsageError, match="batch_format"):
        predictor(["Tom"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="speed: no such option"):
        Predictor(demo_bundle, speed=2)
    with pytest.raises(UsageError, match="no such"):
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
        concurrency=2,
        num_cpus=1,
        batch_size=4,
    )
    done.write_parquet(str(tmp_path / "answers"))
    answers = {row["id"]: row for row in ray.data.read_parquet(str(tmp_path / "answers")).take_all()}
    expected = [library.generate(prompt, GREEDY) for prompt in PROMPTS]
    assert sorted(answers) == list(range(24))
    for number, row in answers.items():
        if rows[number]["prompt"] is None:
            assert (row["finish_reason"], row["generated_tokens"].tolist()) == ("error", [])
            assert "no prompt" in row["error"]
        else:
            assert row["generated_tokens"].tolist() == expected[number % 4].ids
            assert (row["generated_text"], row["error"]) == (expected[number % 4].text, "")


def test_an_actor_has_as_many_threads_as_cpus(cluster: None, demo_bundle: Path) -> None:
    class Options(Predictor):
        def __call__(self, batch: Any) -> Any:
            options = self._model.options
            return {"threads": np.array([options.threads]), "sequences": np.array([options.sequences])}

    def options(cpus: int, **given: Any) -> tuple[int, int]:
        row = ray.data.range(1).map_batches(
            Options, fn_constructor_kwargs={"bundle": demo_bundle, **given}, concurrency=1, num_cpus=cpus
        )
        return tuple(row.take(1)[0].values())

    assert options(1) == (1, 8)
    assert options(2, sequences=3) == (2, 3)
    assert options(1, threads=2) == (2, 8)


def test_the_example_of_the_docs(demo_bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    chats = [{"id": f"row-{number}", "messages": [{"role": "user", "content": text}]} for number, text in enumerate(PROMPTS)]
    prompts.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    texts = []
    for name in ("first", "second"):
        script = [sys.executable, str(ROOT / "scripts" / "ray_batch.py"), str(demo_bundle), str(prompts), str(tmp_path / name)]
        done = subprocess.run([*script, "--max-new-tokens", "8"], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "4 rows, 0 of them with an error" in done.stdout
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(tmp_path / name).to_pylist()
        texts.append({row["id"]: row["generated_text"] for row in table})
    assert texts[0] == texts[1], "the seeds are made of the ids"
