"""Weights that processes share: the same logits, in pages of a file instead of the process's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import feed

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.errors import BundleError, UsageError
from quasar.engines.kernels.library import own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.onnxruntime.prepacked import LISTING, check_prepacked, save_prepacked
from quasar.runtime import load
from quasar.runtime.serving.triton.cli import main as triton_main

CHAIN = "prompt-lookup > int4 > int8 > float"
OWN_MEMORY = """
import sys
from pathlib import Path
from quasar.runtime import load
kernels, *folder = sys.argv[2:]
model = load(sys.argv[1], "int8", kernels=kernels, prepacked=Path(folder[0]) if folder else None)
model.generate("1 + 1 =")
rows = [line.split() for line in Path("/proc/self/smaps").read_text().splitlines()]
print(sum(int(row[1]) for row in rows if row[0] == "Anonymous:"))
"""


ENGINES = ("float", "int8", "int4")


@pytest.fixture(scope="module")
def prepacked(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepacked") / "prepacked"
    bundle = open_bundle(demo_bundle)
    save_prepacked(bundle, ENGINES, folder, own_kernels())
    check_prepacked(folder, bundle, ENGINES, own_kernels())
    return folder


def test_logits_are_the_same_to_the_last_bit(demo_bundle: Path, prepacked: Path) -> None:
    bundle = open_bundle(demo_bundle)
    ids = np.random.default_rng(0).integers(3, 4000, (3, 42))
    passes = [
        [feed(ids[0][:40], 0, 0, [0, 20, 39])],
        [feed(ids[0][40:41], 40, 0)],
        [feed(ids[2][:9], 0, 2, [8]), feed(ids[0][41:], 41, 0), feed(ids[1][:30], 0, 1, [])],
    ]
    for name in ENGINES:
        entry = bundle.engine(name)
        assert entry.attention == "packed"
        form, library = own_kernels().form(entry)
        graphs = (bundle.path(form.graph), prepacked / f"{name}.onnx")
        plain, shared = (OnnxEngine(path, form, library=library) for path in graphs)
        for feeds in passes:
            expected, found = plain.score(feeds), shared.score(feeds)
            for number in range(len(feeds)):
                assert np.array_equal(found.logits(number), expected.logits(number))


def test_a_chain_runs_on_them(demo_bundle: Path, prepacked: Path) -> None:
    with load(demo_bundle, CHAIN) as plain, load(demo_bundle, CHAIN, prepacked=prepacked) as shared:
        assert shared.generate("1 + 1 =").ids == plain.generate("1 + 1 =").ids


def test_the_weights_are_no_memory_of_the_process(demo_bundle: Path, prepacked: Path) -> None:
    def own(*arguments: str) -> int:
        command = [sys.executable, "-c", OWN_MEMORY, str(demo_bundle), *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    saved = 1024 * (own("off") - own("auto", str(prepacked)))
    assert saved > 0.6 * (demo_bundle / "int8.bin").stat().st_size


def test_weights_of_a_bundle_that_was_exported_again_are_refused(demo_bundle: Path, prepacked: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == "int8.bin":
            file["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = open_bundle(bundle)
    check_prepacked(prepacked, opened, ["float", "int4"], own_kernels())
    with pytest.raises(BundleError, match=r"int8 is not that of the bundle at .*; write the model again"):
        check_prepacked(prepacked, opened, ENGINES, own_kernels())


def test_an_engine_that_was_not_saved_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(demo_bundle)
    save_prepacked(bundle, ["int8"], tmp_path / "prepacked", own_kernels())
    with pytest.raises(BundleError, match="int4 is not that of the bundle"):
        check_prepacked(tmp_path / "prepacked", bundle, ["int8", "int4"], own_kernels())


def test_files_of_another_machine_are_refused(demo_bundle: Path, prepacked: Path) -> None:
    bundle = open_bundle(demo_bundle)
    listing = prepacked / LISTING
    good = listing.read_text()
    try:
        for what in ("processor", "onnxruntime", "kernels"):
            listing.write_text(json.dumps({**json.loads(good), what: "another"}))
            with pytest.raises(UsageError, match=f"saved for another {what}.*--share-weights"):
                check_prepacked(prepacked, bundle, ENGINES, own_kernels())
        for text in ("", "[]", "{}"):
            listing.write_text(text)
            with pytest.raises(BundleError, match="cannot be read"):
                check_prepacked(prepacked, bundle, ENGINES, own_kernels())
    finally:
        listing.write_text(good)


def test_altered_files_are_refused(demo_bundle: Path, prepacked: Path) -> None:
    bundle = open_bundle(demo_bundle)
    weights = prepacked / "int4.bin"
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"int4\.bin: missing or altered"):
            check_prepacked(prepacked, bundle, ENGINES, own_kernels())
    finally:
        weights.write_bytes(data)


def test_they_are_for_a_cpu(demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="prepacked"):
        load(demo_bundle, provider="cuda", prepacked=tmp_path)
    options = ["--repository", str(tmp_path), "--name", "m", "--provider", "cuda", "--share-weights"]
    assert triton_main([str(demo_bundle), *options]) == 2
    assert "--share-weights is for ONNX Runtime on a CPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
