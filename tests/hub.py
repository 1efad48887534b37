"""A Hugging Face hub on this machine: a real HTTP server with the part of the API that downloads use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """Serves repositories, each with one commit, and keeps what it was asked for.

    Attributes:
        repositories: id -> file name -> content.
        gated: ids whose files are given to nobody.
        asked: every request as (method, path), in order.
        broken: whether every request fails, as when the hub is down.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Mapping[str, bytes]] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def fetched(self) -> list[str]:
        """Names of the files that were sent, in order."""
        return [path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1] for method, path in self.asked
                if method == "GET" and "/resolve/" in path]  # fmt: skip

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo_id, action, rest = ("/".join(parts[2:4]), parts[4:5], parts[5:]) if api else ("/".join(parts[:2]), [], parts[3:])
        files = self.repositories.get(repo_id)
        if self.broken:
            self._send(request, 503)
        elif files is None:
            self._send(request, 401, error="RepoNotFound")
        elif rest and rest[0] not in ("main", COMMIT):
            self._send(request, 404, error="RevisionNotFound")
        elif api and action == ["tree"]:
            self._send(request, 200, json.dumps([_entry(name, content) for name, content in files.items()]).encode())
        elif api:
            siblings = [{"rfilename": name} for name in files]
            self._send(request, 200, json.dumps({"id": repo_id, "sha": COMMIT, "siblings": siblings}).encode())
        elif repo_id in self.gated:
            self._send(request, 403, error="GatedRepo")
        elif "/".join(rest[1:]) not in files:
            self._send(request, 404, error="EntryNotFound")
        else:
            self._send(request, 200, files["/".join(rest[1:])])

    def _send(self, request: BaseHTTPRequestHandler, status: int, content: bytes = b"", error: str | None = None) -> None:
        request.send_response(status)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content)))
        if error is not None:
            request.send_header("X-Error-Code", error)
            request.send_header("X-Error-Message", f"{error}: as the hub says it")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
