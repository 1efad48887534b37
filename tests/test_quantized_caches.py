"""Caches of int8 and of two 4-bit halves: what bundles have them, and that a draft in its verifier's cache changes nothing."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from edited import edit_manifest

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.cache import CacheSpec
from quasar.engines.engine import Feed
from quasar.engines.errors import BundleError, UsageError
from quasar.engines.kernels.library import Kernels, own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.exporter.caches import check_cache
from quasar.exporter.cli import main as export_main
from quasar.exporter.model.checkpoint import open_checkpoint
from quasar.runtime import SamplingParams, load
from quasar.runtime.cli import main as generate_main
from quasar.runtime.engines import EnginePool
from quasar.runtime.model import Model
from quasar.runtime.model_options import ModelOptions

needs_library = pytest.mark.skipif(own_kernels().library is None, reason=own_kernels().reason)
TEXT = "A baker has 24 rolls and sells half of them."
LONG = SamplingParams(max_new_tokens=200, ignore_eos=True)


@needs_library
def test_an_export_with_int8_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "demo", "--engines", "float,int8,int4", "--cache", "int8", "--output", str(tmp_path / "b")]
    assert export_main(arguments) == 0
    said = capsys.readouterr().out
    assert "int8: 6.7 MB a sequence of 4096 positions, int8; 25.2 MB in stock operators, float32" in said
    assert "float: 25.2 MB a sequence of 4096 positions, float32\n" in said
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest.engines["int8"].gate["mean_kl"] < 0.002
    text, params = "A baker has 24 rolls and sells half of them.", SamplingParams(max_new_tokens=40)
    with load(tmp_path / "b", "prompt-lookup,int4 > int8") as model, load(tmp_path / "b", "int8", kernels="off") as stock:
        assert model.kernels["int8"] == f"{own_kernels().name}, int8 cache"
        drafted = model.generate(text, params)
        assert drafted.statistics.levels[-1].accepted > 0
        assert stock.generate(text, params).ids  # its caches are float, so near-ties fall otherwise
    with load(tmp_path / "b", "int8") as alone:  # exact relative to the engine with the same cache
        assert alone.generate(text, params).ids == drafted.ids


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose int8 engine has a cache of two halves, and whose int4 engine drafts in it."""
    output = tmp_path_factory.mktemp("halves") / "b"
    arguments = ["--model", "demo", "--engines", "float,int8,int4", "--max-length", "512", "--max-sequences", "4"]
    assert export_main([*arguments, "--cache", "int4", "--output", str(output)]) == 0
    return output


@needs_library
def test_an_export_with_caches_of_two_halves(halves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = open_bundle(halves).manifest.engines
    assert {name: (e.in_own_operators.cache.dtype, e.in_own_operators.cache.owner) for name, e in engines.items()} == {
        "float": ("float32", "float"),
        "int8": ("int4", "int8"),
        "int4": ("int4", "int8"),
    }
    assert all(engine.cache.dtype == "float32" and engine.cache.owner == name for name, engine in engines.items())
    assert engines["int8"].gate["mean_kl"] < 0.002
    assert generate_main([str(halves), "--chain", "quantspec", "--stats", "--max-new-tokens", "2", TEXT]) == 0
    assert f"int8 {own_kernels().name}, int4 cache" in capsys.readouterr().err


@needs_library
def test_a_draft_in_the_cache_of_its_verifier_changes_nothing(halves: Path) -> None:
    with load(halves, "int8") as alone:
        expected = alone.generate(TEXT, LONG).ids
    with load(halves, "quantspec", draft_length=5) as drafted:
        done = drafted.generate(TEXT, LONG)
        assert done.ids == expected
        (level,) = [level for level in done.statistics.levels if level.engine == "int8"]
        assert level.accepted > 0.8 * level.proposed > 0
    with load(halves, "prompt-lookup,int4 > int8", sequences=3) as many:  # in passes with others, and after them in their slots
        prompts = [TEXT, "Once upon a time", TEXT, "The cat", TEXT]
        for _ in range(2):
            answers = many.generate(prompts, LONG)
            assert [answers[i].ids for i in (0, 2, 4)] == [expected] * 3


@needs_library
def test_what_a_slot_held_before_changes_nothing(halves: Path) -> None:
    """A cache that has rounded what two prompts share is read again; a text that goes on is not."""
    begin = f"{TEXT} " * 14
    ask, other = f"{begin} How many are left?", f"{begin} Who buys the rest of them?"
    with load(halves, "int8") as fresh:
        expected = fresh.generate(other, LONG).ids
    with load(halves, "int8") as model:
        first = model.generate(ask, LONG)
        again = model.generate(other, LONG)
        assert again.ids == expected
        assert again.statistics.cached_tokens == 0
        assert first.ids != again.ids
        ids = [*model.tokenize(other), *again.ids]
        assert model.generate(ids, LONG).statistics.cached_tokens >= len(ids) - 2


@needs_library
def test_a_draft_says_in_the_cache_of_its_verifier_what_it_says_in_its_own(halves: Path) -> None:
    bundle = open_bundle(halves)
    (int8, library), (int4, _) = (own_kernels().form(bundle.engine(name)) for name in ("int8", "int4"))
    ids = np.random.default_rng(0).integers(3, int8.vocab_size, 300)
    lead = OnnxEngine(bundle.path(int8.graph), int8, library=library)
    guest, alone = (OnnxEngine(bundle.path(int4.graph), int4, library=library, caches=caches) for caches in (lead.caches, None))
    for begin in range(0, 299, 64):
        chunk = ids[begin : min(begin + 64, 299)]
        for engine in (lead, alone):
            engine.score([Feed(0, begin, chunk, np.arange(0))])
    feed = Feed(0, 299, ids[299:], np.arange(1))
    expected, found = (engine.score([feed]).logits(0).copy() for engine in (alone, guest))
    assert np.square(found - expected).mean() < 0.01 * np.square(expected).mean()
    guest.close()
    assert lead.score([feed]).logits(0).shape == expected.shape  # its cache is still there
    lead.close(), alone.close()


@needs_library
@pytest.mark.parametrize(("chain", "kernels", "follows"), [("quantspec", "auto", True), ("int4 > int8", "off", False)])
def test_a_draft_is_fed_nothing_that_its_verifier_has_read(halves: Path, chain: str, kernels: str, follows: bool) -> None:
    options = ModelOptions(chain=chain, kernels=kernels)
    pool = EnginePool(open_bundle(halves), options)
    with Model(pool, options) as model:
        cached = pool.cached(model.chain)
        assert (cached["int4"].follows, cached["int8"].follows) == (follows, False)
        model.generate(TEXT, SamplingParams(max_new_tokens=4))
        assert (cached["int4"].filled(0) == cached["int8"].filled(0)) or not follows


def test_quantspec_needs_a_common_cache(demo_bundle: Path) -> None:
    with pytest.raises(UsageError, match="int4 has a cache of its own; export with --cache int4, or ask for 'int4 > int8'"):
        load(demo_bundle, "quantspec")


@pytest.mark.parametrize("owner", ["float", "nobody"])
def test_a_cache_of_an_engine_that_has_no_such_is_refused(halves: Path, tmp_path: Path, owner: str) -> None:
    root = Path(shutil.copytree(halves, tmp_path / "b"))
    edit_manifest(root, lambda manifest: manifest["engines"]["int4"]["own"]["cache"].update(owner=owner))
    with pytest.raises(BundleError, match=f"owner of its cache is '{owner}', which is no engine with such a cache"):
        open_bundle(root)


@needs_library
@pytest.mark.parametrize(
    ("cache", "head_dim", "message"),
    [
        ("int8", 24, "--cache int8: heads have 24 numbers, and a multiple of 16 is needed; leave it out"),
        ("int4", 512, "--cache int4: heads have 512 numbers, and at most 256 fit; take --cache int8"),
    ],
)
def test_heads_that_no_cache_takes(cache: str, head_dim: int, message: str) -> None:
    architecture = dataclasses.replace(open_checkpoint("demo").architecture, head_dim=head_dim)
    check_cache("float", architecture)
    with pytest.raises(UsageError, match=message):
        check_cache(cache, architecture)


def test_what_caches_take() -> None:
    at_8k = CacheSpec(28, 8, 8192, 128, "float32", 1, "int8")
    halves = dataclasses.replace(at_8k, dtype="int4", layout="planes")
    assert 0.25 < halves.slot_bytes / at_8k.slot_bytes < 0.32
    assert halves.storage == np.uint8
    assert halves.max_tokens == 64
    assert dataclasses.replace(at_8k, dtype="int8", layout="groups").slot_bytes < 0.26 * at_8k.slot_bytes


def test_int8_caches_are_for_own_operators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", "demo", "--engines", "int4", "--cache", "int8", "--output", str(tmp_path / "b")]
    for more in (["--kernels", "off"], ["--provider", "cuda"], ["--backend", "tensorrt-rtx"]):
        assert export_main([*arguments, *more]) == 2
        assert "--cache int8: only own operators on a CPU have such caches" in capsys.readouterr().err
    monkeypatch.setattr("quasar.exporter.caches.own_kernels", lambda: Kernels(reason="own operators were not built"))
    assert export_main(arguments) == 2
    assert capsys.readouterr().err == "quasar-export: --cache int8: own operators were not built\n"
    assert not (tmp_path / "b").exists()
