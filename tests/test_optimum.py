"""Tier 4: `optimum-cli export quasar`, as its distribution installs it, writes what quasar-export writes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub

from quasar.exporter.cli import _options, parser
from quasar.exporter.cli import main as export_main

pytest.importorskip("optimum.commands.base", reason="optimum is not installed: pip install -c constraints.txt optimum")

SOURCE = Path(__file__).parents[1] / "integrations" / "optimum"
COMMAND = [sys.executable, "-c", "from optimum.commands.optimum_cli import main; main()", "export", "quasar"]
FAST = ["--engines", "int8", "--num-samples", "4", "--sample-length", "32", "--rotation", "off"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with quasar-optimum, as pip writes it."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "optimum")  # setuptools builds beside it
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(folder), str(source)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def run(installed: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(installed), **environment}
    return subprocess.run([*COMMAND, *arguments], env=variables, capture_output=True, text=True, timeout=300)


def files_of(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


def test_the_bundle_is_that_of_quasar_export(installed: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Tom buys 3 boxes of 8 pens. He gives 5 pens to Ann, and 2 to Sam.\n" * 20)
    names = ["--task", "text-generation-with-past", "--dataset", str(text), "--smooth-quant-alpha", "0.6"]
    done = run(installed, "-m", "demo", str(tmp_path / "theirs"), *FAST, *names)
    assert done.returncode == 0, done.stderr
    assert f"quasar-generate {tmp_path / 'theirs'}" in done.stdout
    command = ["--model", "demo", "--output", str(tmp_path / "ours"), "--calibration", str(text), "--alpha", "0.6"]
    assert export_main([*command, *FAST]) == 0
    theirs, ours = files_of(tmp_path / "theirs"), files_of(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if theirs[name] != ours[name]] == []


@pytest.fixture
def command(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module that the distribution installs."""
    monkeypatch.syspath_prepend(str(installed))
    from optimum.commands.register import register_quasar

    yield register_quasar
    monkeypatch.delitem(sys.modules, "optimum.commands.register.register_quasar")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ([], ["--int8"]),
        (["--draft", "pruned:0.5"], ["--int8", "--draft", "pruned:0.5"]),
        (["--engines", "float,int8", "--task", "text-generation"], ["--engines", "float,int8"]),
        (["--dataset", "text.jsonl", "--num-samples", "9"], ["--int8", "--calibration", "text.jsonl", "--num-samples", "9"]),
        (["--smooth-quant-alpha", "0.5", "--revision", "v1"], ["--int8", "--alpha", "0.5", "--revision", "v1"]),
        (["--max-length", "256", "--cache", "int8", "--cache_dir", "x"], ["--int8", "--max-length", "256", "--cache", "int8"]),
        (["--backend", "tensorrt-rtx", "--memory-pool", "2"], ["--int8", "--backend", "tensorrt-rtx", "--memory-pool", "2"]),
    ],
)
def test_options_are_those_of_quasar_export(command: Any, theirs: list[str], ours: list[str]) -> None:
    root = argparse.ArgumentParser()
    command.QuasarExportCommand(root.add_subparsers())
    found = _options(command.own_options(root.parse_args(["quasar", "-m", "demo", "OUT", *theirs])))
    assert found == _options(parser().parse_args(["--model", "demo", "--output", "OUT", *ours]))


def test_models_of_the_hub_are_kept_in_the_folder_that_is_asked_for(installed: Path, tmp_path: Path) -> None:
    """The configuration alone is fetched, because it is refused."""
    hub = Hub()
    hub.repositories["owner/demo"] = {"config.json": json.dumps({"model_type": "bert"}).encode(), "model.safetensors": b""}
    places = ["-m", "owner/demo", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    done = run(installed, *places, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0")
    hub.close()
    assert done.returncode == 2, done.stderr
    assert "bert" in done.stderr
    assert list((tmp_path / "cache" / "models--owner--demo").rglob("config.json"))
    assert not (tmp_path / "home" / "hub").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "demo"], "the following arguments are required: OUTPUT"),
        (["-m", "demo", "out", "--task", "image-classification"], "invalid choice: 'image-classification'"),
        (["-m", "nobody", "out"], "optimum-cli export quasar: --model nobody: neither a folder nor a known alias"),
        (["-m", "demo", "out", "--dataset", "wikitext2"], "wikitext2: cannot be read"),
    ],
)
def test_wrong_usage_is_said_as_by_quasar_export(installed: Path, arguments: list[str], message: str) -> None:
    done = run(installed, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
