"""quasar-bench: what is measured against what, and what happens when it is asked for nonsense or stopped."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import UsageError
from quasar.runtime import ModelOptions, SamplingParams, load
from quasar.runtime.bench.bench import Bench, Settings
from quasar.runtime.bench.cli import main
from quasar.runtime.bench.fidelity import engine_figures, interval, log_probabilities
from quasar.runtime.bench.figures import denominators, first_difference
from quasar.runtime.bench.prompts import read_prompts
from quasar.runtime.bench.sweep import parse_axes
from quasar.runtime.chain.spec import parse_chain

QUESTIONS = [
    "Sam has 12 apples and gives 5 of them to Ann. How many apples does Sam have left?",
    "A box holds 6 eggs. How many eggs are in 4 boxes?",
    "Write the alphabet.",
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"question_id": i, "category": "arithmetic", "turns": [text]} for i, text in enumerate(QUESTIONS)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def silent(name: str, parts: int) -> Any:
    return nullcontext(SimpleNamespace(update=lambda n: None, set_postfix_str=lambda text, refresh: None))


def run(bundle: Path, prompts: Path, chains: list[str] | None, **settings: Any) -> dict[str, Any]:
    params = settings.pop("params", SamplingParams(max_new_tokens=16, ignore_eos=True, seed=0))
    settings = {"repeats": 1, "memory": False, **settings}
    return Bench(open_bundle(bundle), read_prompts(prompts, None), Settings(params, **settings), silent).run(chains)


def by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["chain"]: row for row in results["chains"]}


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("float", (None, None, None)),
        ("int8", ("float", None, None)),
        ("prompt-lookup > int8", ("float", "int8", "prompt-lookup > float")),
        ("prompt-lookup > float", ("float", "float", None)),
        ("prompt-lookup > int8 > float", ("float", "float", "prompt-lookup > float")),
        ("prompt-lookup,int4 > int8", ("float", "int8", "prompt-lookup,int4 > float")),
    ],
)
def test_the_three_denominators(chain: str, expected: tuple[str | None, ...]) -> None:
    found = denominators(parse_chain(chain))
    assert tuple(below and str(below) for below in found.values()) == expected
    assert list(found) == ["float", "own_precision", "float_same_proposer"]


def test_denominators_are_measured_in_the_same_run_and_named(demo_bundle: Path, prompts: Path) -> None:
    results = run(demo_bundle, prompts, ["prompt-lookup > int8"], repeats=2)
    rows = by_name(results)
    assert {name for name, row in rows.items() if not row["asked"]} == {"float", "int8", "prompt-lookup > float"}
    row = rows["prompt-lookup > int8"]
    assert {name: below["chain"] for name, below in row["ratios"].items()} == {
        "float": "float", "own_precision": "int8", "float_same_proposer": "prompt-lookup > float",
    }  # fmt: skip
    for kind in ("decode", "overall"):
        ratio = row["ratios"]["own_precision"][kind]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
        assert row[kind]["low"] <= row[kind]["median"] <= row[kind]["high"]
    assert (row["target"], row["lossy"], row["repeats"]) == ("int8", True, 2)
    assert (rows["float"]["lossy"], rows["float"]["agreement"]["identical"]) == (False, len(QUESTIONS))
    assert rows["prompt-lookup > float"]["agreement"]["identical"] == len(QUESTIONS)
    assert rows["int8"]["tokens_per_round"] == 1.0
    level = row["levels"][-1]
    assert level["rounds"] == pytest.approx(2 * len(QUESTIONS) * 15 / row["tokens_per_round"])
    assert all(0 <= share <= 1 for share in level["acceptance_per_position"])
    assert min(level["step_ms"]) == 1


def test_without_float_its_ratios_are_missing_and_said_to_be(tmp_path: Path, demo_bundle: Path, prompts: Path) -> None:
    import shutil

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["engines"]["float"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    results = run(bundle, prompts, ["prompt-lookup > int8"])
    row = by_name(results)["prompt-lookup > int8"]
    assert row["ratios"]["float"] is None
    assert row["ratios"]["own_precision"]["chain"] == "int8"
    assert row["agreement"] is None
    assert "float is not in the bundle" in results["notes"][0]


def test_a_lossy_last_engine_is_marked_by_its_own_figures(demo_bundle: Path, prompts: Path) -> None:
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    results = run(demo_bundle, prompts, ["int4", "int8 > float"])
    gate = manifest["engines"]["int4"]["gate"]
    (note,) = (note for note in results["notes"] if "last engine" in note)
    assert note.startswith("int4 as the last engine says what int4 says, not what float says")
    assert f"KL {gate['mean_kl']:.3g} nats" in note
    assert results["bundle"]["rotated"] is manifest["calibration"]["rotated"]
    assert sum(results["bundle"]["int8_activations"].values()) == len(manifest["calibration"]["linears"])


def test_a_bundle_that_says_nothing_of_its_engines_gets_no_such_note(tmp_path: Path, demo_bundle: Path, prompts: Path) -> None:
    import shutil

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["engines"]["int4"]["gate"] = {"mean_kl": "far"}
    manifest["calibration"] = {"linears": "all"}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    results = run(bundle, prompts, ["int4"])
    assert not any("last engine" in note for note in results["notes"])
    assert "int8_activations" not in results["bundle"]


def test_several_turns_are_one_conversation(demo_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "turns.jsonl"
    file.write_text(json.dumps({"turns": QUESTIONS[:2]}), encoding="utf-8")
    row = by_name(run(demo_bundle, file, ["int8"]))["int8"]
    assert row["agreement"]["prompts"] == 2
    with load(demo_bundle, "int8") as model:
        params = SamplingParams(max_new_tokens=16, ignore_eos=True)
        first = model.generate([{"role": "user", "content": QUESTIONS[0]}], params)
        messages = [
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": QUESTIONS[1]},
        ]
        expected = len(model.tokenize(messages))
        assert len(read_prompts(file, None).tokens(model, QUESTIONS[:2], [first.text])) == expected


def test_a_repeat_does_not_learn_from_the_one_before(demo_bundle: Path, prompts: Path) -> None:
    """With the answers of an earlier repeat in the pool, suffix-pool would accept nearly everything."""
    once = by_name(run(demo_bundle, prompts, ["suffix-pool > float"], options=ModelOptions(draft_length=8)))[
        "suffix-pool > float"
    ]
    thrice = by_name(run(demo_bundle, prompts, ["suffix-pool > float"], options=ModelOptions(draft_length=8), repeats=3))[
        "suffix-pool > float"
    ]
    assert thrice["tokens_per_round"] == pytest.approx(once["tokens_per_round"])


def test_the_sweep_covers_every_point(demo_bundle: Path, prompts: Path) -> None:
    axes = parse_axes(["k=1,4", "temperature=0,0.8"])
    sweep = run(demo_bundle, prompts, ["int8", "prompt-lookup > int8"], axes=axes)["sweep"]
    assert sweep["axes"] == {"k": [1, 4], "temperature": [0.0, 0.8]}
    assert [(p["k"], p["temperature"]) for p in sweep["points"]] == [(1, 0.0), (4, 0.0), (1, 0.8), (4, 0.8)]
    for point in sweep["points"]:
        assert (point["chain"], point["denominator"]) == ("prompt-lookup > int8", "int8")
        assert point["ratio"] > 0
        assert point["tokens_per_round"] >= 1


def test_a_draft_length_for_each_verifier(demo_bundle: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--chains", "prompt-lookup > int8 > float", "--draft-length", "2,5", "--limit", "1", "--repeat", "1", "--json"]
    assert main([str(demo_bundle), "--prompts", str(prompts), "--no-memory", "--max-new-tokens", "12", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    levels = {row["chain"]: row["levels"] for row in found["chains"]}["prompt-lookup > int8 > float"]
    assert [len(level["acceptance_per_position"]) <= k for level, k in zip(levels, (2, 5), strict=True)] == [True, True]
    assert levels[1]["proposed"] > 0


def test_ctrl_c_keeps_whole_prompts(demo_bundle: Path, prompts: Path) -> None:
    answers = 0

    def update(_: int) -> None:
        nonlocal answers
        answers += 1
        if answers == 2 + 2 * 2 + 1:  # two warm-ups, two prompts of two chains, and one chain of the third
            raise KeyboardInterrupt

    bar = SimpleNamespace(update=update, set_postfix_str=lambda text, refresh: None)
    settings = Settings(SamplingParams(max_new_tokens=8, ignore_eos=True), repeats=2)
    bench = Bench(open_bundle(demo_bundle), read_prompts(prompts, None), settings, lambda name, parts: nullcontext(bar))
    results = bench.run(["int8"])
    assert results["interrupted"]
    assert [row["agreement"]["prompts"] for row in results["chains"]] == [2, 2]
    assert all(row["repeats"] == 1 and row["peak_memory_mb"] is None for row in results["chains"])


def test_fidelity_is_zero_for_float_itself_and_grows_with_less_precision(demo_bundle: Path, prompts: Path) -> None:
    found = run(demo_bundle, prompts, ["int8"], fidelity=True)["fidelity"]
    rows = {row["engine"]: row for row in found["engines"]}
    assert set(rows) == {"int8", "int4"}
    assert 0 < rows["int8"]["mean_kl"]["value"] < rows["int4"]["mean_kl"]["value"]
    for row in rows.values():
        for name in ("mean_kl", "top1_agreement", "perplexity", "perplexity_ratio", "flip_rate"):
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
    assert found["prompts"] == len(QUESTIONS)


def test_fidelity_figures_by_hand() -> None:
    sums = {name: np.array([2.0, 4.0]) for name in ("loss", "float_loss", "text_tokens", "kl", "answer_tokens")}
    sums["agreed"] = np.array([2.0, 3.0])
    row = engine_figures("x", sums, [[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 6]])
    assert row["perplexity"]["value"] == pytest.approx(np.e)
    assert row["perplexity_ratio"]["value"] == pytest.approx(1.0)
    assert row["top1_agreement"]["value"] == pytest.approx(5 / 6)
    assert row["flip_rate"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert row["first_difference"]["value"] == 1.0


def test_intervals_cover_the_mean() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        values = random.normal(size=40)
        found = interval(lambda chosen, values=values: float(values[chosen].mean()), len(values))
        covered += found["low"] <= 0 <= found["high"]
    assert 85 <= covered <= 100


def test_log_probabilities_do_not_depend_on_chunks(demo_bundle: Path) -> None:
    with load(demo_bundle, "float") as model:
        engine = model.engines["float"]
        ids = [i % 50 + 10 for i in range(engine.spec.max_rows + 9)]
        whole = log_probabilities(engine, ids)
        assert whole.shape == (len(ids), engine.spec.vocab_size)
        np.testing.assert_allclose(np.exp(whole).sum(-1), 1, rtol=1e-4)
        np.testing.assert_allclose(whole[:40], log_probabilities(engine, ids[:40]), atol=1e-3)


@pytest.mark.parametrize(
    ("a", "b", "expected"), [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [1], 1), ([], [5], 0), ([4], [5], 0)]
)
def test_first_difference(a: list[int], b: list[int], expected: int | None) -> None:
    assert first_difference(a, b) == expected


@pytest.mark.parametrize("text", ["k", "k=", "k=1,1", "k=-1", "k=a", "width=3", "temperature=x", "temperature=-1"])
def test_axes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        parse_axes([text])


@pytest.mark.parametrize("broken", ["{", '{"turns": []}', '{"turns": "text"}', '{"turns": [""]}', '{"text": "x"}', "[1]", "3"])
def test_a_broken_row_is_named_by_its_line(
    demo_bundle: Path, prompts: Path, broken: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts.write_text(prompts.read_text() + "\n\n" + broken)
    assert main([str(demo_bundle), "--prompts", str(prompts), "--report", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert "line 5" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chains", "int8; int9"], "no engine 'int9'"),
        (["--chains", " ; "], "names no chain"),
        (["--chains", "int8", "--sweep", "k=1"], "no chain has a draft"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--chains", "prompt-lookup > int8", "--draft-length", "1,2"], "draft_length has 2"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--concurrency", "1,99"], "exported for 8 sequences; ask for at most 8, or export with --max-sequences 99"),
        (["--concurrency", "2,2"], "--concurrency 2,2: give different numbers"),
        (["--concurrency", "0"], "--concurrency 0: give different numbers"),
        (["--concurrency", "many"], "--concurrency many: give different numbers"),
    ],
)
def test_wrong_usage_is_one_line(
    demo_bundle: Path, prompts: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(demo_bundle), "--prompts", str(prompts), "--no-memory", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_prompt_that_does_not_fit_is_said_before_measuring(
    demo_bundle: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text(prompts.read_text() + "\n" + json.dumps({"turns": ["many words " * 5000]}))
    assert main([str(demo_bundle), "--prompts", str(prompts), "--no-memory"]) == 2
    assert "max-length" in capsys.readouterr().err


def test_the_command_writes_a_report_and_prints_json(
    demo_bundle: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    options = ["--chains", "int8;prompt-lookup>int8", "--limit", "1", "--repeat", "1", "--max-new-tokens", "8", "--json"]
    assert main([str(demo_bundle), "--prompts", str(prompts), "--report", str(report), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((report / "report.json").read_text())
    assert printed["settings"]["rows"] == 1
    assert printed["settings"]["sampling"]["temperature"] == 0.0
    assert "quasar-bench" in printed["command"]
    assert all(row["peak_memory_mb"] > 20 for row in printed["chains"])
    assert "<svg" in (report / "report.html").read_text()
