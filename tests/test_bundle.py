from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quasar.engines.bundle.bundle import MANIFEST, Bundle, atomic_bundle, check_output, list_files, open_bundle, write_manifest
from quasar.engines.bundle.manifest import (
    FORMAT_VERSION,
    SAMPLING,
    BundleFile,
    EngineEntry,
    Manifest,
)
from quasar.engines.bundle.parsing import ENGINE_NAME, parse_manifest
from quasar.engines.cache import LAYOUTS, CacheSpec
from quasar.engines.errors import BundleError, UsageError

CONTENT = {"int8/model.onnx": b"graph", "int8/weights.bin": b"\x00weights" * 9, "tokenizer/tokenizer.json": b"{}"}
INT8 = EngineEntry(
    name="int8",
    backend="onnxruntime",
    precision="W8A8",
    attention="packed",
    graph="int8/model.onnx",
    files=("int8/model.onnx", "int8/weights.bin"),
    vocab_size=64,
    cache=CacheSpec(layers=2, heads=2, length=128, head_dim=8, dtype="float32", slots=8, owner="int8"),
    model="demo",
    layers=(0, 3),
    float_linears=("lm_head",),
    gate={"passed": True, "figures": {"mean_kl": 0.001, "note": None}},
)
MANIFEST_OF_CONTENT = Manifest(
    model={"id": "demo", "revision": None},
    engines={"int8": INT8},
    files=tuple(BundleFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in CONTENT.items()),
    tokenizer=("tokenizer/tokenizer.json",),
    stop_token_ids=(2, 0),
    default_chain="prompt-lookup > int8",
    calibration={"alpha": {"lm_head": 0.5}},
    thresholds={},
    versions={"quasar": "0.1.0"},
    sampling={"temperature": 0.6, "top_k": 20},
)
VALID: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(MANIFEST_OF_CONTENT)))

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
HOSTILE_STRINGS = st.one_of(
    TEXT,
    st.sampled_from(["", ".", "..", "/", "../x", "int8", "int8/model.onnx/x", "\0", "a" * 300, "b/" * 3000, "\ud800"]),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**64, 10**400]),
    st.floats(),
    HOSTILE_STRINGS,
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


PLACES = list(paths_of(VALID))
DELETED = object()


def mutated(path: tuple[Any, ...], value: Any, whole: Any = None) -> Any:
    """A manifest, else the valid one, with one value replaced or deleted."""
    if not path:
        return None if value is DELETED else value
    manifest = copy.deepcopy(VALID if whole is None else whole)
    holder = manifest
    for key in path[:-1]:
        holder = holder[key]
    if value is DELETED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return manifest


def rewrite(root: Path, manifest: Any) -> None:
    (root / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def fill(root: Path) -> Path:
    for path, data in CONTENT.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    write_manifest(root, MANIFEST_OF_CONTENT)
    return root


def with_first_path(path: str) -> Any:
    """The valid manifest, its first file listed and used under another path."""
    manifest = mutated(("files", 0, "path"), path)
    manifest["engines"]["int8"]["graph"] = path
    manifest["engines"]["int8"]["files"][0] = path
    return manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return fill(tmp_path / "bundle")


@pytest.fixture(scope="module")
def reused_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("bundle"))


# ------------------------------------------------------------------------------------------------ reading

NAMES = st.text("abc/", min_size=1, max_size=6)
FIGURES = st.dictionaries(NAMES, st.one_of(st.none(), st.booleans(), st.floats(-1e9, 1e9), NAMES), max_size=3)
SIZES = ("heads", "length", "head_dim", "slots")
CACHES = st.builds(
    CacheSpec, **dict.fromkeys(("layers", *SIZES), st.integers(1, 1024)), dtype=st.sampled_from(LAYOUTS["positions"])
)
ENGINES = st.builds(
    EngineEntry,
    name=st.from_regex(ENGINE_NAME, fullmatch=True),
    **dict.fromkeys(("backend", "precision", "attention", "graph", "model"), NAMES),
    **dict.fromkeys(("files", "float_linears"), st.lists(NAMES, max_size=3).map(tuple)),
    vocab_size=st.integers(1, 1024),
    cache=CACHES,
    layers=st.sets(st.integers(0, 1023), min_size=1, max_size=9).map(lambda layers: tuple(sorted(layers))),
    gate=FIGURES,
).map(lambda e: dataclasses.replace(e, cache=dataclasses.replace(e.cache, layers=len(e.layers), owner=e.name)))
MANIFESTS = st.builds(
    Manifest,
    model=FIGURES,
    engines=st.lists(ENGINES, min_size=1, max_size=3).map(lambda engines: {engine.name: engine for engine in engines}),
    files=st.lists(st.builds(BundleFile, NAMES, st.integers(), NAMES), max_size=3).map(tuple),
    tokenizer=st.lists(NAMES, max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    default_chain=NAMES,
    calibration=FIGURES,
    thresholds=FIGURES,
    versions=st.dictionaries(NAMES, NAMES, max_size=3),
    sampling=st.dictionaries(st.sampled_from(SAMPLING), st.one_of(st.floats(0, 1e9), st.integers(0, 10**9)), max_size=3),
    format_version=st.just(FORMAT_VERSION),
)


@settings(max_examples=100, deadline=None)
@given(MANIFESTS)
def test_any_manifest_survives_writing_and_reading(reused_bundle: Path, manifest: Manifest) -> None:
    write_manifest(reused_bundle, manifest)
    assert parse_manifest((reused_bundle / MANIFEST).read_text(encoding="utf-8"), "here") == manifest


@pytest.mark.parametrize("verify", [False, True])
def test_an_intact_bundle_opens_as_it_was_written(bundle: Path, verify: bool) -> None:
    opened = open_bundle(str(bundle), verify)
    assert opened.manifest == MANIFEST_OF_CONTENT
    assert opened.engine("int8") == INT8
    assert opened.path("int8/weights.bin").read_bytes() == CONTENT["int8/weights.bin"]


def test_a_bundle_opens_through_a_link_to_it_and_with_links_inside_it(bundle: Path, tmp_path: Path) -> None:
    (bundle / "int8/weights.bin").rename(bundle / "int8/blob")
    (bundle / "int8/weights.bin").symlink_to("blob")
    (tmp_path / "link").symlink_to(bundle)
    assert open_bundle(tmp_path / "link", verify=True).manifest == MANIFEST_OF_CONTENT


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES)
def test_json_that_is_no_manifest_is_a_bundle_error(value: Any) -> None:
    with pytest.raises(BundleError, match=r"^here: "):
        parse_manifest(json.dumps(value), "here")


@settings(max_examples=100, deadline=None)
@given(st.text())
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example("1" * 5000)
@example("\ufeff{}")
def test_text_that_is_no_manifest_is_a_bundle_error(text: str) -> None:
    with pytest.raises(BundleError, match=r"^here: "):
        parse_manifest(text, "here")


def parsed(manifest: Any) -> Manifest | BundleError:
    try:
        return parse_manifest(json.dumps(manifest), "here")
    except BundleError as error:
        return error


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), st.one_of(st.just(DELETED), JSON_VALUES))
def test_a_mutated_manifest_parses_to_its_types_or_is_a_bundle_error(path: tuple[Any, ...], value: Any) -> None:
    manifest = parsed(mutated(path, value))
    if isinstance(manifest, BundleError):
        assert str(manifest).startswith("here: ")
        return
    assert all(type(token) is int for token in manifest.stop_token_ids)
    assert all(isinstance(path, str) for path in manifest.tokenizer)
    for file in manifest.files:
        assert (type(file.path), type(file.bytes), type(file.sha256)) == (str, int, str)
    for engine in manifest.engines.values():
        assert isinstance(engine.graph, str)
        assert all(isinstance(name, str) for name in engine.files + engine.float_linears)
        cache = engine.cache
        assert cache.owner in manifest.engines
        assert cache.dtype in LAYOUTS[cache.layout]
        for number in (engine.vocab_size, cache.layers, cache.heads, cache.length, cache.head_dim, cache.slots):
            assert type(number) is int
            assert number > 0


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), st.one_of(st.just(DELETED), JSON_VALUES), st.booleans())
def test_a_mutated_manifest_opens_or_is_a_bundle_error(
    reused_bundle: Path, path: tuple[Any, ...], value: Any, verify: bool
) -> None:
    fill(reused_bundle)
    rewrite(reused_bundle, mutated(path, value))
    with contextlib.suppress(BundleError):
        opened = open_bundle(reused_bundle, verify)
        assert all(opened.path(file.path).is_file() for file in opened.manifest.files)


@settings(max_examples=100, deadline=None)
@given(HOSTILE_STRINGS)
def test_any_file_path_opens_or_is_a_bundle_error(reused_bundle: Path, path: str) -> None:
    fill(reused_bundle)
    rewrite(reused_bundle, with_first_path(path))
    with contextlib.suppress(BundleError):
        assert open_bundle(reused_bundle).path(path).read_bytes() == CONTENT["int8/model.onnx"]


REQUIRED = [
    *((key,) for key in VALID if key != "sampling"),
    *(("engines", "int8", key) for key in VALID["engines"]["int8"] if key not in ("name", "plan", "own")),
    *(("engines", "int8", "cache", key) for key in VALID["engines"]["int8"]["cache"] if key != "layout"),
    *(("files", 0, key) for key in VALID["files"][0]),
]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: str(path[-1]))
def test_a_missing_field_is_named(path: tuple[Any, ...]) -> None:
    with pytest.raises(BundleError, match=f"'{path[-1]}' is missing"):
        parse_manifest(json.dumps(mutated(path, DELETED)), "here")


def test_a_bundle_without_sampling_has_no_defaults() -> None:
    assert parse_manifest(json.dumps(mutated(("sampling",), DELETED)), "here").sampling == {}


@pytest.mark.parametrize(
    "sampling",
    [None, [], 0.6, {"beam": 4}, {"seed": 1}, {"temperature": "hot"}, {"temperature": None}, {"top_k": True}, {"top_p": -1},
     {"top_k": 10**400}, {"temperature": float("nan")}, {"temperature": float("inf")}],
)  # fmt: skip
def test_sampling_that_cannot_be_is_refused(sampling: Any) -> None:
    with pytest.raises(BundleError, match=r"here: sampling.*export the bundle again"):
        parse_manifest(json.dumps(mutated(("sampling",), sampling)), "here")


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, -1])
def test_another_format_version_is_refused_by_its_number(bundle: Path, version: int) -> None:
    rewrite(bundle, mutated(("format_version",), version))
    with pytest.raises(BundleError, match=rf"version {version}\b.*reads {FORMAT_VERSION}"):
        open_bundle(bundle)


@pytest.mark.parametrize("field", [("vocab_size",), *(("cache", size) for size in ("layers", *SIZES))], ids=lambda f: f[-1])
@pytest.mark.parametrize("value", [0, -1, 1 << 40, True, 1.0, "8", None])
def test_an_absurd_shape_is_refused_by_its_field(field: tuple[str, ...], value: Any) -> None:
    with pytest.raises(BundleError, match=f"engine int8: {'.*'.join(field)}"):
        parse_manifest(json.dumps(mutated(("engines", "int8", *field), value)), "here")


@pytest.mark.parametrize("dtype", ["int8", "", "Float32", None, 4])
def test_a_cache_of_another_type_is_refused(dtype: Any) -> None:
    with pytest.raises(BundleError, match="engine int8: cache: dtype"):
        parse_manifest(json.dumps(mutated(("engines", "int8", "cache", "dtype"), dtype)), "here")


def with_owner(**other: Any) -> str:
    """A manifest whose int4 engine lives in the cache of int4-a16, of which some fields may be changed."""
    manifest = copy.deepcopy(VALID)
    engine = manifest["engines"]["int8"]
    cache = {**engine["cache"], "owner": "int4-a16"}
    manifest["engines"]["int4"] = {**engine, "cache": cache}
    manifest["engines"]["int4-a16"] = {**engine, "cache": {**cache, **other.pop("cache", {})}, **other}
    return json.dumps(manifest)


def test_an_engine_may_live_in_the_cache_of_another_one() -> None:
    engines = parse_manifest(with_owner(), "here").engines
    assert {name: engine.cache.owner for name, engine in engines.items()} == {
        "int8": "int8", "int4": "int4-a16", "int4-a16": "int4-a16",
    }  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"cache": {"owner": "int4"}},
        {"cache": {"owner": "int8"}},
        {"cache": {"length": 64}},
        {"cache": {"heads": 1}},
        {"cache": {"dtype": "float16"}},
        {"cache": {"slots": 1}},
        {"layers": (0, 2)},
        {"model": "another"},
        {"vocab_size": 65},
    ],
    ids=str,
)
def test_an_owner_whose_cache_is_another_one_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"engine int4(-a16)?: owner of its cache is .*export the bundle again"):
        parse_manifest(with_owner(**other), "here")


@pytest.mark.parametrize("owner", ["float", "", "x" * 500])
def test_an_owner_that_is_not_in_the_bundle_is_refused(owner: str) -> None:
    with pytest.raises(BundleError, match="engine int8: owner of its cache is"):
        parse_manifest(json.dumps(mutated(("engines", "int8", "cache", "owner"), owner)), "here")


@pytest.mark.parametrize("layers", [[], [0], [0, 1, 2], [3, 0], [0, 0], [-1, 3], [0, 1 << 40], [0, "3"], [0, True], "03", None])
def test_layers_that_cannot_be_are_refused(layers: Any) -> None:
    with pytest.raises(BundleError, match="engine int8: layers"):
        parse_manifest(json.dumps(mutated(("engines", "int8", "layers"), layers)), "here")


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "int8/../../x",
        "/etc/passwd",
        "..",
        "int8\\model.onnx",
        "..\\x",
        "int8/model.onnx\0",
        "",
        "./../bundle2/x",
    ],
)
def test_a_path_out_of_the_bundle_is_refused(bundle: Path, path: str) -> None:
    (bundle.parent / "x").write_bytes(CONTENT["int8/model.onnx"])
    rewrite(bundle, with_first_path(path))
    with pytest.raises(BundleError, match="leaves the bundle"):
        open_bundle(bundle)
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle(bundle, MANIFEST_OF_CONTENT).path(path)


@pytest.mark.parametrize("path", ["\ud800", "int8/\udfff.onnx", "a" * 300, "b/" * 3000 + "b", "é" * 200])
def test_a_path_that_no_file_system_holds_is_a_bundle_error(bundle: Path, path: str) -> None:
    rewrite(bundle, with_first_path(path))
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "int8/model.onnx").rename(tmp_path / "outside")
    (bundle / "int8/model.onnx").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"model\.onnx.*link out of the bundle"):
        open_bundle(bundle)


def test_a_linked_folder_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "int8").rename(tmp_path / "outside")
    (bundle / "int8").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(BundleError, match="link out of the bundle"):
        open_bundle(bundle)


def test_a_link_to_itself_is_a_bundle_error(bundle: Path) -> None:
    (bundle / "int8/model.onnx").unlink()
    (bundle / "int8/model.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_bundle(bundle)


@pytest.mark.parametrize("path", CONTENT)
def test_a_missing_file_is_named(bundle: Path, path: str) -> None:
    (bundle / path).unlink()
    with pytest.raises(BundleError, match=f"{path}: missing"):
        open_bundle(bundle)


def test_a_folder_in_the_place_of_a_file_counts_as_missing(bundle: Path) -> None:
    (bundle / "int8/model.onnx").unlink()
    (bundle / "int8/model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model\.onnx: missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("path", CONTENT)
def test_a_truncated_file_is_named_with_both_sizes(bundle: Path, path: str) -> None:
    size = len(CONTENT[path])
    (bundle / path).write_bytes(CONTENT[path][:-1])
    with pytest.raises(BundleError, match=rf"{path}: {size - 1} bytes.*{size}"):
        open_bundle(bundle)


@pytest.mark.parametrize("path", CONTENT)
def test_an_altered_file_of_the_same_size_is_found_by_its_hash(bundle: Path, path: str) -> None:
    (bundle / path).write_bytes(bytes([CONTENT[path][0] ^ 1]) + CONTENT[path][1:])
    open_bundle(bundle)
    with pytest.raises(BundleError, match=f"{path}: altered"):
        open_bundle(bundle, verify=True)


@pytest.mark.parametrize("place", [("engines", "int8", "graph"), ("engines", "int8", "files", 1), ("tokenizer", 0)], ids=str)
def test_a_needed_file_must_be_listed(bundle: Path, place: tuple[Any, ...]) -> None:
    (bundle / "extra").write_bytes(b"")
    rewrite(bundle, mutated(place, "extra"))
    with pytest.raises(BundleError, match="'extra', which is not listed"):
        open_bundle(bundle)


def test_an_unknown_engine_is_a_usage_error_with_those_that_are_there(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"'float'.*it has int8"):
        open_bundle(bundle).engine("float")


@pytest.mark.parametrize("place", ["nothing", "file"])
def test_no_directory_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=place):
        open_bundle(tmp_path / place)


@pytest.mark.parametrize("manifest", [None, b"", b"\xff\xfe\x00", b"[" * 200_000])
def test_an_unreadable_manifest_is_a_bundle_error_that_names_it(bundle: Path, manifest: bytes | None) -> None:
    (bundle / MANIFEST).unlink()
    if manifest is not None:
        (bundle / MANIFEST).write_bytes(manifest)
    with pytest.raises(BundleError, match=str(bundle / MANIFEST)):
        open_bundle(bundle)


# ------------------------------------------------------------------------------------------------ writing


def export(output: Path, marker: bytes = b"new", failure: BaseException | None = None) -> None:
    with atomic_bundle(output) as partial:
        fill(partial)
        (partial / "marker").write_bytes(marker)
        write_manifest(partial, dataclasses.replace(MANIFEST_OF_CONTENT, files=list_files(partial)))
        assert not (output / "marker").exists() or (output / "marker").read_bytes() != marker
        if failure is not None:
            raise failure


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


FAILURES = [ValueError("x"), KeyboardInterrupt(), SystemExit(1), BundleError("x")]


def test_a_finished_bundle_stands_alone_at_the_output(tmp_path: Path) -> None:
    export(tmp_path / "deep" / "out")
    assert names_in(tmp_path / "deep") == {"out"}
    assert open_bundle(tmp_path / "deep" / "out", verify=True).manifest.engines == MANIFEST_OF_CONTENT.engines
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failed_export_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        export(tmp_path / "out", failure=failure)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
def test_a_failed_export_keeps_the_old_bundle(tmp_path: Path, failure: BaseException) -> None:
    export(tmp_path / "out", b"old")
    with pytest.raises(type(failure)):
        export(tmp_path / "out", failure=failure)
    assert names_in(tmp_path) == {"out"}
    assert (tmp_path / "out" / "marker").read_bytes() == b"old"
    open_bundle(tmp_path / "out", verify=True)


def test_a_new_bundle_replaces_the_whole_old_one(tmp_path: Path) -> None:
    export(tmp_path / "out", b"old")
    export(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}
    assert (tmp_path / "out" / "marker").read_bytes() == b"new"


def test_a_bundle_with_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    export(tmp_path / "out", b"old")
    (tmp_path / "out" / "notes.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        export(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "precious"
    assert names_in(tmp_path) == {"out"}


def test_a_manifest_of_something_else_makes_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / MANIFEST).write_text('{"name": "my web app"}')
    with pytest.raises(UsageError, match="not a bundle"):
        export(tmp_path / "site")
    assert names_in(tmp_path / "site") == {MANIFEST}


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()], ids=repr)
def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    export(tmp_path / "out", b"old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(failure)):
        export(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}
    assert (tmp_path / "out" / "marker").read_bytes() == b"old"


def test_a_linked_output_is_replaced_and_leaves_nothing_behind(tmp_path: Path) -> None:
    export(tmp_path / "target", b"old")
    (tmp_path / "out").symlink_to(tmp_path / "target", target_is_directory=True)
    export(tmp_path / "out")
    assert names_in(tmp_path) == {"out", "target"}
    assert (tmp_path / "out" / "marker").read_bytes() == b"new"


def test_an_empty_directory_may_become_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}
    open_bundle(tmp_path / "out")


def test_a_directory_that_is_no_bundle_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="out: not a bundle"):
        export(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"
    assert names_in(tmp_path) == {"out"}


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_file_at_the_output_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "out").write_text("precious")
    else:
        (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="out: a file is there"):
        check_output(tmp_path / "out")
    with pytest.raises(UsageError, match="out: a file is there"):
        export(tmp_path / "out")
    assert names_in(tmp_path) == {"out"}


def test_listed_files_carry_path_size_and_hash_without_the_manifest(bundle: Path) -> None:
    assert {file.path: file for file in list_files(bundle)} == {file.path: file for file in MANIFEST_OF_CONTENT.files}


RANGE = {"least": 1, "best": 4, "most": 33}
PLAN = {
    "library": "tensorrt-rtx",
    "version": "1.7.1.116",
    "compute_capabilities": ["8.9"],
    "plan": "int8/model.onnx",
    "graph": "int8/model.onnx",
    "files": ["int8/model.onnx", "int8/weights.bin"],
    "precision": "w8a8",
    "cache": {**VALID["engines"]["int8"]["cache"], "dtype": "float16"},
    "profiles": [{"batch": RANGE, "length": RANGE, "rows": RANGE, "context": RANGE}],
    "stripped": False,
    "version_compatible": False,
    "gate": {},
}


def planned(path: tuple[Any, ...] = (), value: Any = DELETED) -> str:
    """A manifest whose engine has a plan, of which one field may be changed."""
    whole = mutated(("engines", "int8", "plan"), PLAN)
    return json.dumps(mutated(("engines", "int8", "plan", *path), value, whole) if path else whole)


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = parse_manifest(planned(), "here").engines["int8"].plan
    assert plan is not None
    assert json.loads(json.dumps(dataclasses.asdict(plan))) == {**PLAN, "listing": None}
    listed = parse_manifest(planned(("listing",), "int8.layers.txt"), "here").engines["int8"].plan
    assert listed is not None
    assert listed.listing == "int8.layers.txt"


@pytest.mark.parametrize("key", PLAN)
def test_a_missing_field_of_a_plan_is_named(key: str) -> None:
    with pytest.raises(BundleError, match=f"engine int8: plan: '{key}' is missing"):
        parse_manifest(planned((key,)), "here")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("library",), "tensorflow", "'tensorflow' is none of tensorrt, tensorrt-rtx"),
        (("profiles",), [], "no profile"),
        (("profiles", 0, "rows"), {"least": 4, "best": 2, "most": 8}, "4, 2 and 8 are not in order"),
        (("profiles", 0, "batch"), {"least": 0, "best": 2, "most": 8}, "least is 0"),
        (("stripped",), 1, "stripped: expected bool"),
        (("cache", "slots"), 1 << 20, "plan: cache: slots is 1048576"),
        (("cache", "dtype"), "int4", "plan: cache: dtype 'int4'"),
        (("cache", "owner"), "float", "engine int8: owner of its cache is 'float'"),
        (("listing",), 7, "plan: listing: expected str"),
    ],
)
def test_a_hostile_plan_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_manifest(planned(path, value), "here")


def test_a_plan_needs_files_that_are_listed(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["engines"]["int8"]["plan"] = {**PLAN, "files": ["elsewhere.plan"]}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"engine int8 needs 'elsewhere\.plan'"):
        open_bundle(bundle)
    manifest["engines"]["int8"]["plan"] = {**PLAN, "listing": "elsewhere.txt"}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"engine int8 needs 'elsewhere\.txt'"):
        open_bundle(bundle)


def test_kernels_beside_a_plan_make_no_bundle_foreign(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["engines"]["int8"]["plan"] = PLAN
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / "int8/model.onnx.GPU.cuda-13.4.kernels").write_text("compiled")
    open_bundle(bundle, verify=True)
    check_output(bundle)
    with atomic_bundle(bundle) as root:
        (root / MANIFEST).write_text("{}")
    assert names_in(bundle) == {MANIFEST}
    fill(bundle)
    (bundle / "int8/other.kernels").write_text("precious")
    with pytest.raises(UsageError, match=r"\(int8/other\.kernels\)"):
        check_output(bundle)


@pytest.mark.parametrize("name", ["../escaped", "a/b", "", "Int8", "int8.plan", "-", "x" * 5 + "\n"])
def test_an_engine_with_a_name_that_could_be_a_path_is_refused(name: str) -> None:
    manifest = copy.deepcopy(VALID)
    manifest["engines"][name] = manifest["engines"]["int8"]
    with pytest.raises(BundleError, match="has a name that no export gives"):
        parse_manifest(json.dumps(manifest), "here")
