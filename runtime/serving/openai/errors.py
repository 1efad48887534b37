"""Errors as HTTP says them: a status, and OpenAI's error body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quasar.engines.errors import UsageError
from quasar.runtime.prompt import ContextLengthError
from quasar.runtime.serving.request import Failure

KINDS = {401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error", 503: "overloaded_error"}
"""What a status is called where it is not a bad request or the server's own fault."""
RETRY_SECONDS = 1
"""After which a client shall ask again."""
STATUS: Mapping[Failure, int] = {"usage": 400, "unavailable": 503, "internal": 500}


class RequestError(Exception):
    """A request that is not answered.

    Args:
        param: the field that is to blame.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code

    @property
    def kind(self) -> str:
        """What went wrong, in OpenAI's words."""
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def headers(self) -> dict[str, str]:
        """That go with the answer."""
        if self.status == 503:
            return {"Retry-After": str(RETRY_SECONDS)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """Anthropic's error body."""
        kind = "api_error" if self.kind == "server_error" else self.kind
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def unread(error: UsageError, param: str) -> RequestError:
    """The error of a prompt that cannot be read; one that is too long has OpenAI's code."""
    code = "context_length_exceeded" if isinstance(error, ContextLengthError) else None
    return RequestError(f"{param}: {error}", param=param, code=code)


def failed(message: str, failure: Failure) -> RequestError:
    """What a worker said of an answer."""
    return RequestError(message, STATUS[failure])
