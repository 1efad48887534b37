"""Opening plans: what does not fit is refused in one line that says how to mend it."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_context
import fake_tensorrt
import numpy as np
import pytest
from fake_cuda import FakeCuda, cudaError_t
from fake_tensorrt import FakeTensorRt, profile
from models import feed
from plans import REBUILD, Rig, SmallModel, small_model, usual_profiles

from quasar.engines.bundle.manifest import EngineEntry
from quasar.engines.errors import BundleError, QuasarError, UsageError
from quasar.engines.tensorrt.cuda import Device, DeviceMemoryError, has_gpu
from quasar.engines.tensorrt.engine import TensorRtEngine
from quasar.engines.tensorrt.shapes import PassShape, choose_profile, context_length, limit_passed, round_up

MIB = 1 << 20


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("batched"), slots=3)


def refusal(rig: Rig, kind: type[QuasarError], entry: EngineEntry | None = None) -> str:
    """The one line with which loading is refused; nothing stays allocated."""
    with pytest.raises(QuasarError) as caught:
        rig.load(entry=entry)
    assert type(caught.value) is kind
    assert (rig.cuda.blocks, rig.cuda.streams) == ({}, {})
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_plan(rig: Rig, **changes: Any) -> EngineEntry:
    assert rig.entry.plan is not None
    return dataclasses.replace(rig.entry, plan=dataclasses.replace(rig.entry.plan, **changes))


def test_an_engine_without_a_plan_says_how_to_get_one(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    message = refusal(rig, UsageError, single.entry)
    assert message == "engine small: there is no plan of it in this bundle; export it with --backend tensorrt-rtx"


@pytest.mark.parametrize(
    ("installed", "compatible", "loads"),
    [("11.4.0", False, True), ("11.5.0", False, False), ("11.5.0", True, True), ("11.10.0", True, True), ("11.3.9", True, False)],
)
def test_another_version_is_refused_unless_the_plan_is_compatible(
    single: SmallModel, installed: str, compatible: bool, loads: bool
) -> None:
    rig = Rig(single, usual_profiles(single), changes={"version_compatible": compatible})
    rig.library = FakeTensorRt(rig.cuda, version=installed)
    if loads:
        rig.load()
        assert rig.library.host_code_allowed == compatible
    else:
        newer = " or newer" if compatible else ""
        message = refusal(rig, BundleError)
        assert message.endswith(f"built for tensorrt 11.4.0{newer}, and {installed} is installed; build it again: {REBUILD}")


def test_another_gpu_is_refused(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single), cuda=FakeCuda(capability="12.0"), changes={"compute_capabilities": ("8.6", "8.9")})
    message = refusal(rig, BundleError)
    assert f"capability 8.6, 8.9, and Fake GPU has 12.0; build it again: {REBUILD}" in message
    Rig(single, usual_profiles(single), cuda=FakeCuda(capability="12.0"), changes={"compute_capabilities": ()}).load()


def test_whether_a_plan_runs_on_another_gpu_is_for_tensorrt_rtx_to_say(single: SmallModel) -> None:
    changes = {"compute_capabilities": ("8.6", "12.0")}
    rig = Rig(single, usual_profiles(single), True, FakeCuda(capability="12.1"), changes)
    rig.load()
    refused = Rig(single, usual_profiles(single), True, FakeCuda(capability="12.1"), changes)
    refused.library.validity = ("INVALID", 2)
    message = refusal(refused, BundleError)
    assert message.endswith(f": built for GPUs of compute capability 8.6, 12.0, and Fake GPU has 12.1; build it again: {REBUILD}")


def test_what_tensorrt_rtx_logs_of_an_invalid_plan_is_said(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single), rtx=True)
    rig.library.validity = ("INVALID", 0)
    rig.library.validity_text = "Error Code 6: API Usage Error\n(the tag does not match)"
    message = refusal(rig, BundleError)
    assert message == (
        f"{single.plan}: tensorrt-rtx says that it is not valid here: Error Code 6: API Usage Error (the tag does not match); "
        f"build it again: {REBUILD}"
    )


@pytest.mark.parametrize(
    ("diagnostics", "kind", "part"),
    [
        (4, UsageError, "the NVIDIA driver is too old for this plan; update the driver"),
        (8, UsageError, "update tensorrt-rtx and cuda-python"),
        (32, BundleError, f"this is not a whole plan; build it again: {REBUILD}"),
        (1, BundleError, f"built by another version of tensorrt-rtx; build it again: {REBUILD}"),
        (2, BundleError, f"built for GPUs of compute capability 8.9, and Fake GPU has 8.9; build it again: {REBUILD}"),
        (16, DeviceMemoryError, "too little memory for this plan"),
        (64, QuasarError, "CUDA failed"),
        (0, BundleError, f"not valid here: it does not say why; build it again: {REBUILD}"),
        (1 | 4, UsageError, "update the driver"),  # another plan would not help
    ],
)
def test_what_tensorrt_rtx_says_of_a_plan_is_believed(
    single: SmallModel, diagnostics: int, kind: type[QuasarError], part: str
) -> None:
    rig = Rig(single, usual_profiles(single), rtx=True)
    rig.library.validity = ("INVALID", diagnostics)
    message = refusal(rig, kind)
    assert message.startswith(f"{single.plan}: ")
    assert part in message


def test_a_plan_that_is_only_not_the_fastest_is_run(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single), rtx=True)
    rig.library.validity = ("SUBOPTIMAL", 2)
    rig.load()


@pytest.mark.parametrize(("content", "part"), [(b"", "the file is empty"), (b'{"graph": "eng', "(magic tag mismatch)")])
def test_a_truncated_plan_is_refused(single: SmallModel, content: bytes, part: str) -> None:
    rig = Rig(single, usual_profiles(single))
    single.plan.write_bytes(content)
    message = refusal(rig, BundleError)
    assert part in message
    assert message.endswith(f"build it again: {REBUILD}")


def tamper(model: SmallModel, **changes: Any) -> None:
    model.plan.write_text(json.dumps({**json.loads(model.plan.read_text()), **changes}))


def test_a_plan_with_other_tensors_than_the_manifest_says_is_refused(
    single: SmallModel, batched: SmallModel, tmp_path: Path
) -> None:
    rig = Rig(single, usual_profiles(single))
    for sizes, part in (
        ({"length": 128}, "past.0.key is HALF [1, 2, 64, 32], and by the manifest it is HALF [1, 2, 128, 32]"),
        ({"heads": 4}, "past.0.key is HALF [1, 2, 64, 32]"),
        ({"layers": 3}, "past.2.key, past.2.value, present.2.key of its 15 tensors"),
        ({"slots": 2}, "input_ids is INT64 [1, -1], and by the manifest it is INT64 [-1, -1]"),
        ({"dtype": "float32"}, "past.0.key is HALF [1, 2, 64, 32], and by the manifest it is FLOAT [1, 2, 64, 32]"),
    ):
        message = refusal(rig, BundleError, with_plan(rig, cache=dataclasses.replace(rig.model.entry.cache, **sizes)))
        assert part in message
        assert message.endswith(f"build it again: {REBUILD}")
    message = refusal(rig, BundleError, dataclasses.replace(rig.entry, vocab_size=96))
    assert "logits is FLOAT [1, -1, 97], and by the manifest it is FLOAT [1, -1, 96]" in message


def test_a_cache_that_is_not_updated_in_place_is_refused(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single))
    tamper(single, unaliased=["present.1.value"])
    assert f"present.1.value is not past.1.value updated in place; build it again: {REBUILD}" in refusal(rig, BundleError)


def test_other_profiles_than_the_manifest_says_are_refused(batched: SmallModel) -> None:
    rig = Rig(batched, usual_profiles(batched))
    assert rig.entry.plan is not None
    verify, _ = rig.entry.plan.profiles
    message = refusal(rig, BundleError, with_plan(rig, profiles=(verify,)))
    assert f"it has 2 profiles, and by the manifest 1; build it again: {REBUILD}" in message
    changed = {
        "batch": (profile(2, 32, 64, rows=8), "profile 1 takes input_ids of [[1, 1], [1, 32], [1, 32]]"),
        "length": (profile(1, 33, 64, rows=8), "and by the manifest of [[1, 1], [1, 33], [1, 33]]"),
        "rows": (profile(1, 32, 64, rows=9), "profile 1 takes rows of"),
        "context": (profile(1, 32, 63, rows=8), "profile 1 takes context of [[1], [64], [64]]"),
    }
    for other, part in changed.values():
        assert part in refusal(rig, BundleError, with_plan(rig, profiles=(verify, other)))


def test_a_plan_without_weights_gets_them_from_the_graph(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single), changes={"stripped": True})
    rig.load()
    assert rig.library.refitted == [str(single.graph)]
    whole = Rig(single, usual_profiles(single))
    whole.load()
    assert whole.library.refitted == []


def test_weights_that_do_not_go_in_are_refused(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single), changes={"stripped": True})
    rig.library.refuse_refit = True
    message = refusal(rig, BundleError)
    assert "the weights of engine.onnx do not go into it: no initializer named w; build it again:" in message


@pytest.mark.parametrize("scratch", [4096, 40 * MIB])
def test_too_little_memory_says_how_much_and_what_lowers_it(batched: SmallModel, scratch: int) -> None:
    """Refused before anything is allocated; with a byte more it loads."""
    rig = Rig(batched, usual_profiles(batched), cuda=FakeCuda(total=1 << 40))
    rig.library.scratch = scratch
    rig.load()
    needed = sum(len(block) for block in rig.cuda.blocks.values())
    assert needed > scratch + batched.entry.cache.bytes
    for total, enough in ((needed, True), (needed - 1, False)):
        tight = Rig(batched, usual_profiles(batched), cuda=FakeCuda(total=total))
        tight.library.scratch = scratch
        if enough:
            tight.load()
            continue
        message = refusal(tight, DeviceMemoryError)
        assert message.startswith(f"engine small: {needed / (1 << 30):.2f} GiB of GPU memory are needed (cache ")
        assert f"activations {scratch / (1 << 30):.2f}" in message
        assert message.endswith("are free; export with a smaller --max-length or --max-sequences")
        assert "cudaMalloc" not in tight.cuda.called


def test_weights_that_do_not_fit_are_refused_before_they_are_read(single: SmallModel) -> None:
    rig = Rig(single, usual_profiles(single), cuda=FakeCuda(total=1000))
    rig.library.validity = None  # type: ignore[assignment]  # not to be looked at
    message = refusal(rig, DeviceMemoryError)
    assert "(weights 0.00, cache 0.00) and 0.00 of 0.00 are free; export with a smaller --max-length" in message
    assert not message.endswith("--max-sequences")


def test_weights_that_a_plan_gets_from_its_graph_count_as_its_own(single: SmallModel, tmp_path: Path) -> None:
    copy = SmallModel(tmp_path, single.entry)
    for name in ("engine.onnx", "engine.bin"):
        (tmp_path / name).write_bytes((single.folder / name).read_bytes())
    files = ("engine.plan", "engine.onnx", "engine.bin")
    weights, cache = (tmp_path / "engine.bin").stat().st_size, single.entry.cache.bytes
    for stripped, loads in ((True, False), (False, True)):
        rig = Rig(copy, usual_profiles(copy), changes={"stripped": stripped, "files": files})
        rig.cuda.total = cache + weights + copy.plan.stat().st_size - 1
        if loads:
            rig.load()
        else:
            rig.library.Runtime = None  # type: ignore[method-assign,assignment]  # not to be read
            refusal(rig, DeviceMemoryError)


def test_logits_that_do_not_fit_leave_the_engine_usable(single: SmallModel) -> None:
    rig = Rig(single, (profile(1, 4, 64), profile(1, 32, 64)))
    engine = rig.load()
    few, many = [feed(range(4), rows=[3])], [feed(range(20))]
    expected = engine.score(few).logits(0).copy()
    rig.cuda.total = rig.cuda._used()
    with pytest.raises(DeviceMemoryError, match=r"the logits of 32 rows need 0.00 GiB .* ask for fewer rows in one pass"):
        engine.score(many).logits(0)
    np.testing.assert_array_equal(engine.score(few).logits(0), expected)


def test_logits_that_the_host_does_not_lock_leave_the_engine_usable(single: SmallModel) -> None:
    rig = Rig(single, (profile(1, 4, 64), profile(1, 32, 64)))
    engine = rig.load()
    few, many = [feed(range(4), rows=[3])], [feed(range(20))]
    expected, blocks = engine.score(few).logits(0).copy(), set(rig.cuda.blocks)
    for error, kind, part in (
        (
            "cudaErrorMemoryAllocation",
            DeviceMemoryError,
            "need 0.00 GiB of page-locked memory, which the host does not give; ask",
        ),
        ("cudaErrorLaunchFailure", QuasarError, "cudaHostAlloc failed"),
    ):
        rig.cuda.fail["cudaHostAlloc"] = cudaError_t[error]
        with pytest.raises(QuasarError, match=part) as caught:
            engine.score(many).logits(0)
        assert type(caught.value) is kind
        assert set(rig.cuda.blocks) == blocks
        np.testing.assert_array_equal(engine.score(few).logits(0), expected)
    rig.cuda.fail.clear()
    np.testing.assert_array_equal(engine.score(many).logits(0), single.reference().score(many).logits(0))


@pytest.mark.parametrize(
    ("cuda", "error", "part"),
    [
        (FakeCuda(count=0), None, "there is no NVIDIA GPU on this machine"),
        (FakeCuda(), "cudaErrorNoDevice", "there is no NVIDIA GPU on this machine"),
        (FakeCuda(driver=0), "cudaErrorInsufficientDriver", "there is no NVIDIA driver on this machine"),
        (
            FakeCuda(driver=12040),
            "cudaErrorInsufficientDriver",
            "it serves CUDA 12.4, and CUDA 13.4 is needed; update the driver",
        ),
        (
            FakeCuda(),
            "cudaErrorLaunchFailure",
            "the NVIDIA GPU does not answer (cudaErrorLaunchFailure); see what nvidia-smi says",
        ),
    ],
)
def test_a_machine_that_cannot_run_plans_says_why(cuda: FakeCuda, error: str | None, part: str) -> None:
    if error is not None:
        cuda.fail["cudaGetDeviceCount"] = cudaError_t[error]
    with pytest.raises(UsageError) as caught:
        Device(cuda)
    assert part in str(caught.value)
    assert str(caught.value).endswith("or use --backend onnxruntime")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("cudaGetDeviceCount", "cudaErrorNoDevice"),
        ("cudaSetDevice", "cudaErrorMemoryAllocation"),
        ("cudaSetDevice", "cudaErrorLaunchFailure"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_none(monkeypatch: pytest.MonkeyPatch, function: str, error: str) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr("quasar.engines.tensorrt.cuda.load_runtime", lambda: cuda)
    assert has_gpu()
    cuda.fail[function] = cudaError_t[error]
    assert not has_gpu()


def test_a_device_says_what_it_is() -> None:
    device = Device(FakeCuda(capability="12.0", total=3 << 30, driver=13020))
    assert (device.name, device.compute_capability) == ("Fake GPU", "12.0")
    assert (device.memory(), device.versions()) == ((3 << 30, 3 << 30), ("13.2", "13.4"))


def test_without_cuda_python_the_install_command_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(UsageError, match=r"cuda-python is not installed; pip install 'quasar-toolchain\[tensorrt-rtx\]'"):
        Device()


def test_without_tensorrt_the_install_command_is_printed(single: SmallModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(single, usual_profiles(single), rtx=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UsageError, match=r"tensorrt-rtx is not installed; pip install"):
        TensorRtEngine(single.plan, single.graph, rig.entry, REBUILD, device=Device(rig.cuda))


def test_importing_the_runner_loads_no_gpu_library() -> None:
    heavy = ("tensorrt", "tensorrt_rtx", "cuda", "torch")
    code = f"import sys, quasar.engines.tensorrt.engine; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("last", "max_length", "expected"),
    [(1, 4096, 256), (256, 4096, 256), (257, 4096, 512), (512, 4096, 512), (513, 4096, 1024), (1025, 1500, 1500), (9, 64, 64)],
)
def test_context_is_rounded_up_to_few_lengths(last: int, max_length: int, expected: int) -> None:
    assert context_length(last, max_length) == expected


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1, 33, 1), (2, 33, 2), (3, 33, 4), (5, 33, 8), (17, 33, 32), (33, 33, 33), (5, 6, 6), (40, 256, 64), (65, 256, 65)],
)
def test_sizes_are_rounded_up_as_far_as_they_may(count: int, most: int, expected: int) -> None:
    assert round_up(count, most) == expected


def test_profiles_are_chosen_at_their_boundaries() -> None:
    verify = profile(2, 8, 1024, least_context=512)
    prefill = profile(2, 128, 4096, rows=8)
    long = profile(2, 256, 4096, rows=1)
    profiles = (long, prefill, verify)

    def choose(*wanted: int, room: int = 4096) -> tuple[int, ...]:
        chosen = choose_profile(profiles, PassShape(*wanted), room, 4096)
        assert chosen is not None
        return (chosen[0], *dataclasses.astuple(chosen[1]))

    assert choose(1, 1, 1, 1) == (2, 1, 1, 1, 512)  # rounded up to what the profile takes
    assert choose(2, 8, 8, 1024) == (2, 2, 8, 8, 1024)
    assert choose(2, 7, 5, 1025) == (1, 2, 8, 8, 2048)
    assert choose(2, 7, 5, 1025, room=7) == (1, 2, 7, 8, 2048)
    assert choose(1, 9, 1, 9) == (1, 1, 16, 1, 256)
    assert choose(1, 128, 8, 4096) == (1, 1, 128, 8, 4096)
    assert choose(1, 129, 1, 129) == (0, 1, 129, 1, 256)
    assert choose_profile(profiles, PassShape(3, 1, 1, 1), 4096, 4096) is None
    assert choose_profile(profiles, PassShape(1, 8, 1, 8), 7, 4096) is None
    for sizes, part in (
        ((1, 257, 1, 257), "257 tokens in one pass; its plan takes 256"),
        ((1, 129, 2, 129), "logits of 2 rows in one pass of 129 tokens; its plan takes 1"),
        ((1, 8, 9, 8), "logits of 9 rows in one pass of 8 tokens; its plan takes 8"),
    ):
        wanted = PassShape(*sizes)
        assert choose_profile(profiles, wanted, 4096, 4096) is None
        assert part in limit_passed(profiles, wanted, 4096)


def test_the_fake_cuda_has_nothing_that_the_real_one_lacks() -> None:
    """And its functions take as many arguments: passing with one that does not exist would prove nothing."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name, fake in vars(FakeCuda).items():
        if not name.startswith("cuda"):
            continue
        real = getattr(runtime, name)
        if isinstance(fake, type):
            assert set(fake.__members__) <= set(real.__members__), name
        elif callable(fake):  # its text begins with its signature, `cudaMalloc(size_t size)`
            arguments = real.__doc__.split("(", 1)[1].split(")", 1)[0]
            assert len(inspect.signature(fake).parameters) - 1 == len([a for a in arguments.split(",") if a.strip()]), name


def test_the_fake_tensorrt_has_nothing_that_the_real_one_lacks() -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    fake = FakeTensorRt(FakeCuda(), rtx=True)
    for name, value in {**vars(FakeTensorRt), **vars(fake)}.items():
        if isinstance(value, enum.EnumMeta):
            real = getattr(library, name).__members__
            assert {member.name for member in value} <= set(real), name
            if issubclass(value, enum.IntEnum):
                assert {member.name: int(member) for member in value} == {n: int(real[n]) for n in value.__members__}
    assert {member.name for member in fake.ILogger.Severity} <= set(library.ILogger.Severity.__members__)
    assert {member.name for member in fake_context.DataType} <= set(library.DataType.__members__)
    engine = [name for name in vars(fake_tensorrt.Engine) if name.startswith(("get_", "num_", "create_"))]
    context = [name for name in vars(fake_context.Context) if name.startswith(("set_", "get_", "execute_"))]
    used = {
        library.ICudaEngine: [*engine, "device_memory_size_v2"],
        library.IExecutionContext: context,
        library.Runtime: ["get_engine_validity", "deserialize_cuda_engine", "engine_host_code_allowed"],
        library.Refitter: ["refit_cuda_engine", "get_missing_weights"],
        library.OnnxParserRefitter: ["refit_from_file"],
        library.IRuntimeConfig: [
            *("set_execution_context_allocation_strategy", "cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache")
        ],
    }
    for owner, names in used.items():
        assert [name for name in names if not hasattr(owner, name)] == []


def test_the_libraries_themselves_refuse_here_in_one_line(single: SmallModel) -> None:
    """With the real CUDA bindings and TensorRT-RTX, on a machine without a GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU on this machine")
    rig = Rig(single, usual_profiles(single), rtx=True)
    with pytest.raises(UsageError, match=r"no NVIDIA (driver|GPU) .* or use --backend onnxruntime"):
        TensorRtEngine(single.plan, single.graph, rig.entry, REBUILD)
    import tensorrt_rtx

    library, version = tensorrt_rtx, tensorrt_rtx.__version__
    entry = with_plan(rig, version=version)
    with pytest.raises(QuasarError) as caught:  # a real Runtime that looks at a file which is no plan
        TensorRtEngine(single.plan, single.graph, entry, REBUILD, library=library, device=Device(FakeCuda()))
    assert type(caught.value) is BundleError
    assert REBUILD in str(caught.value)
