"""quasar-serve"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn

from quasar.engines.command import EXIT_CODES, run_command
from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.runtime.serving.openai.app import make_app
from quasar.runtime.serving.openai.service import Service
from quasar.runtime.serving.openai.settings import add_settings, read_settings

POLL_SECONDS = 0.05


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-serve",
        description="Serve a bundle over HTTP: APIs of OpenAI and Anthropic, metrics, and a page to chat.",
        epilog=EXIT_CODES,
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    p.add_argument("--port", type=int, default=8000, metavar="P", help="0 takes a free one (default: 8000)")
    p.add_argument("--drain-seconds", type=float, default=30.0, metavar="S", help="for open answers when it ends (default: 30)")
    p.add_argument("--access-log", action="store_true", help="a line for every request")
    add_settings(p)
    return p


class Server(uvicorn.Server):
    """Ends in two steps: it takes no new requests, and stops when all answers are given. A second signal stops it at once."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_seconds = drain_seconds
        self._drain: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: Exception | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        if self._loop is None or self._service.draining:
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self._drain = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                while self._service.busy:
                    await asyncio.sleep(POLL_SECONDS)
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and load the model meanwhile."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        try:
            await asyncio.to_thread(self._service.start)
        except Exception as error:  # it is raised again where the command says what went wrong
            self.failure = error
            self.should_exit = True
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(_describe(self._service))
        print(f"http://{host}:{port}  (a page to chat; the APIs are under /v1)", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise QuasarError(f"cannot listen on {host}:{port}: {first_line(error)}; give another --host or --port") from None


def _describe(service: Service) -> str:
    model = service.model
    kernels = "".join(f"; {name}: {what}" for name, what in model.kernels.items())
    return f"{service.options.name}: chain {model.chain}, {model.options.sequences} sequences{kernels}"


def _run(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    if args.port < 0:
        raise UsageError(f"--port {args.port}: give 0 or more")
    settings = read_settings(args)
    service = settings.service()
    config = uvicorn.Config(
        make_app(service, settings.origins),
        host=args.host,
        port=args.port,
        log_level="info" if args.access_log else "warning",
        access_log=args.access_log,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = Server(config, service, args.drain_seconds)
    try:
        server.run([_listen(args.host, args.port)])
    finally:
        service.close()
    if server.failure is not None:
        raise server.failure
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_command("quasar-serve", lambda: _run(argv))
