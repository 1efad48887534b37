"""quasar-serve"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from quasar.engines.bundle.bundle import open_bundle
from quasar.engines.command import EXIT_CODES, run_command
from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.runtime.chain.choice import choose_chain
from quasar.runtime.loading import load_model
from quasar.runtime.options import add_model_options, model_options
from quasar.runtime.serving.limits import MOST_SERVED, usual_sequences
from quasar.runtime.serving.openai.app import make_app
from quasar.runtime.serving.openai.service import MEBIBYTE, Service, ServiceOptions

KEY_VARIABLE = "QUASAR_API_KEY"
POLL_SECONDS = 0.05


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(
        prog="quasar-serve",
        description="Serve a bundle over HTTP: APIs of OpenAI and Anthropic, metrics, and a page to chat.",
        epilog=EXIT_CODES,
    )
    p.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that quasar-export wrote")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    p.add_argument("--port", type=int, default=8000, metavar="P", help="0 takes a free one (default: 8000)")
    p.add_argument("--served-model-name", metavar="NAME", help="of the model (default: the bundle's directory)")
    p.add_argument("--strict-model", action="store_true", help="refuse requests for models of other names")
    p.add_argument(
        *("--api-key",), action="append", default=[], metavar="K",
        help=f"clients must send it; may be repeated (default: the variable {KEY_VARIABLE}, else none is needed)",
    )  # fmt: skip
    p.add_argument(
        *("--sequences",), type=int, metavar="N",
        help="answers that share passes; further requests wait (default: as many as the bundle was exported for, "
        f"{MOST_SERVED} at the most)",
    )  # fmt: skip
    usual = ServiceOptions("")
    p.add_argument(
        *("--max-queue",), type=int, default=usual.queue_limit, metavar="N",
        help=f"requests that may wait; those beyond get 503 (default: {usual.queue_limit})",
    )  # fmt: skip
    p.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="the most tokens of an answer (default: what the context holds)"
    )
    p.add_argument(
        *("--max-body",), type=int, default=usual.body_limit // MEBIBYTE, metavar="MIB",
        help=f"the largest request, in MiB (default: {usual.body_limit // MEBIBYTE})",
    )  # fmt: skip
    p.add_argument(
        *("--cors-origin",), action="append", default=[], metavar="ORIGIN",
        help="let pages from there ask, from a browser; * for all; may be repeated (default: none)",
    )  # fmt: skip
    p.add_argument("--drain-seconds", type=float, default=30.0, metavar="S", help="for open answers when it ends (default: 30)")
    p.add_argument("--access-log", action="store_true", help="a line for every request")
    add_model_options(p, "sequences")
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
    for name, least in (("max_queue", 0), ("max_body", 1), ("port", 0)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: give {least} or more")
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {args.max_new_tokens}: give 1 or more")
    options = model_options(args, sequences=1 if args.sequences is None else args.sequences)
    bundle = open_bundle(args.bundle)
    choose_chain(bundle, options.chain)
    if args.sequences is None:
        options = replace(options, sequences=usual_sequences(bundle, options))
    variable = os.environ.get(KEY_VARIABLE)
    keys = tuple(args.api_key) or ((variable,) if variable else ())
    if not all(keys):
        raise UsageError("--api-key: it is empty; give one, or leave it out")
    service = Service(
        lambda: load_model(args.bundle, options),
        ServiceOptions(
            name=args.bundle.resolve().name if args.served_model_name is None else args.served_model_name,
            keys=keys,
            strict_model=args.strict_model,
            queue_limit=args.max_queue,
            most_tokens=args.max_new_tokens,
            body_limit=args.max_body * MEBIBYTE,
        ),
    )
    config = uvicorn.Config(
        make_app(service, tuple(args.cors_origin)),
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
