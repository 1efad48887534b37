"""quasar-bench --concurrency: the arithmetic with made numbers, and that a real bundle runs through the command."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest

from quasar.runtime import SamplingParams, load
from quasar.runtime.bench.cli import main
from quasar.runtime.bench.clients import Batch, Served, serve
from quasar.runtime.bench.load import LoadMeasurement, Point, load_figures, parse_concurrency
from quasar.runtime.bench.measure import Variant
from quasar.runtime.bench.prompts import Prompts
from quasar.runtime.chain.spec import parse_chain
from quasar.runtime.statistics import LevelStatistics, Statistics

PARAMS = SamplingParams(max_new_tokens=12, ignore_eos=True)
QUESTIONS = Prompts(
    "questions",
    (
        ("A box holds 6 eggs. How many eggs are in 4 boxes?",),
        ("Sam has 12 apples and gives 5 of them to Ann. How many are left?", "And if she gives 2 back?"),
        ("Write the alphabet.",),
    ),
)


def point(chain: str, concurrency: int) -> Point:
    return Point(Variant(parse_chain(chain), None, 0.0), concurrency)


def served(first: float, *gaps: float, tokens: int, levels: list[LevelStatistics]) -> Served:
    return Served(list(range(tokens)), Statistics(new_tokens=tokens, levels=levels), first, list(gaps))


def two_levels(rounds: int) -> list[LevelStatistics]:
    inner = LevelStatistics("int8", rounds=2, proposed=3, accepted=1, skipped=3)
    return [inner, LevelStatistics("float", rounds=rounds, proposed=2 * rounds, accepted=rounds)]


def made() -> LoadMeasurement:
    """Two repeats of a chain with one and two clients, and of its last engine with two."""
    chain = "prompt-lookup > int8 > float"

    def answers() -> list[Served]:
        return [
            served(0.1, 0.02, 0.04, tokens=5, levels=two_levels(2)),
            served(0.3, 0.02, 0.02, 0.06, 0.1, tokens=9, levels=two_levels(4)),
        ]

    plain = [served(0.1, 0.05, tokens=2, levels=[LevelStatistics("float", rounds=1)])] * 2

    def repeat(seconds: float) -> dict[Point, Batch]:
        return {
            point(chain, 1): Batch(answers(), 1.4, 1.3),
            point(chain, 2): Batch(answers(), seconds, seconds - 0.05),
            point("float", 2): Batch(plain, 0.4, 0.4),
        }

    return LoadMeasurement([repeat(0.7), repeat(0.5)])


def test_figures_under_load_by_hand() -> None:
    found = load_figures(made(), (1, 2), [parse_chain("prompt-lookup > int8 > float")])
    assert found["concurrency"] == [1, 2]
    alone, both, plain = found["points"]
    assert (alone["concurrency"], alone["asked"], plain["chain"], plain["asked"]) == (1, True, "float", False)
    assert alone["tokens_per_second"]["median"] == pytest.approx(14 / 1.4)
    assert alone["ratios"] == {"one_at_a_time": None, "target_alone": None}  # float was not measured with one client
    assert both["repeats"] == 2
    assert both["tokens_per_second"] == pytest.approx({"median": 24.0, "low": 20.0, "high": 28.0})
    ratio = both["ratios"]["one_at_a_time"]
    assert (ratio["chain"], ratio["concurrency"]) == ("prompt-lookup > int8 > float", 1)
    assert [ratio[end] for end in ("low", "median", "high")] == pytest.approx([2.0, 2.4, 2.8])
    ratio = both["ratios"]["target_alone"]
    assert (ratio["chain"], ratio["concurrency"], ratio["low"]) == ("float", 2, pytest.approx(2.0))
    assert plain["ratios"]["target_alone"] is None
    assert both["first_token_ms"] == pytest.approx({"median": 200.0, "p95": 300.0})
    assert both["between_tokens_ms"]["median"] == pytest.approx(30.0)  # of 2, 4, 2, 2, 6 and 10 hundredths, twice
    assert both["in_flight"] == pytest.approx(2 * (0.16 + 0.5) / 1.2)
    assert both["outside_share"] == pytest.approx(0.1 / 1.2)
    assert both["tokens_per_round"] == pytest.approx(24 / 12)


def test_drafts_and_skipped_levels_under_load_by_hand() -> None:
    both = load_figures(made(), (1, 2), [])["points"][1]
    inner, last = both["levels"]
    assert (inner["engine"], inner["rounds"], inner["draft_length"], inner["skipped"]) == ("int8", 8, 1.5, 12)
    assert inner["skipped_share"] == pytest.approx(12 / 12)
    assert (last["engine"], last["draft_length"], last["acceptance_rate"], last["skipped_share"]) == ("float", 2.0, 0.5, None)


def test_what_was_interrupted_has_the_points_that_are_whole() -> None:
    measured = LoadMeasurement([{point("int8", 1): made().repeats[0][point("float", 2)]}], interrupted=True)
    (row,) = load_figures(measured, (1, 2), [])["points"]
    assert (row["chain"], row["concurrency"]) == ("int8", 1)
    assert load_figures(LoadMeasurement(interrupted=True), (1, 2), [])["points"] == []


def test_one_at_a_time_is_always_measured() -> None:
    assert parse_concurrency("8,2") == (1, 2, 8)
    assert parse_concurrency("1") == (1,)


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_clients_keep_so_many_answers_in_flight_and_get_what_they_get_alone(
    demo_bundle: Path, concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(demo_bundle, "prompt-lookup > float", sequences=8, prefix_caching=False) as model:
        seen = []
        step = model.step

        def watched() -> bool:
            seen.append(model.scheduler.open + model.scheduler.waiting)
            return step()

        monkeypatch.setattr(model, "step", watched)
        ticks = count()
        batch = serve(model, QUESTIONS, PARAMS, concurrency, clock=lambda: float(next(ticks)))
        assert max(seen) == min(concurrency, 3)
        assert batch.seconds == len(seen)  # the clock is read once a step
        assert len(batch.answers) == QUESTIONS.count
        for answer in batch.answers:
            assert len(answer.ids) == 12
            assert answer.first >= 1
            assert answer.statistics.cached_tokens == 0
            assert len(answer.gaps) == answer.statistics.rounds  # tokens that came at once are one gap
            assert sum(answer.gaps) >= len(answer.gaps)
        first = model.generate(QUESTIONS.tokens(model, QUESTIONS.turns[1]), PARAMS)
        second = model.generate(QUESTIONS.tokens(model, QUESTIONS.turns[1], [first.text]), PARAMS)
        got = [answer.ids for answer in batch.answers]
        assert first.ids in got
        assert second.ids in got
        assert got.index(first.ids) < got.index(second.ids)


def test_the_command_measures_load(demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"turns": turns}) for turns in QUESTIONS.turns), encoding="utf-8")
    report = tmp_path / "report"
    options = ["--concurrency", "1,2", "--repeat", "1", "--max-new-tokens", "8", "--no-memory", "--ignore-eos"]
    chains = ["--chains", "prompt-lookup > int8 > float"]
    assert main([str(demo_bundle), "--prompts", str(prompts), *chains, *options, "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "x target, same N" in printed
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert found["format_version"] == 2
    assert found["settings"]["concurrency"] == [1, 2]
    points = {(row["chain"], row["concurrency"]): row for row in found["load"]["points"]}
    chain = "prompt-lookup > int8 > float"
    assert set(points) == {(name, number) for name in ("float", chain) for number in (1, 2)}
    row = points[chain, 2]
    assert (row["ratios"]["one_at_a_time"]["concurrency"], row["ratios"]["target_alone"]["chain"]) == (1, "float")
    assert row["tokens_per_second"]["median"] > 0
    assert 1 < row["in_flight"] <= 2
    assert [level["engine"] for level in row["levels"]] == ["int8", "float"]
    assert "<h2>Load</h2>" in (report / "report.html").read_text(encoding="utf-8")


def test_fewer_questions_than_answers_in_flight_are_said(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"turns": ["Write the alphabet."]}), encoding="utf-8")
    options = ["--chains", "int8", "--concurrency", "4", "--repeat", "1", "--max-new-tokens", "4", "--no-memory", "--json"]
    assert main([str(demo_bundle), "--prompts", str(prompts), *options]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "4 answers at once were asked for, but there are only 1 questions to keep in flight" in notes
