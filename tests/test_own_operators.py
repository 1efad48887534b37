"""Own operators: the same bits as the stock form, nothing read or written beyond the data, and a reason where they cannot run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from quasar.calibration.schemes import PER_TOKEN, STATIC, TWO_PARTS, Scheme
from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.cache import BLOCK, CacheSpec
from quasar.engines.engine import Feed
from quasar.engines.errors import BundleError
from quasar.engines.kernels.library import OFF, Kernels, open_library, own_kernels
from quasar.engines.onnxruntime.engine import OnnxEngine
from quasar.engines.onnxruntime.session import create_session
from quasar.exporter.cli import main as export_main
from quasar.exporter.graph.attention_onnxruntime import RAGGED_OPERATORS
from quasar.exporter.graph.builder import QUASAR, GraphBuilder, WeightFile
from quasar.exporter.graph.linear_onnxruntime import Activation, OwnW8A8Linear, W8A8Linear
from quasar.runtime import SamplingParams, load
from quasar.runtime.cli import main as generate_main
from quasar.runtime.execution import describe_kernels
from quasar.runtime.model_options import ModelOptions

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "engines" / "kernels"
CODES = ("avx2", "avx512-vnni")
# of random cases, as many as take half a minute
CASES = {"fuzz_linear": 10000, "fuzz_attention": 2000}
# as /proc/cpuinfo calls them
FLAGS = {"avx2": "avx2", "avx512-vnni": "avx512_vnni"}
FLAGS_OF_BUILD = ["g++", "-std=c++17", "-O1", "-g", "-mavx2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
needs_library = pytest.mark.skipif(own_kernels().library is None, reason=own_kernels().reason)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def has(code: str) -> bool:
    return FLAGS[code] in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()


# ------------------------------------------------------------------------------------------------ kernels


@pytest.fixture(scope="module", params=["linear", "attention"])
def fuzz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of random cases under the sanitizers; instructions that the processor lacks are emulated."""
    program = tmp_path_factory.mktemp("fuzz") / f"fuzz_{request.param}"
    emulated = ["-DQUASAR_EMULATED", "-include", str(ROOT / "tests/kernels/avx512_emulated.h")]
    parts = [*SOURCES.glob(f"{request.param}_avx*.cpp"), *SOURCES.glob(f"{request.param}_p*.cpp")]
    subprocess.run(
        [
            *FLAGS_OF_BUILD,
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            *([] if has("avx512-vnni") else emulated),
            *("-I", str(SOURCES), str(ROOT / f"tests/kernels/{program.name}.cpp"), *map(str, parts), "-o", str(program)),
        ],
        check=True,
    )
    return program


@needs_compiler
@pytest.mark.parametrize("code", CODES)
def test_random_cases_are_right_and_stay_within_their_memory(fuzz: Path, code: str) -> None:
    if not has("avx2"):
        pytest.skip("a processor without AVX2 emulates nothing")
    cases = CASES[fuzz.name] // (1 if has(code) else 5)
    done = subprocess.run([fuzz, code, str(cases)], capture_output=True, text=True, check=False)
    assert (done.stdout + done.stderr[:2000]).strip() == "ok"


# ------------------------------------------------------------------------------------------------ the operator


def run_linear(folder: Path, linear: W8A8Linear, x: np.ndarray, weight: torch.Tensor, bias: torch.Tensor | None) -> np.ndarray:
    own = isinstance(linear, OwnW8A8Linear)
    with WeightFile(folder / "linear.bin") as weights:
        g = GraphBuilder(weights)
        y = linear(g, "proj", g.input("x", np.float32, [1, "rows", x.shape[-1]]), lambda: weight, bias)
        g.output("y", y, np.float32, [1, "rows", weight.shape[0]])
    g.save(folder / "linear.onnx", "linear", "")
    session = create_session(str(folder / "linear.onnx"), library=own_kernels().library if own else None)
    return session.run(None, {"x": x})[0]


@needs_library
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scheme", [STATIC, PER_TOKEN, TWO_PARTS])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 64, 40), (2, 576, 1), (6, 96, 97), (33, 40, 300), (200, 1536, 64)])
def test_the_operator_gives_the_bits_of_the_stock_form(
    tmp_path: Path, scheme: Scheme, rows: int, depth: int, columns: int, with_bias: bool
) -> None:
    torch.manual_seed(rows)
    weight, bias = torch.randn(columns, depth), torch.randn(columns) if with_bias else None
    x = (torch.randn(1, rows, depth) * 3).numpy()
    x[0, -1, 0] = 1e4  # beyond what a static scale holds, and large for its token
    activations = {"proj": Activation(scheme, 0.05 if scheme == STATIC else None)}
    stock, own = (run_linear(tmp_path, form, x, weight, bias) for form in (W8A8Linear(activations), OwnW8A8Linear(activations)))
    if bias is None:
        np.testing.assert_array_equal(own, stock)
    else:  # ONNX Runtime may add the bias inside the product, without rounding between
        np.testing.assert_allclose(own, stock, rtol=1e-6, atol=1e-6 * np.abs(stock).max())
    turned = run_linear(tmp_path, W8A8Linear(activations, rows_first=True), x, weight, bias)
    np.testing.assert_array_equal(turned, stock)


@needs_library
def test_no_tokens_are_no_error(tmp_path: Path) -> None:
    linear = OwnW8A8Linear({"proj": Activation(PER_TOKEN)})
    assert run_linear(tmp_path, linear, np.empty((1, 0, 64), np.float32), torch.randn(40, 64), None).shape == (1, 0, 40)


@needs_library
@pytest.mark.parametrize(
    ("shapes", "attributes", "message"),
    [
        (((40, 32), (40,)), {}, r"shapes must be x \[.., K\], weights \[N, K\], scales \[N\], bias \[N\]"),
        (((40, 64), (39,)), {}, "shapes must be"),
        (((40, 64), (40,), (41,)), {}, "shapes must be"),
        (((40, 64), (40,)), {"parts": 3}, "parts 1 or 2"),
        (((40, 64), (40,)), {"scale": -1.0}, "scale must be at least 0"),
        (((40, 64), (40,)), {"ratio": 0.0}, "ratio above 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, shapes: tuple[tuple[int, ...], ...], attributes: dict[str, float], message: str
) -> None:
    with WeightFile(tmp_path / "linear.bin") as weights:
        g = GraphBuilder(weights)
        types = (np.int8, np.float32, np.float32)
        inputs = [g.weight(f"w{i}", np.ones(shape, types[i])) for i, shape in enumerate(shapes)]
        given = {"scale": 0.0, "parts": 1, "ratio": 1.0, **attributes}
        y = g.op("W8A8Linear", g.input("x", np.float32, ["rows", 64]), *inputs, domain=QUASAR, **given)
        g.output("y", y, np.float32, ["rows", 40])
    g.save(tmp_path / "linear.onnx", "linear", "")
    with pytest.raises(Exception, match=message):
        create_session(str(tmp_path / "linear.onnx"), library=own_kernels().library).run(
            None, {"x": np.ones((1, 64), np.float32)}
        )


# ------------------------------------------------------------------------------------------------ attention


SLOTS, HEADS, KV_HEADS, WIDTH, CAPACITY = 2, 4, 2, 32, 48


def cache_of(dtype: str, capacity: int = CAPACITY, layout: str = "groups") -> CacheSpec:
    return CacheSpec(1, KV_HEADS, capacity, WIDTH, dtype, SLOTS, "", layout)


FLOATS = cache_of("float32")


def attention_session(
    folder: Path, cache: CacheSpec = FLOATS, tables: int | None = None, **changes: object
) -> ort.InferenceSession:
    """One operator with inputs for everything."""
    shape, dtype = ["slots", *cache.shape], cache.storage
    with WeightFile(folder / "attention.bin") as weights:
        g = GraphBuilder(weights)
        q = g.input("q", np.float32, [1, "rows", "width"])
        k, v = (g.input(name, np.float32, [1, "rows", "kv_width"]) for name in ("k", "v"))
        past = [g.input(f"past.{name}", dtype, shape) for name in ("key", "value")]
        layout = [g.input(name, np.int32, ["slots"]) for name in ("lengths", "last")]
        angles = angles_of(cache.length if tables is None else tables)
        rope = [g.weight(name, of(angles).astype(np.float32)) for name, of in (("cos", np.cos), ("sin", np.sin))]
        planes = {"capacity": cache.length, "planes": 2} if cache.layout == "planes" else {}
        attributes = {"heads": HEADS, "kv_heads": KV_HEADS, "window": 0, **planes, **changes}
        y, *present = g.op(RAGGED_OPERATORS[cache.dtype], q, k, v, *past, *layout, *rope, outputs=3, domain=QUASAR, **attributes)
        g.output("y", y, np.float32, [1, "rows", "width"])
        for kind, value in zip(("key", "value"), present, strict=True):
            g.output(f"present.{kind}", value, dtype, shape)
    g.save(folder / "attention.onnx", "attention", "")
    return create_session(str(folder / "attention.onnx"), library=own_kernels().library)


def angles_of(positions: int) -> np.ndarray:
    return np.arange(positions)[:, None] / 100 ** np.linspace(0, 1, WIDTH // 2)


def rotated_heads(x: np.ndarray, first: int | None) -> np.ndarray:
    """x [rows, heads * WIDTH] as [heads, rows, WIDTH], rotated from position `first` on."""
    x = x.reshape(len(x), -1, WIDTH).transpose(1, 0, 2).astype(np.float64)
    if first is None:
        return x
    angles = angles_of(first + x.shape[1])[first:]
    cos, sin, (low, high) = np.cos(angles), np.sin(angles), np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """[rows, heads * WIDTH] of q [heads, rows, WIDTH], k and v [kv heads, positions, WIDTH], visible [rows, positions]."""
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    scores = np.where(visible, q @ k.transpose(0, 2, 1) / WIDTH**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)


def attention_inputs(lengths: list[int], last: list[int], spec: CacheSpec = FLOATS) -> dict[str, np.ndarray]:
    random, rows = np.random.default_rng(0), sum(lengths)
    sizes = {"q": HEADS * WIDTH, "k": KV_HEADS * WIDTH, "v": KV_HEADS * WIDTH}
    cache = np.zeros((len(lengths), *spec.shape), spec.storage)
    return {
        **{name: random.standard_normal((1, rows, size), np.float32) for name, size in sizes.items()},
        **{"past.key": cache, "past.value": cache.copy()},
        **{"lengths": np.array(lengths, np.int32), "last": np.array(last, np.int32)},
    }


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_attention_is_that_of_numpy_also_without_a_shared_buffer(tmp_path: Path, dtype: str) -> None:
    session = attention_session(tmp_path, cache_of(dtype))
    given = attention_inputs([9, 40], [8, 39], cache_of(dtype))
    y, keys, _ = session.run(None, given)
    assert np.any(keys)
    assert not np.any(given["past.key"])  # a plain run leaves what it was given
    for first, count in ((0, 9), (9, 40)):
        q, k, v = (rotated_heads(given[name][0, first : first + count], at) for name, at in (("q", 0), ("k", 0), ("v", None)))
        expected = plain_attention(q, k, v, np.tri(count, dtype=bool))
        np.testing.assert_allclose(y[0, first : first + count], expected, atol=0.05 if dtype == "int8" else 1e-5)


def as_planes(x: np.ndarray, axis: int, planes: int) -> np.ndarray:
    """x as 8 bits under a scale along an axis, or the upper halves of them (QuantSpec, arXiv 2502.10424)."""
    least, most = x.min(axis, keepdims=True), x.max(axis, keepdims=True)
    step = (most - least) / 240
    code = np.rint((x - least) / step)
    return least + step * (code if planes == 2 else (code + 8) // 16 * 16)


@needs_library
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("window", [0, 100])
def test_attention_over_planes_is_that_of_numpy(tmp_path: Path, planes: int, window: int) -> None:
    spec = cache_of("int4", 384, "planes")
    session = attention_session(tmp_path, spec, planes=planes, window=window)
    past = {"past.key": np.zeros((1, *spec.shape), np.uint8), "past.value": np.zeros((1, *spec.shape), np.uint8)}
    random, end = np.random.default_rng(planes), 0
    seen = {name: np.empty((0, KV_HEADS * WIDTH), np.float32) for name in ("k", "v")}
    # the last two are what a draft is: dropped, and another one in its place
    for start, count in ((0, 64), (64, 50), (114, 64), (178, 1), (179, 33), (212, 60), (250, 64), (314, 40), (320, 7)):
        assert start <= end
        end = start + count
        rows = {name: random.standard_normal((1, count, size)) for name, size in (("q", HEADS * WIDTH), ("k", KV_HEADS * WIDTH))}
        given = {name: x.astype(np.float32) for name, x in {**rows, "v": random.standard_normal(rows["k"].shape)}.items()}
        seen = {name: np.concatenate([x[:start], given[name][0]]) for name, x in seen.items()}
        layout = {"lengths": np.array([count], np.int32), "last": np.array([end - 1], np.int32)}
        y, past["past.key"], past["past.value"] = session.run(None, {**given, **past, **layout})
        q, k, v = rotated_heads(given["q"][0], start), rotated_heads(seen["k"], 0), rotated_heads(seen["v"], None)
        blocks = [k[:, begin : begin + BLOCK] for begin in range(0, end, BLOCK)]
        old_k = np.concatenate([as_planes(block, 1, planes) for block in blocks], axis=1)
        old_v = as_planes(v, 2, planes)
        for row, position in enumerate(range(start, end)):
            exact = max(position // BLOCK - 1, 0) * BLOCK  # the newest BLOCK to 2 * BLOCK are as they were
            keys = np.concatenate([old_k[:, :exact], k[:, exact : position + 1]], axis=1)
            values = np.concatenate([old_v[:, :exact], v[:, exact : position + 1]], axis=1)
            visible = np.arange(position + 1)[None] > (position - window if window else -1)
            expected = plain_attention(q[:, row : row + 1], keys, values, visible)
            np.testing.assert_allclose(y[0, row : row + 1], expected, atol=2e-3)


@needs_library
def test_positions_that_are_taken_back_far_come_from_planes(tmp_path: Path) -> None:
    spec = cache_of("int4", 512, "planes")
    session, random = attention_session(tmp_path, spec), np.random.default_rng(0)
    sizes = {"q": HEADS * WIDTH, "k": KV_HEADS * WIDTH, "v": KV_HEADS * WIDTH}
    rows = {name: random.standard_normal((1, 450, size)).astype(np.float32) for name, size in sizes.items()}

    def feed(past: dict[str, np.ndarray], start: int, end: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        parts = []
        for begin in range(start, end, BLOCK):
            until = min(begin + BLOCK, end)
            layout = {"lengths": np.array([until - begin], np.int32), "last": np.array([until - 1], np.int32)}
            y, keys, values = session.run(None, {**{n: x[:, begin:until] for n, x in rows.items()}, **past, **layout})
            parts.append(y)
            past = {"past.key": keys, "past.value": values}
        return np.concatenate(parts, axis=1), past

    empty = {f"past.{kind}": np.zeros((1, *spec.shape), np.uint8) for kind in ("key", "value")}
    first, past = feed(empty, 0, 450)
    for start in (100, 200, 449):
        again, past = feed(past, start, 450)
        difference = np.abs(again - first[:, start:])
        # what was in float comes back in 8 bits; what still was in float is the same
        assert difference.max() < (0.05 if start < 300 else 1e-30)


@needs_library
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 100}, "capacity must be a multiple of 64"),
        ({"capacity": 1 << 40}, "at most 2\\^24"),
        ({"capacity": 64}, "or planes of their capacity"),
        ({"planes": 3}, "planes must be 1 or 2"),
    ],
)
def test_planes_of_another_size_are_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    spec = cache_of("int4", 128, "planes")
    with pytest.raises(Exception, match=message):
        attention_session(tmp_path, spec, **changes).run(None, attention_inputs([2, 1], [12, 3], spec))


@needs_library
def test_more_rows_than_a_block_are_refused_beside_planes(tmp_path: Path) -> None:
    spec = cache_of("int4", 128, "planes")
    with pytest.raises(Exception, match="a slot takes at most 64 rows at a time"):
        attention_session(tmp_path, spec).run(None, attention_inputs([65], [64], spec))


@needs_library
@pytest.mark.parametrize(
    ("lengths", "last", "message"),
    [
        ([2, 1], [CAPACITY, 0], "a position lies beyond the cache or the rotary tables"),
        ([2, 1], [0, 5], "a position lies beyond"),
        ([-1, 4], [3, 5], "a position lies beyond"),
        ([2, 2], [5, 5], "lengths must be as many as the rows together"),
        ([1, 1], [5, 5], "lengths must be as many"),
        ([3], [5], r"lengths and last must be \[slots\]"),
    ],
)
def test_positions_beyond_what_is_there_are_refused(tmp_path: Path, lengths: list[int], last: list[int], message: str) -> None:
    given = attention_inputs([2, 1], [1, 0])
    given |= {"lengths": np.array(lengths, np.int32), "last": np.array(last, np.int32)}
    with pytest.raises(Exception, match=message):
        attention_session(tmp_path).run(None, given)


@needs_library
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads must be a multiple of kv_heads"),
        ({"window": -1}, "window at least 0"),
        ({"kv_heads": 4}, "k and v must be|caches must be"),
        ({"tables": 8}, "beyond the cache or the rotary tables"),
    ],
)
def test_what_attention_does_not_take_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        attention_session(tmp_path, **changes).run(None, attention_inputs([2, 1], [12, 3]))


# ------------------------------------------------------------------------------------------------ bundles


@needs_library
@pytest.mark.parametrize(("name", "error"), [("float", 1e-10), ("int8", 1e-3), ("int4", 1e-3)])
def test_an_engine_gives_like_logits_in_either_form(demo_bundle: Path, name: str, error: float) -> None:
    bundle = open_bundle(demo_bundle)
    entry = bundle.engine(name)
    random = np.random.default_rng(0)
    texts = [random.integers(3, entry.vocab_size, count) for count in (1, 7, 60)]
    logits = []
    for kernels in (OFF, own_kernels()):
        form, library = kernels.form(entry)
        engine = OnnxEngine(bundle.path(form.graph), form, library=library)
        feeds = [Feed(slot, 0, text, np.arange(len(text))) for slot, text in enumerate(texts)]
        scores = engine.score(feeds)
        logits.append([scores.logits(i).copy() for i in range(len(feeds))])
        engine.close()
    # products are the same integers; attention adds in another order, and now and then a rounding to int8 falls the other way
    for stock, own in zip(*logits, strict=True):
        assert np.square(own - stock).mean() < error * np.square(stock).mean()


@needs_library
def test_a_bundle_says_what_runs_it(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = own_kernels().name
    params = SamplingParams(max_new_tokens=8)
    with load(demo_bundle, "int8 > float") as own, load(demo_bundle, "int8 > float", kernels="off") as stock:
        assert own.kernels["int8"] == name
        assert own.kernels["float"] == name
        assert stock.kernels == dict.fromkeys(("int8", "float"), "stock (--kernels off)")
        assert own.generate("A baker has", params).ids == stock.generate("A baker has", params).ids
    assert generate_main([str(demo_bundle), "--stats", "--chain", "int8", "--max-new-tokens", "2", "A baker has"]) == 0
    assert f"kernels: int8 {name}" in capsys.readouterr().err


def test_on_a_gpu_there_is_nothing_to_say(demo_bundle: Path) -> None:
    assert describe_kernels(ModelOptions(provider="cuda"), open_bundle(demo_bundle), ["int8"]) == {}


def test_an_export_without_own_operators(tmp_path: Path) -> None:
    assert export_main(["--model", "demo", "--engines", "int8", "--kernels", "off", "--output", str(tmp_path / "b")]) == 0
    entry = open_bundle(tmp_path / "b").engine("int8")
    assert entry.own is None
    assert not any(path.endswith(".own.onnx") for path in entry.files)
    with load(tmp_path / "b", "int8") as model:
        assert model.kernels["int8"].startswith("stock")
        assert model.generate("A baker has", SamplingParams(max_new_tokens=4)).ids


def test_a_graph_that_is_not_listed_is_not_loaded(demo_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_bundle, tmp_path / "b")
    manifest = json.loads((tmp_path / "b/manifest.json").read_text(encoding="utf-8"))
    manifest["engines"]["int8"]["own"]["graph"] = "elsewhere.onnx"
    (tmp_path / "b/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match=r"engine int8 needs 'elsewhere\.onnx', which is not listed"):
        open_bundle(tmp_path / "b")


# ------------------------------------------------------------------------------------------------ the library


def test_a_library_of_something_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF, but of another processor")
    found = open_library(tmp_path / "broken.so")
    assert (found.name, found.library) == ("stock", None)
    assert found.reason == f"{tmp_path / 'broken.so'} cannot be loaded here; install quasar-toolchain again on this machine"


def test_an_old_runtime_is_not_given_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "__version__", "1.16.3")
    assert open_library(tmp_path / "any.so").reason == "own operators need onnxruntime 1.17, and this is 1.16.3"


def test_without_the_library_the_stock_form_runs(demo_bundle: Path) -> None:
    entry = open_bundle(demo_bundle).engine("int8")
    missing = Kernels(reason="own operators were not built")
    assert missing.form(entry) == (entry, None)
    assert missing.describe(entry) == "stock (own operators were not built)"
    there = Kernels("avx2", Path("library.so"))
    assert there.form(entry) == (entry.in_own_operators, Path("library.so"))
    assert entry.in_own_operators.graph == "int8.own.onnx"
    assert entry.in_own_operators.attention == "ragged"
    alone = dataclasses.replace(entry, own=None)
    assert there.form(alone) == (alone, None)
    assert there.describe(alone).startswith("stock (it was exported with --kernels off")


@needs_library
def test_a_lesser_instruction_set_can_be_asked_for() -> None:
    asked = "from quasar.engines.kernels.library import own_kernels; print(own_kernels().name)"
    done = subprocess.run(
        [sys.executable, "-c", asked], env={"QUASAR_KERNELS": "avx2"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "avx2"


@pytest.mark.parametrize("build", ["build_wheel", "build_editable"])
def test_an_installation_without_a_compiler_has_everything_else(tmp_path: Path, build: str) -> None:
    source = tmp_path / "source"
    ignored = (".git", ".venv*", "build", "dist", "*.egg-info", "tests", "docs", ".*_cache", "*.so")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*ignored))
    (tmp_path / "wheel").mkdir()
    make = f"from setuptools import build_meta; build_meta.{build}({str(tmp_path / 'wheel')!r}, {{'editable_mode': 'strict'}})"
    environment = {"PATH": "/usr/bin:/bin", "CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
    done = subprocess.run([sys.executable, "-c", make], cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'building extension "quasar.engines.kernels._operators" failed' in done.stdout + done.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not any("_operators" in name for name in archive.namelist())
        if build == "build_wheel":
            assert "quasar/engines/kernels/library.py" in archive.namelist()
