from __future__ import annotations

import sys
from types import ModuleType

import pytest

from quasar.engines.errors import UsageError
from quasar.engines.tensorrt.library import Log, load_library, version_numbers


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library_is_one_line_with_the_install_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    with pytest.raises(UsageError) as caught:
        load_library(name)
    message = str(caught.value)
    assert message.startswith(f"{name} is not installed; ")
    assert f"pip install 'quasar-toolchain[{name}]'" in message
    assert "\n" not in message


@pytest.mark.parametrize(("version", "refused"), [("10.14.1.48", True), ("10.15.1.29", False), ("11.4.0", False), ("8.6", True)])
def test_tensorrt_before_kv_updates_is_refused(version: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if refused:
        with pytest.raises(UsageError, match=rf"tensorrt {version} is too old: 10\.15"):
            load_library("tensorrt")
    else:
        assert load_library("tensorrt") is module


def test_a_placeholder_without_the_library_in_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(UsageError, match="installed but does not start"):
        load_library("tensorrt")


def test_versions_compare_as_numbers() -> None:
    assert version_numbers("10.2.0") < version_numbers("10.15.0") < version_numbers("11.0.0.dev1")
    assert version_numbers("1.7.1.post2") == (1, 7, 1)


def test_the_log_keeps_what_the_library_says_by_severity(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    library = load_library("tensorrt-rtx")
    log = Log(library, keep_verbose=True)
    for severity in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        log.logger.log(getattr(library.ILogger.Severity, severity), f"{severity}\nmore")
    assert (log.details, log.warnings) == (["VERBOSE\nmore", "INFO\nmore"], ["WARNING\nmore"])
    assert log.errors == ["ERROR\nmore", "INTERNAL_ERROR\nmore"]
    assert log.first_error() == "ERROR more"
    quiet = Log(library)
    library.Runtime(quiet.logger).deserialize_cuda_engine(b"not a plan" * 20)  # the library itself calls the logger
    assert quiet.errors
    assert quiet.details == []
    assert capfd.readouterr() == ("", "")
