from __future__ import annotations

import copy
import html
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import bench_results as made
import pytest
from matplotlib.figure import Figure

from quasar.engines.errors import UsageError
from quasar.runtime.bench.report import html as report
from quasar.runtime.bench.report import plots, summary, values
from quasar.runtime.bench.report.load import load_sentence
from quasar.runtime.bench.report.table import text_table
from quasar.runtime.bench.report.values import Spread, significant

ATTACK = '<script>alert(1)</script> & "q" \' $x_1$ \x1b[31m\n\ud800 --> ]]>'


@pytest.fixture(scope="module")
def realistic_page() -> str:
    return report.page_text(made.realistic())


@pytest.fixture(scope="module")
def many_page() -> str:
    return report.page_text(made.many_chains(20))


@pytest.fixture
def paint_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are painted, but not written as SVG, which is most of the time."""

    def draw(ident: str, title: str, height: float, paint: Callable[[Figure], object]) -> str:
        paint(Figure())
        return f"<svg>{ident} {title}"

    monkeypatch.setattr(plots, "draw", draw)


def hostile() -> dict[str, Any]:
    """The attack in the place of every text."""

    def attacked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: attacked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [attacked(inner) for inner in value]
        return ATTACK if isinstance(value, str) else value

    return {**attacked(made.realistic()), "notes": [ATTACK]}


def text_of(page: str) -> str:
    """What a reader sees, without the plots."""
    page = re.sub(r"<(style|svg)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


# the table for the terminal


def test_table_has_the_figures_of_each_chain_in_one_line() -> None:
    lines = text_table(made.realistic()).splitlines()
    line = next(line for line in lines if line.startswith("prompt-lookup > int8 "))
    expected = ["int8", "lossy", "55.2", "54.1..56.3", "4.28", "1.43", "2.54", "1.46", "31.6%", "2.1%", "910", "16/20"]
    assert line.split()[3:] == expected
    assert max(map(len, lines)) <= 140


def test_table_names_every_denominator() -> None:
    text = text_table(made.realistic())
    assert "x float: over float\n" in text
    assert "x own precision: over float for prompt-lookup > float\nx own precision: over int8 for the others\n" in text
    assert "x float, same proposer: over int4 > float for int4 > int8\n" in text
    assert "float *" in text
    assert "\n*: not asked for" in text


def test_table_shows_what_load_does() -> None:
    text = text_table(made.realistic())
    lines = text[text.index("at once:") :].splitlines()
    line = next(line for line in lines if line.startswith("int4 > int8 ") and line.split()[3] == "8")
    assert " ".join(line.split()[4:]) == "159 156..163 4.29 1.07 490 (670) 32.8 (47.9) 1.41 0.2, 0.2 41% 3.9%"
    assert any(line.startswith("int8 *") for line in lines)
    assert "x target, same N: over its last engine alone" in text
    assert "at once" not in text_table({**made.realistic(), "load": None})


def test_table_of_many_chains_fits_and_loses_no_name() -> None:
    results = made.many_chains(20)
    results["chains"][1]["ratios"]["own_precision"]["chain"] = "other"
    lines = text_table(results).splitlines()
    assert max(map(len, lines)) <= 140
    joined = re.sub(r"\s+", " ", " ".join(line.split("  int8 ")[0] for line in lines))
    assert "prompt-lookup(k=5) >" in joined
    assert "pruned-layers:0.5 > int4 > int8" in text_table(results).replace("\n  ", " ")


def test_table_says_when_it_is_incomplete() -> None:
    text = text_table({**made.realistic(), "interrupted": True, "notes": ["float is not in the bundle"]})
    assert "note: float is not in the bundle" in text
    assert "interrupted" in text


def test_table_lets_no_control_character_through() -> None:
    text = text_table(hostile())
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("results", [{}, {"chains": None}, {"chains": []}, made.emptied(made.realistic())])
def test_table_of_nothing(results: dict[str, Any]) -> None:
    assert text_table(results)


# the page


def shown_numbers(results: dict[str, Any]) -> Iterator[str]:
    """How the page writes every number that matters."""
    for chain in results["chains"]:
        for spread in (chain["decode"], chain["overall"]):
            middle, ends = Spread.of(spread).texts()
            yield from (middle, ends)
        for ratio in filter(None, chain["ratios"].values()):
            for key in ("decode", "overall"):
                yield from Spread.of(ratio[key]).texts(2)
        yield f"{chain['tokens_per_round']:.2f}"
        if chain["acceptance_rate"] is not None:
            yield f"{chain['acceptance_rate']:.1%}"
        yield f"{chain['outside_share']:.1%}"
        yield f"{chain['peak_memory_mb']:.0f}"
        yield f"{chain['agreement']['identical']} of {chain['agreement']['prompts']}"
        yield f"{chain['agreement']['tokens']:.1%}"
        yield significant(chain["agreement"]["first_difference"])
        for level in chain["levels"]:
            yield from (str(level[key]) for key in ("rounds", "proposed", "accepted"))
    for point in results["load"]["points"]:
        for spread, places in ((point["tokens_per_second"], None), *((ratio, 2) for ratio in point["ratios"].values() if ratio)):
            yield from Spread.of(spread).texts(places)
        for key in ("first_token_ms", "between_tokens_ms"):
            yield f"{significant(point[key]['median'])} p95 {significant(point[key]['p95'])}"
        yield from (
            f"{significant(point['in_flight'], 2)} open",
            f"{point['tokens_per_round']:.2f}",
            f"{point['outside_share']:.1%}",
        )
        for level in point["levels"]:
            yield f"{level['draft_length']:.2f} {level['acceptance_rate']:.1%} {values.percent(level['skipped_share'])}"
    for point in results["sweep"]["points"]:
        yield from (significant(point["decode"]), f"{point['ratio']:.2f}", f"{point['tokens_per_round']:.2f}")
    for engine in results["fidelity"]["engines"]:
        yield from (significant(engine["perplexity"]["value"]), significant(engine["mean_kl"]["high"]))
        yield from (f"{engine['perplexity_ratio'][end]:.4f}" for end in ("value", "low", "high"))
        yield from (f"{engine['top1_agreement']['value']:.2%}", f"{engine['flip_rate']['low']:.1%}"[:-1])
        yield significant(engine["first_difference"]["value"])


def test_page_shows_every_number_that_matters(realistic_page: str) -> None:
    results, seen = made.realistic(), text_of(realistic_page)
    assert [number for number in shown_numbers(results) if number not in seen] == []
    settings = ("demo.jsonl", "9f2c" * 16, "temperature 0.0, top_k 0, top_p 1.0, seed -", "ignore eos yes", "draft length -")
    machine = ("AMD EPYC 9V74", "read GB/s 41.2, 39.8", "onnxruntime 1.31.1", "python 3.11.7", results["command"], "int8 w8a8")
    for text in (*settings, *machine):
        assert text in seen


def test_page_has_the_acceptance_and_the_steps_as_they_were_measured(realistic_page: str) -> None:
    acceptance = realistic_page.split('aria-label="Percent of rounds')[1].split("</svg>")[0]
    assert re.findall(r">\s*(\d+)</text>", acceptance)[:5] == ["1", "2", "3", "4", "5"]
    for share in ("52", "41", "33", "24", "19"):
        assert re.search(rf">\s*{share}</text>", acceptance)
    for middle, ends in (("25.4", "25.2 to 25.6"), ("88.5", "88.3 to 88.8")):
        assert f"{middle} {ends}" in text_of(realistic_page)


def test_page_says_in_words_what_is_best(realistic_page: str) -> None:
    seen = text_of(realistic_page)
    assert (
        "prompt-lookup > int8 is the fastest chain, with 55.2 tokens/s after the first token (54.1 to 56.3 over 3 repeats)."
        in seen
    )
    assert "1.43 times as fast as int8 , the same precision without a proposer (1.40 to 1.46)" in seen
    assert "which is lossy relative to float: 16 of 20 prompts got the same tokens as from greedy float" in seen
    assert "The fastest that is exact relative to float is prompt-lookup > float : 21.7 tokens/s, 1.68 times float ." in seen


def test_columns_name_their_denominators(realistic_page: str) -> None:
    heads = text_of(realistic_page.split("<thead>")[1].split("</thead>")[0])
    assert "\N{MULTIPLICATION SIGN} float over float" in heads
    assert "own precision over int8 , float" in heads
    assert "same proposer over prompt-lookup > float , int4 > float" in heads


def said(results: dict[str, Any]) -> str:
    return text_of(" ".join(summary.paragraphs(results)))


def test_summary_claims_no_difference_that_the_range_does_not_show() -> None:
    results = made.realistic()
    results["chains"][0]["ratios"]["own_precision"]["decode"] = {"median": 1.01, "low": 0.97, "high": 1.05}
    assert "(0.97 to 1.05; no clear difference)" in said(results)
    results["chains"][1]["decode"] = {"median": 55.0, "low": 53.0, "high": 57.0}
    assert "Not clearly slower: int4 > int8 ." in said(results)


def test_summary_says_when_speculation_did_not_pay() -> None:
    results = made.realistic()
    results["chains"][3]["decode"] = made.spread(70.0)
    assert "No proposer made int8 faster." in said(results)


def test_summary_of_an_exact_chain() -> None:
    results = made.realistic()
    results["chains"] = [made.chain_result("prompt-lookup > float", 21.7)]
    assert "makes 21.7 tokens/s" in said(results)
    assert "loses nothing against float." in said(results)


def test_summary_says_what_is_best_under_load() -> None:
    sentence = text_of(load_sentence(made.realistic()) or "")
    assert sentence.startswith("With 8 answers at once, prompt-lookup > int8 is the fastest: 213 tokens/s together")
    assert "4.29 times prompt-lookup > int8 with one at a time, 1.43 times int8 with as many." in sentence
    results = made.realistic()
    results["load"]["points"] = [point for point in results["load"]["points"] if point["concurrency"] == 1]
    assert load_sentence(results) is None


def test_warnings_come_first() -> None:
    results = {**made.realistic(), "interrupted": True, "notes": ["no float"], "sweep": None, "fidelity": None}
    results["machine"]["read_gb_per_s"] = [41.2, 22.0]
    interrupted, bandwidth, note = summary.warnings(results)
    assert interrupted.startswith("Interrupted")
    assert "from 41.2 to 22.0 GB/s" in bandwidth
    assert note == "no float"
    assert summary.warnings(made.realistic()) == []


def test_sections_without_data_are_left_out() -> None:
    page = report.page_text({"bundle": {"name": "small"}, "chains": []})
    assert re.findall("<h2>(.*?)</h2>", page) == ["To do it again"]
    page = report.page_text({**made.realistic(), "load": None, "sweep": None, "fidelity": None, "chains": [{"chain": "int8"}]})
    assert re.findall("<h2>(.*?)</h2>", page) == ["Speed", "To do it again"]
    assert "<svg" not in page


@pytest.mark.usefixtures("paint_only")
def test_any_value_may_be_unknown() -> None:
    def keys(value: Any) -> Iterator[str]:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from keys(inner)
        yield from value if isinstance(value, dict) else ()

    def unknown(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: None if name == key else unknown(inner, key) for name, inner in value.items()}
        return [unknown(inner, key) for inner in value] if isinstance(value, list) else value

    results = made.realistic()
    for key in sorted(set(keys(results))):
        changed = unknown(results, key)
        assert "None" not in text_of(report.page_text(changed)), key
        assert "None" not in text_table(changed), key


@pytest.mark.usefixtures("paint_only")
@pytest.mark.parametrize("results", [{}, made.emptied(made.realistic()), {"chains": [None, 3, {}]}])
def test_page_of_nothing(results: dict[str, Any]) -> None:
    assert "No chain has a speed." in report.page_text(results)


@pytest.mark.usefixtures("paint_only")
def test_zeros_and_single_points_are_drawn() -> None:
    results = made.realistic()
    results["chains"][0]["decode"] = {"median": 0.0, "low": 0.0, "high": 0.0}
    results["chains"] = results["chains"][:1]
    results["chains"][0]["levels"][0].update(step_ms={"1": 25.0}, acceptance_per_position=[0.0])
    results["sweep"]["points"] = results["sweep"]["points"][:1]
    results["load"]["points"] = results["load"]["points"][:1]
    assert "sweep Speed of each chain by temperature" in report.page_text(results)


def test_text_is_escaped_everywhere() -> None:
    page = report.page_text(hostile())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page
    assert "$x_1$" in page  # not read as a formula


def test_page_is_self_contained_and_reproducible(realistic_page: str) -> None:
    without_names = re.sub(r' xmlns(:\w+)?="[^"]*"', "", realistic_page)
    assert not re.search(r"https?:|//|<script|<link(?! rel=\"icon\" href=\"data:,\")|@import|url\((?!#)", without_names)
    assert "default-src 'none'" in realistic_page
    assert "DejaVu" not in realistic_page
    assert report.page_text(made.realistic()) == realistic_page


@pytest.mark.parametrize("page", ["realistic_page", "many_page"])
def test_plots_are_named_and_ids_unique(page: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(page)
    repeated = [ident for ident, times in Counter(re.findall(r'\bid="([^"]*)"', text)).items() if times > 1]
    assert repeated == []
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(re.findall(r'\bid="([^"]*)"', text))
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]+">\n<title>', text)) == 5
    assert text.count("<svg") == 5


# the files


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written(tmp_path: Path, realistic_page: str) -> None:
    folder = tmp_path / "new" / "report"
    assert report.write_report(made.realistic(), folder) == folder / "report.html"
    assert files(folder) == ["decode.svg", "report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == json.loads(json.dumps(made.realistic()))
    assert (folder / "report.html").read_text(encoding="utf-8") == realistic_page


def test_the_plot_of_speeds_stands_alone(tmp_path: Path) -> None:
    report.write_report(made.realistic(), tmp_path)
    text = (tmp_path / "decode.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"]) > 0
    assert float(root.attrib["height"]) > 0
    assert "var(" not in text  # there is no page whose colours it could have
    assert "prompt-lookup" in text


@pytest.mark.usefixtures("paint_only")
def test_results_without_a_speed_have_no_plot_of_it(tmp_path: Path) -> None:
    report.write_report(made.realistic(), tmp_path)
    report.write_report({**made.realistic(), "chains": []}, tmp_path)
    assert files(tmp_path) == ["report.html", "report.json"]


@pytest.mark.usefixtures("paint_only")
def test_json_stays_json(tmp_path: Path) -> None:
    results = {**made.realistic(), "notes": ["caf\u00e9 \ud800", float("nan"), (1, float("inf"))]}
    report.write_report(results, tmp_path)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["notes"] == ["caf\u00e9 \ud800", None, [1, None]]


@pytest.mark.usefixtures("paint_only")
def test_a_failure_leaves_the_results_and_no_page_of_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write_report({**made.realistic(), "notes": ["old"]}, tmp_path)

    def fail(results: object) -> str:
        raise MemoryError

    monkeypatch.setattr(report, "page_text", fail)
    with pytest.raises(MemoryError):
        report.write_report({**made.realistic(), "notes": ["new"]}, tmp_path)
    assert files(tmp_path) == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["notes"] == ["new"]


@pytest.mark.usefixtures("paint_only")
def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write_report(made.realistic(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(path: Path, text: str, **options: Any) -> int:
        path.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        report.write_report({**made.realistic(), "notes": ["new"]}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        report.write_report(made.realistic(), file)
    assert file.read_text() == "mine"


def test_without_matplotlib_the_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'quasar-toolchain\[bench\]'"):
        report.write_report(made.realistic(), tmp_path)
    assert files(tmp_path) == ["report.json"]


# in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
PROBE = """<!doctype html><body>
<iframe width=1200 height=900 srcdoc="{page}"></iframe><iframe width=390 height=900 srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const seen = [...document.querySelectorAll("iframe")].map(frame => {{
    const inner = frame.contentDocument, box = element => element.getBoundingClientRect();
    return {{
      plots: [...inner.querySelectorAll("svg")].map(svg => [box(svg).width, box(svg).height]),
      spill: [...inner.querySelectorAll("svg")].flatMap(svg => [...svg.querySelectorAll("text")].filter(text =>
        box(text).left < box(svg).left - 1 || box(text).right > box(svg).right + 1 ||
        box(text).top < box(svg).top - 1 || box(text).bottom > box(svg).bottom + 1).map(text => text.textContent)),
      smallest: Math.min(...[...inner.querySelectorAll("svg text")].map(text => box(text).height)),
      overflow: inner.documentElement.scrollWidth - inner.documentElement.clientWidth,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
      scripts: inner.scripts.length,
      headings: [...inner.querySelectorAll("h2")].map(heading => heading.textContent),
    }};
  }});
  const shown = Object.assign(document.createElement("pre"), {{ id: "seen", textContent: JSON.stringify(seen) }});
  document.body.replaceChildren(shown);
  console.log("probe ran");
}});
</script>"""


def browse(page: Path, home: Path, *options: str) -> tuple[str, list[str]]:
    """The DOM and what went to the console."""
    command = [BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={home}"]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
@pytest.mark.parametrize("results", [made.realistic(), made.many_chains(20), hostile()], ids=["realistic", "many", "hostile"])
def test_browser_shows_the_plots_and_asks_for_nothing(results: dict[str, Any], tmp_path: Path) -> None:
    page = report.write_report(copy.deepcopy(results), tmp_path / "report")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    dom, console = browse(probe, tmp_path / "home", "--dump-dom")
    assert [line for line in console if "probe ran" not in line] == []
    assert len(console) == 1  # the console is listened to
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, flags=re.DOTALL)
    assert found is not None
    for frame in json.loads(html.unescape(found[1])):
        assert len(frame["plots"]) == 5
        assert all(width >= 400 and height >= 80 for width, height in frame["plots"])
        assert frame["spill"] == []
        assert frame["smallest"] >= 8  # pixels; letters that can be read
        assert frame["overflow"] <= 0  # wide tables and plots scroll by themselves, not the page
        assert frame["requests"] == []
        assert frame["scripts"] == 0
        assert frame["headings"] == ["Speed", "Load", "Acceptance", "Cost of a pass", "Sweep", "Fidelity", "To do it again"]


@needs_browser
def test_browser_draws_the_page(tmp_path: Path) -> None:
    page = report.write_report(made.realistic(), tmp_path / "report")
    picture = tmp_path / "page.png"
    _, console = browse(page, tmp_path / "home", "--window-size=1200,1400", f"--screenshot={picture}")
    assert console == []
    assert picture.stat().st_size > 50_000
