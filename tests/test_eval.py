"""Tier 4: the lm-evaluation-harness, offline on tasks of our own, gives what its own `hf` model gives on the checkpoint."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from models import DEMO
from served import Served
from test_commands import complaint

from quasar.engines.errors import UsageError
from quasar.exporter.cli import main as export_main
from quasar.runtime import load
from quasar.runtime.eval.cli import main

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("lm_eval", reason="the extra eval is not installed: pip install -c constraints.txt '.[eval]'")
import datasets
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalCompletionsAPI

from quasar.runtime.eval.model import QuasarLM
from quasar.runtime.eval.tasks import find_tasks

Capture = pytest.CaptureFixture[str]

SUMS = [(24, 9), (12, 4), (31, 30)]
STORY = "Tom buys 3 boxes of 8 pens. He gives 5 pens to Ann, and 2 to Sam. "
COMMON = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\ntest_split: test\nmetadata:\n  version: 1\n"
TASKS = {
    "choice": """
output_type: multiple_choice
fewshot_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "answer": """
output_type: generate_until
doc_to_text: "{{text}} He sells"
doc_to_target: "{{right}}"
generation_kwargs: {until: ["####", "So "], max_gen_toks: 24, do_sample: false, num_beams: 1}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - name: number
    filter: [{function: regex, regex_pattern: "(\\\\d+)"}, {function: take_first}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks, each with its documents."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": f"A baker has {a} rolls and sells {b} of them. How many rolls are left?",
            "choices": [str(a + b), str(a - b), "There are no rolls left at all.", "7"],
            "answer": 1,
            "right": str(a - b),
            "text": STORY * (1 + number) + f"A baker has {a} rolls.",
        }
        for number, (a, b) in enumerate(SUMS)
    ]
    file = folder / "documents.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: own_{name}\n{COMMON.format(file=file)}{text}")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def hf() -> HFLM:
    return HFLM(pretrained=str(DEMO), device="cpu", dtype="float32", batch_size=8)


def evaluate(model: Any, folder: Path, *names: str, **options: Any) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(figures of each task, the model's answers to each)"""
    manager, found = find_tasks(",".join(str(folder / f"{name}.yaml") for name in names))
    results = simple_evaluate(model=model, tasks=found, task_manager=manager, bootstrap_iters=0, **options)
    return results["results"], {name: [row["resps"] for row in rows] for name, rows in results["samples"].items()}


def figures(results: dict[str, Any], task: str) -> dict[str, float]:
    return {name: value for name, value in results[task].items() if isinstance(value, float) and not math.isnan(value)}


def same_likelihoods(found: list[Any], expected: list[Any]) -> None:
    """Log-likelihoods, and whether all of a text would be answered greedily."""
    assert len(found) == len(expected) > 0
    for of_document, right in zip(found, expected, strict=True):
        for one, other in zip(of_document, right, strict=True):
            one, other = (value[0] if isinstance(value[0], tuple) else (value[0], None) for value in (one, other))
            assert one[0] == pytest.approx(other[0], abs=2e-3)
            assert one[1] == other[1]


# ------------------------------------------------------------------------------------------------ the same as hf


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 1, "apply_chat_template": True, "limit": 2}], ids=["plain", "chat"])
def test_figures_are_those_of_the_hf_model(demo_bundle: Path, tasks: Path, hf: HFLM, options: dict[str, Any]) -> None:
    right, likely = evaluate(hf, tasks, *TASKS, **options)
    with load(demo_bundle, chain="prompt-lookup > int8 > float", sequences=3) as model:
        lm = QuasarLM(model)
        found, scored = evaluate(lm, tasks, *TASKS, **options)
    assert scored["own_answer"] == likely["own_answer"]
    assert len({text for ((text,),) in scored["own_answer"]}) > 1
    for name in ("own_choice", "own_rolling"):
        same_likelihoods(scored[name], likely[name])
        assert figures(found, name) == pytest.approx(figures(right, name), rel=1e-4)
    assert figures(found, "own_answer") == figures(right, "own_answer")
    assert lm.get_model_info()["cut_texts"] == 0


def test_the_harness_gets_the_same_from_the_server(demo_bundle: Path, tasks: Path, hf: HFLM) -> None:
    """Its `local-completions`, which scores by `echo` with `logprobs`, four requests at a time."""
    right, likely = evaluate(hf, tasks, *TASKS)
    with Served(demo_bundle, "--chain", "prompt-lookup > float") as server:
        lm = LocalCompletionsAPI(
            model="demo",
            base_url=f"{server.url}/v1/completions",
            tokenizer=str(demo_bundle / "tokenizer"),
            num_concurrent=4,
            max_retries=1,
        )
        found, scored = evaluate(lm, tasks, *TASKS)
    assert scored["own_answer"] == likely["own_answer"]
    for name in ("own_choice", "own_rolling"):
        same_likelihoods(scored[name], likely[name])
        assert figures(found, name) == pytest.approx(figures(right, name), rel=1e-4)


def test_texts_beyond_the_context_are_cut_as_by_the_hf_model(
    demo_bundle: Path, tasks: Path, hf: HFLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored continuations and prompts lose their beginning; whole texts are read in windows."""
    monkeypatch.setattr(hf, "_max_length", 40)
    monkeypatch.setattr(QuasarLM, "max_length", 40)
    right, likely = evaluate(hf, tasks, *TASKS, num_fewshot=2, limit=2)
    with load(demo_bundle, chain="float", sequences=2) as model:
        lm = QuasarLM(model)
        found, scored = evaluate(lm, tasks, *TASKS, num_fewshot=2, limit=2)
    for name in ("own_choice", "own_rolling"):
        same_likelihoods(scored[name], likely[name])
        assert figures(found, name) == pytest.approx(figures(right, name), rel=1e-4)
    assert scored["own_answer"] == likely["own_answer"]
    assert lm.get_model_info()["cut_texts"] > 2


def test_a_model_whose_texts_begin_with_a_token_of_their_own(shared: Path, tasks: Path, tmp_path: Path) -> None:
    """A real Llama with a SentencePiece tokenizer, whose sequences are run one by one."""
    model = shared / "models" / "stories260k"
    assert export_main(["--model", str(model), "--engines", "float", "--output", str(tmp_path / "stories")]) == 0
    right, likely = evaluate(HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4), tasks, *TASKS, limit=2)
    with load(tmp_path / "stories", sequences=3) as loaded:
        found, scored = evaluate(QuasarLM(loaded), tasks, *TASKS, limit=2)
    for name in ("own_choice", "own_rolling"):
        same_likelihoods(scored[name], likely[name])
        assert figures(found, name) == pytest.approx(figures(right, name), rel=1e-4)
    assert scored["own_answer"] == likely["own_answer"]


def test_an_empty_context_is_the_end_token(demo_bundle: Path, hf: HFLM) -> None:
    requests = [Instance("loglikelihood", {}, (context, "Tom buys 3 boxes"), 0) for context in ("", "Then ", "Then")]
    with load(demo_bundle, chain="float") as model:
        found = QuasarLM(model).loglikelihood(requests, disable_tqdm=True)
    same_likelihoods([[one] for one in zip(found)], [[one] for one in zip(hf.loglikelihood(requests, disable_tqdm=True))])


def test_the_beginning_of_an_answer_is_continued(demo_bundle: Path, hf: HFLM) -> None:
    talk = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "There are "}]
    with load(demo_bundle, chain="int8") as model:
        lm = QuasarLM(model)
        for messages, prompted in ((talk[:1], True), (talk, False)):
            assert lm.apply_chat_template(messages, prompted) == hf.apply_chat_template(messages, prompted)


# ------------------------------------------------------------------------------------------------ what tasks ask of answers


def ask(lm: QuasarLM, count: int, **options: Any) -> list[str]:
    return lm.generate_until([Instance("generate_until", {}, (STORY, options), 0)] * count, disable_tqdm=True)


def test_sampled_answers_differ_and_come_again(demo_bundle: Path) -> None:
    with load(demo_bundle, chain="prompt-lookup > int8", sequences=4) as model:
        lm = QuasarLM(model)
        sampled = ask(lm, 6, do_sample=True, temperature=2.0, max_gen_toks=12)
        assert len(set(sampled)) > 3
        assert ask(lm, 6, do_sample=True, temperature=2.0, max_gen_toks=12) == sampled
        greedy = ask(lm, 2, temperature=2.0, do_sample=False, max_new_tokens=12)
        assert greedy[0] == greedy[1] == model.generate(STORY, model.sampling_params(temperature=0, max_new_tokens=12)).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams is 4, which is not supported; there are until, max_gen_toks"),
        ({"penalty_alpha": 0.6}, "penalty_alpha is 0.6"),
        ({"max_gen_toks": 5000}, "max_gen_toks is 5000 and the bundle has a context of 4096"),
        ({"do_sample": True, "top_p": 3.0}, "top_p is 3.0"),
    ],
)
def test_what_cannot_be_asked_of_answers_is_refused(demo_bundle: Path, options: dict[str, Any], message: str) -> None:
    with load(demo_bundle, chain="int8") as model, pytest.raises(UsageError, match=message):
        ask(QuasarLM(model), 1, **options)


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_prints_the_table_and_writes_files(demo_bundle: Path, tasks: Path, tmp_path: Path, capsys: Capture) -> None:
    """int8 is another model than float; it runs, and says which it is."""
    names = ",".join(f"{tasks}/{name}.yaml" for name in TASKS)
    command = [str(demo_bundle), "--tasks", names, "--chain", "prompt-lookup > int8", "--limit", "2"]
    assert main([*command, "--output_path", str(tmp_path / "new" / "out"), "--log_samples"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("demo, prompt-lookup > int8, w8a8\n|")
    assert all(f"|own_{name}" in out for name in TASKS)
    files = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert files == {"results.json", *(f"samples_own_{name}.jsonl" for name in TASKS)}
    written = json.loads((tmp_path / "new" / "out" / "results.json").read_text())
    assert written["config"]["chain"] == "prompt-lookup > int8"
    assert written["config"]["batch_size"] == 8  # as many as the bundle was exported for
    assert len((tmp_path / "new" / "out" / "samples_own_choice.jsonl").read_text().splitlines()) == 2

    assert (
        main([*command, "--batch-size", "2", "--output", str(tmp_path / "x.json"), "--json", "--gen_kwargs", "max_gen_toks=2"])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["results"]["own_choice"] == written["results"]["own_choice"]
    assert json.loads((tmp_path / "x.json").read_text()) == printed
    assert printed["config"]["batch_size"] == 2


def test_a_task_is_found_by_its_name_in_a_folder(tasks: Path) -> None:
    manager, found = find_tasks("own_choice, own_rolling", include_path=tasks)
    assert found == ["own_choice", "own_rolling"]
    assert set(manager.load(found)["tasks"]) == set(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "none.yaml"], "--tasks none.yaml: no such file"),
        (["--tasks", ","], "--tasks names no task"),
        (["--tasks", "own_choice", "--include_path", "nowhere"], "--include_path nowhere: no such directory"),
        (["--tasks", "{tasks}/broken.yaml"], "broken.yaml: cannot be loaded: "),
        (["--tasks", "{tasks}/choice.yaml", "--limit", "0"], "--limit is 0"),
        (["--tasks", "{tasks}/choice.yaml", "--num_fewshot", "-1"], "--num_fewshot is -1"),
        (["--tasks", "{tasks}/choice.yaml", "--log_samples"], "--log_samples: say where; add --output_path"),
        (["--tasks", "{tasks}/choice.yaml", "-o", "{tasks}/choice.yaml"], "a file is there"),
        (["--tasks", "{tasks}/choice.yaml", "--batch_size", "all"], "--batch_size all: give a number"),
        (["--tasks", "{tasks}/choice.yaml", "--batch_size", "9"], "it was exported for 8"),
        (["--tasks", "{tasks}/choice.yaml", "--template-option", "a=1"], "add --apply_chat_template"),
        (["--tasks", "{tasks}/answer.yaml", "--gen_kwargs", "beams=2"], "generation_kwargs: beams is 2"),
    ],
)
def test_wrong_usage_is_one_line(demo_bundle: Path, tasks: Path, capsys: Capture, options: list[str], message: str) -> None:
    (tasks / "broken.yaml").write_text("task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: nowhere.jsonl}}\n")
    code = main([str(demo_bundle), "--chain", "int8", *(option.format(tasks=tasks) for option in options)])
    assert message in complaint(capsys, code)


def test_without_the_harness_the_command_says_what_brings_it(
    demo_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code = main([str(demo_bundle), "--tasks", "own_choice"])
    assert complaint(capsys, code) == "quasar-eval: lm_eval is not installed; pip install 'quasar-toolchain[eval]'"
