"""What the commands say to chains and parameters that cannot be: one line, exit code 2, before anything is generated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quasar.engines.errors import UsageError
from quasar.runtime import load
from quasar.runtime.cli import main as generate_main
from quasar.runtime.options import parse_draft_length

Capture = pytest.CaptureFixture[str]


def refusal(capsys: Capture, *arguments: str) -> str:
    """The one line on stderr."""
    code = generate_main([*arguments, "hi", "--max-new-tokens", "2"])
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("quasar-generate: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chain", "prompt-lookup > int8 > int9"], "no engine 'int9' in this bundle; it has float, int8, int4"),
        (["--chain", "int9 > int8"], "no engine 'int9'"),
        (["--chain", "prompt-lookup,int9 > int8"], "no engine 'int9'"),
        (["--chain", "qspec"], "no engine 'int4-a16'"),
        (["--chain", "no-such-preset"], "no engine 'no-such-preset'"),
        (["--chain", "suffix"], "suffix only proposes; put it first"),
        (["--chain", "int8 > suffix > float"], "suffix only proposes"),
        (["--chain", "int8 > int8"], "int8 is in it twice"),
        (["--chain", "prompt-lookup > int8,float"], "only the first stage may be a list"),
        (["--chain", "int8 >"], "a stage is empty"),
        (["--temperature", "-0.1"], "temperature is -0.1; it must be 0 (greedy) or more"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "inf"], "temperature is inf"),
        (["--top-p", "0"], "top_p is 0.0; it must be above 0"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--top-k", "-1"], "top_k is -1"),
        (["--min-p", "2"], "min_p is 2.0"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--presence-penalty", "3"], "presence_penalty is 3.0"),
        (["--frequency-penalty", "-3"], "frequency_penalty is -3.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--stop", ""], "empty"),
        (["--stop", "fine", "--stop", ""], "empty"),
        (["--logprobs", "3"], "--logprobs goes with --json"),
        (["--logprobs", "51", "--json"], "logprobs is 51; give 0 to 50"),
        (["--logprobs", "-1", "--json"], "logprobs is -1"),
        (["--draft-length", "long"], "--draft-length long: give a number, or numbers with commas between them"),
        (["--draft-length", "1.5"], "--draft-length 1.5"),
        (["--draft-length", ""], "--draft-length"),
        (["--draft-length", "3,"], "--draft-length 3,"),
        (["--draft-length", "-1"], "draft_length is -1"),
        (["--chain", "prompt-lookup > int8 > float", "--draft-length", "3,-1"], "draft_length is -1"),
        (["--chain", "prompt-lookup > int8 > float", "--draft-length", "3,4,5"], "has 3 numbers and the chain prompt-lookup"),
        (["--chain", "int8", "--draft-length", "3,4"], "draft_length has 2 numbers"),
        (["--chain", "int4 > int8", "--batch-invariant"], "batch invariance is for float32, w8a8"),
    ],
)
def test_what_cannot_be_is_one_line(demo_bundle: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    assert message in refusal(capsys, str(demo_bundle), *arguments)


def edited(bundle: Path, folder: Path, engine: str, **changes: Any) -> str:
    """A copy whose manifest says something else of an engine."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["engines"][engine]
    for form in (entry, entry["own"]):
        form["cache"].update(changes.get("cache", {}))
    entry.update({key: value for key, value in changes.items() if key != "cache"})
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return str(copy)


@pytest.mark.parametrize(
    "chain", ["int4 > int8", "int4 > int8 > float", "prompt-lookup,int4 > int8", "prompt-lookup > int4 > int8"]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 5000}, "int4 has a vocabulary of 5000 tokens and {last} one of 4096; engines of a chain must share it"),
        (
            {"cache": {"length": 1024}},
            "int4 has a context of 1024 and {last} one of 4096; export them with the same --max-length",
        ),
    ],
    ids=["vocabulary", "context"],
)
def test_engines_that_do_not_fit_together(
    demo_bundle: Path, tmp_path: Path, capsys: Capture, chain: str, change: dict[str, Any], message: str
) -> None:
    bundle = edited(demo_bundle, tmp_path, "int4", **change)
    line = refusal(capsys, bundle, "--chain", chain)
    assert message.format(last=chain.split(" > ")[-1]) in line
    assert f"chain {chain}:" in line


def test_an_engine_that_this_release_does_not_run(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    bundle = edited(demo_bundle, tmp_path, "int4", backend="tensorrt")
    assert "engine int4: backend 'tensorrt'" in refusal(capsys, bundle, "--chain", "int4 > int8")


def test_a_draft_with_a_longer_context_is_fine(demo_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    """Refused is what would end before the text does; here the graph itself says no, so it came past the chain's check."""
    bundle = edited(demo_bundle, tmp_path, "int4", cache={"length": 8192})
    assert generate_main([bundle, "hi", "--chain", "int4 > int8"]) == 4
    assert "past.0.key is tensor(float)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--temperature", "warm"], ["--seed", "x"], ["--acceptance", "sometimes"], ["--top-k", "1.5"]]
)
def test_what_is_no_number_is_refused_by_the_parser(demo_bundle: Path, capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        generate_main([str(demo_bundle), "hi", *arguments])
    assert caught.value.code == 2
    assert f"quasar-generate: error: argument {arguments[0]}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize("length", [-1, [1, 2], [-1], "5", 1.5, [1.5], [], True])
def test_draft_lengths_of_the_api(demo_bundle: Path, length: Any) -> None:
    with pytest.raises(UsageError, match="draft_length"):
        load(demo_bundle, chain="prompt-lookup > int8", draft_length=length)


def test_an_unknown_acceptance_of_the_api(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match="acceptance is 'sometimes'; it must be one of matching, rejection"):
        load(demo_bundle, chain="int8", acceptance="sometimes")  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("5", 5), ("0", 0), ("5,16", (5, 16)), (" 5 , 16 ", (5, 16))])
def test_draft_lengths_as_they_are_written(text: str | None, expected: Any) -> None:
    assert parse_draft_length(text) == expected
