"""Routes: each reads its request, has it answered, and writes the answer whole or as server-sent events."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from quasar.engines.errors import QuasarError, UsageError, first_line
from quasar.runtime.model import Model
from quasar.runtime.serving.openai import chat, completions, messages, responses, tokens
from quasar.runtime.serving.openai.answers import Answers
from quasar.runtime.serving.openai.asked import Asked
from quasar.runtime.serving.openai.body import read_object
from quasar.runtime.serving.openai.errors import RequestError
from quasar.runtime.serving.openai.service import Service
from quasar.runtime.serving.openai.stream import GONE, Api, EventStream, collect, unless_gone

METRICS = "text/plain; version=0.0.4"
"""The text format of Prometheus, as a media type."""

APIS = {
    "/v1/chat/completions": Api(chat.read_chat, chat.ChatAnswer),
    "/v1/completions": Api(completions.read_completion, completions.CompletionAnswer),
    "/v1/responses": Api(responses.read_request, responses.ResponsesAnswer, named=True),
    "/v1/messages": Api(messages.read_request, messages.MessagesAnswer, named=True),
}


def make_app(service: Service, origins: tuple[str, ...] = ()) -> Starlette:
    """The ASGI application.

    Args:
        origins: of pages in browsers that may ask; `*` for all.
    """
    middleware = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])] if origins else []
    routes = [
        *(Route(path, _answering(service, api), methods=["POST"]) for path, api in APIS.items()),
        *(
            Route(path, _plain(service, act), methods=["POST"])
            for path, act in (("/tokenize", tokens.tokenize), ("/detokenize", tokens.detokenize))
        ),
        Route("/v1/models", _keyed(service, lambda request: _models(service))),
        Route("/v1/models/{name:path}", _keyed(service, lambda request: _model(service, request.path_params["name"]))),
        Route("/metrics", _keyed(service, lambda request: Response(service.metrics.page(), media_type=METRICS))),
        *(Route(path, _health(service)) for path in ("/health", "/ping")),
        Route("/", lambda request: HTMLResponse(_page())),
    ]
    handlers: Any = {RequestError: _refused, HTTPException: _http, Exception: _broken}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


Handler = Callable[[Request], Awaitable[Response]]


def _keyed(service: Service, act: Callable[[Request], Response]) -> Handler:
    async def handle(request: Request) -> Response:
        _check_key(service, request)
        return act(request)

    return handle


def _plain(service: Service, act: Callable[[dict[str, Any], Model], dict[str, Any]]) -> Handler:
    """A question that needs no engine."""

    async def handle(request: Request) -> Response:
        _check_key(service, request)
        return JSONResponse(await run_in_threadpool(act, await _read(service, request), service.model))

    return handle


def _answering(service: Service, api: Api) -> Handler:
    async def handle(request: Request) -> Response:
        _check_key(service, request)
        service.check_open()
        values = await _read(service, request)
        _check_model(service, values)
        asked: Asked = await run_in_threadpool(api.read, values, service.model)
        _check_length(service, asked)
        answers = Answers(service.worker, asked.orders)
        writer = api.writer(asked, service.words, service.options.name)
        if asked.stream:
            return EventStream(answers, writer, api, service.options.keep_alive)
        with answers:
            return await unless_gone(request, collect(answers, writer))

    return handle


async def _read(service: Service, request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        RequestError: it is none, or too large.
    """
    limit, raw = service.options.body_limit, bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise RequestError(f"the body has more than {limit} bytes; shorten it (--max-body)", 413)
    return read_object(bytes(raw))


def _check_key(service: Service, request: Request) -> None:
    if not service.options.keys:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    key = given.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
    # all are compared, in a time that says nothing of how much was right
    found = [hmac.compare_digest(key.encode(), one.encode()) for one in service.options.keys]
    if not any(found):
        raise RequestError("no valid API key; send Authorization: Bearer KEY", 401, code="invalid_api_key")


def _check_model(service: Service, values: dict[str, Any]) -> None:
    name = values.get("model")
    if name is not None and not isinstance(name, str):
        raise RequestError("model: give text", param="model")
    if service.options.strict_model and name != service.options.name:
        raise _no_model(service, name)


def _check_length(service: Service, asked: Asked) -> None:
    most = service.options.most_tokens
    if most is None:
        return
    for order in asked.orders:
        if order.params.max_new_tokens > most and order.params.max_new_tokens < service.model.max_length:
            raise RequestError(f"max_tokens: answers have {most} tokens at the most here (--max-new-tokens)", param="max_tokens")


def _models(service: Service) -> Response:
    return JSONResponse({"object": "list", "data": [_card(service)]})


def _model(service: Service, name: str) -> Response:
    if name != service.options.name:
        raise _no_model(service, name)
    return JSONResponse(_card(service))


def _no_model(service: Service, name: str | None) -> RequestError:
    message = f"model {name!r} is not served here; there is {service.options.name!r}"
    return RequestError(message, 404, param="model", code="model_not_found")


def _card(service: Service) -> dict[str, Any]:
    model = service.model
    engines = model.bundle.manifest.engines
    return {
        "id": service.options.name,
        "object": "model",
        "created": 0,
        "owned_by": "quasar",
        "max_model_len": model.max_length,
        "chain": str(model.chain),
        "target": model.chain.target,
        "engines": list(engines),
        "kernels": model.kernels,
        "sequences": model.options.sequences,
    }


def _health(service: Service) -> Handler:
    """Answered by the event loop itself: probes do not wait for the threads that read prompts."""

    async def handle(request: Request) -> Response:
        state = service.state if service.state != "ready" or service.healthy else "failing"
        return JSONResponse({"status": "ok" if state == "ready" else state}, 200 if state == "ready" else 503)

    return handle


def _page() -> str:
    return resources.files("quasar.runtime.serving.openai").joinpath("page.html").read_text(encoding="utf-8")


def _say(request: Request, error: RequestError) -> Response:
    body = error.anthropic() if request.url.path == "/v1/messages" else error.body()
    return JSONResponse(body, error.status, error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _say(request, error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = {404: f"there is no {path} here", 405: f"{path} does not take {request.method}"}.get(
        error.status_code, error.detail
    )
    return _say(request, RequestError(message, error.status_code))


async def _broken(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=GONE)
    if isinstance(error, QuasarError):
        return _say(request, RequestError(str(error), 400 if isinstance(error, UsageError) else 500))
    return _say(request, RequestError(f"internal error: {type(error).__name__}: {first_line(error)}", 500))
