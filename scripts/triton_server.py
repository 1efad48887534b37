"""A real Triton server for tests, demonstrations and measurements: the one that the wheel nvidia-pytriton carries, on a CPU.

usage: triton_server.py ENVIRONMENT REPOSITORY [MODEL ...]     runs a server until it is interrupted

ENVIRONMENT is a virtual environment of its own, made where there is none: the server's Python backend needs numpy 1.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDS = ("nvidia-pytriton==0.7.0", "numpy<2", f"{ROOT}[cpu,guided]")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
START_SECONDS, STOP_SECONDS = 120, 20


def make_environment(folder: Path) -> Path:
    """Install the server and this project; what is there already is kept, but for the project itself."""
    library = Path(str(sysconfig.get_config_var("LIBDIR"))) / f"libpython{VERSION}.so.1.0"
    if not library.exists() and not ctypes.util.find_library(f"python{VERSION}"):
        raise RuntimeError(f"the server needs libpython{VERSION}.so, and this Python has none; install it, or use another Python")
    python = folder / "bin" / "python"
    quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    ready = folder / "quasar-ready"
    wanted = "\n".join((*NEEDS, (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), *quiet, *NEEDS], check=True)
        ready.write_text(wanted)
    else:
        subprocess.run([str(python), *quiet, "--no-deps", "--force-reinstall", str(ROOT)], check=True)
    files = server_files(folder)
    shutil.copy2(
        files / "python_backend_stubs" / VERSION / "triton_python_backend_stub", files / "backends" / "python"
    )  # of the Python that runs model.py
    return folder


def server_files(environment: Path) -> Path:
    """Where the wheel puts the server."""
    return environment / "lib" / f"python{VERSION}" / "site-packages" / "pytriton" / "tritonserver"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class TritonServer:
    """A running server on loopback ports of its own. Use it as a context manager: it is stopped in any case.

    Args:
        models: loaded at the start; others are loaded by request.
        log: takes what the server says.
    """

    def __init__(self, environment: Path, repository: Path, models: Sequence[str], log: Path) -> None:
        files = server_files(environment)
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.log = log
        command = [
            str(files / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={files / 'backends'}",
            *("--http-address=127.0.0.1", f"--http-port={self.http_port}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={self.grpc_port}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={self.metrics_port}"),
            *("--allow-gpu-metrics=false", "--metrics-interval-ms=100", "--exit-timeout-secs=8", "--exit-on-error=false"),
            *("--model-control-mode=explicit", *(f"--load-model={model}" for model in models)),
        ]
        libraries = [str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
        variables = {
            **os.environ,
            "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        }
        variables.pop("PYTHONPATH", None)
        with log.open("wb") as stream:
            # a group of its own, so that its stubs can be ended with it
            self._process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Of the HTTP endpoint."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Of the gRPC endpoint."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Of the endpoint for Prometheus."""
        return f"http://127.0.0.1:{self.metrics_port}"

    @property
    def pid(self) -> int:
        """Of the server; the Python backend's stubs are its children."""
        return self._process.pid

    def metrics(self) -> str:
        """The page that Prometheus reads."""
        with urllib.request.urlopen(f"{self.metrics_url}/metrics", timeout=10) as page:
            return str(page.read().decode())

    def is_ready(self, model: str) -> bool:
        """What the server says of a model."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/models/{model}/ready", timeout=10):
                return True
        except urllib.error.HTTPError:
            return False

    def wait_ready(self, model: str, seconds: float = START_SECONDS) -> None:
        """Wait until a model is ready."""
        until = time.monotonic() + seconds
        while not self.is_ready(model):
            if time.monotonic() > until:
                raise RuntimeError(f"{model} did not get ready:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server, and whatever is left of it after a while."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text(errors='replace')[-4000:]}")
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError),
                urllib.request.urlopen(f"{self.url}/v2/health/live"),
            ):
                return
            time.sleep(0.1)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    environment = make_environment(Path(sys.argv[1]))
    log = environment / "server.log"
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with TritonServer(environment, Path(sys.argv[2]), sys.argv[3:], log) as server:
        for model in sys.argv[3:]:
            server.wait_ready(model)
        print(f"HTTP {server.url} gRPC {server.grpc} metrics {server.metrics_url} log {log}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
