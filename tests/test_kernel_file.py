"""Tier 1: what TensorRT-RTX compiled for a plan is kept in a file beside it, on a fake of it; that never fails an engine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import FakeCuda
from models import feed
from plans import Rig, SmallModel, small_model, usual_profiles

from quasar.engines.errors import QuasarError

FILE = "engine.plan.Fake-GPU.cuda-13.4.kernels"
IDS = np.random.default_rng(5).integers(0, 97, 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture
def model(written: SmallModel, tmp_path: Path) -> SmallModel:
    """One beside whose plan nothing lies."""
    return SmallModel(Path(shutil.copytree(written.folder, tmp_path / "model")), written.entry)


def run(rig: Rig, *lengths: int) -> list[str]:
    """Load the plan, run passes of so many tokens, and close it: what was compiled meanwhile."""
    before = len(rig.library.compiled)
    engine = rig.load(keep_kernels=True)
    for length in lengths:
        engine.score([feed(IDS[:length], 0, rows=[length - 1])])
    engine.close()
    return rig.library.compiled[before:]


def kernels(model: SmallModel) -> list[str]:
    return sorted(path.name for path in model.folder.iterdir() if path.suffix == ".kernels")


def test_the_next_start_compiles_nothing(model: SmallModel) -> None:
    rig = Rig(model, usual_profiles(model), rtx=True)
    assert len(run(rig, 1, 4)) == 3
    assert kernels(model) == [FILE]
    again = Rig(model, usual_profiles(model), rtx=True)
    assert run(again, 1, 4) == []
    assert len(run(again, 8)) == 1  # a shape that has not come yet
    assert run(Rig(model, usual_profiles(model), rtx=True), 1, 4, 8) == []
    assert kernels(model) == [FILE]


def test_what_a_start_compiled_is_there_before_the_engine_is_closed(model: SmallModel) -> None:
    rig = Rig(model, usual_profiles(model), rtx=True)
    rig.load(keep_kernels=True)  # and killed
    other = Rig(model, usual_profiles(model), rtx=True)
    assert run(other) == []


@pytest.mark.parametrize("rtx", [False, True])
def test_nothing_is_kept_where_nobody_asks_or_the_library_compiles_nothing(model: SmallModel, rtx: bool) -> None:
    rig = Rig(model, usual_profiles(model), rtx)
    rig.load(keep_kernels=not rtx).close()
    assert kernels(model) == []


def test_each_gpu_and_driver_has_a_file(model: SmallModel) -> None:
    run(Rig(model, usual_profiles(model), rtx=True))
    run(Rig(model, usual_profiles(model), rtx=True, cuda=FakeCuda(driver=13050)))
    assert kernels(model) == [FILE, FILE.replace("13.4", "13.5")]


@pytest.mark.parametrize("content", [b"", b"no kernels", b'[["12.0", 13040, "11.4.0"], ["context"]]'])
def test_what_does_not_fit_is_compiled_again_and_replaced(model: SmallModel, content: bytes) -> None:
    (model.folder / FILE).write_bytes(content)
    rig = Rig(model, usual_profiles(model), rtx=True)
    assert run(rig) == ["context"]
    assert run(Rig(model, usual_profiles(model), rtx=True)) == []


def test_a_pipe_in_its_place_is_not_waited_for(model: SmallModel) -> None:
    os.mkfifo(model.folder / FILE)
    assert run(Rig(model, usual_profiles(model), rtx=True)) == ["context"]


def test_a_file_that_cannot_be_written_is_no_failure(model: SmallModel) -> None:
    (model.folder / FILE).mkdir()  # root may write into any folder
    assert run(Rig(model, usual_profiles(model), rtx=True), 1, 4)
    assert kernels(model) == [FILE]  # nothing half-written beside it
    assert list((model.folder / FILE).iterdir()) == []


def test_an_engine_that_fails_to_load_leaves_no_file(model: SmallModel) -> None:
    rig = Rig(model, usual_profiles(model), rtx=True)
    rig.library.most_contexts = 1
    with pytest.raises(QuasarError, match="TensorRT makes no context"):
        rig.load(keep_kernels=True)
    assert kernels(model) == []
