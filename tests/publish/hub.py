"""A hub on this machine: the routes that a push uses, with real bytes, real hashes and real refusals."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

#: What the hub answers by token.
TOKENS = {"hf_writer": 200, "hf_reader": 403}


@dataclass
class Repo:
    """One repository: files by branch; large ones are in the hub's store, by hash."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """What the server holds, and what was asked of it.

    Attributes:
        large: endings of names that go through LFS.
        spoil: a file of which the hub keeps other bytes than it got.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    large: tuple[str, ...] = (".safetensors", "tokenizer.json")
    spoil: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Return the status and the JSON of one request."""
        self.requests.append(f"{method} {path}")
        match [method, *map(unquote, path.strip("/").split("/"))]:
            case ["PUT", "store", oid]:
                self.store[oid] = body
                return (200, {}) if hashlib.sha256(body).hexdigest() == oid else (400, {"error": "wrong hash"})
            case _ if TOKENS.get(token, 401) != 200:
                return TOKENS.get(token, 401), {"error": "no"}
            case ["POST", "api", "repos", "create"]:
                return self._create(json.loads(body))
            case ["POST", "api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["GET", "api", "models", owner, name]:
                return self._info(f"{owner}/{name}")
            case ["POST", "api", "models", owner, name, "branch", branch]:
                return self._branch(self.repos[f"{owner}/{name}"], branch)
            case ["GET", "api", "models", owner, name, "tree", revision]:
                return self._tree(self.repos[f"{owner}/{name}"], revision)
            case ["POST", "api", "models", _, _, "preupload", _]:
                return 200, {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]}
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                return 200, {"objects": [self._upload(one) for one in json.loads(body)["objects"]]}
            case ["POST", "api", "models", owner, name, "commit", revision]:
                return self._commit(f"{owner}/{name}", revision, body)
        return 404, {"error": f"no route {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        self.repos[name] = Repo(asked.get("visibility") == "private")
        return 200, {"url": f"{self.url}/{name}"}

    def _info(self, name: str) -> tuple[int, Any]:
        return 200, {"id": name, "private": self.repos[name].private, "sha": "0" * 40}

    def _branch(self, repo: Repo, branch: str) -> tuple[int, Any]:
        if branch in repo.branches:
            return 409, {"error": "Reference already exists"}
        repo.branches[branch] = dict(repo.branches["main"])
        return 200, {}

    def _mode(self, path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(self.large) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.url}/store/{one['oid']}"}}}

    def _commit(self, name: str, revision: str, body: bytes) -> tuple[int, Any]:
        repo = self.repos[name]
        if revision not in repo.branches:
            return 404, {"error": "Invalid rev id"}
        files = repo.branches[revision]
        for line in map(json.loads, body.splitlines()):
            match line["key"], line["value"]:
                case "header", header:
                    repo.messages.append(header["summary"])
                case "file", file:
                    files[file["path"]] = base64.b64decode(file["content"])
                case "lfsFile", file:
                    files[file["path"]] = self.store[file["oid"]]
        if self.spoil:
            files[self.spoil] += b" "
        oid = hashlib.sha1(body).hexdigest()
        self.commits[oid] = dict(files)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def _tree(self, repo: Repo, revision: str) -> tuple[int, Any]:
        files = self.commits.get(revision, repo.branches.get(revision))
        if files is None:
            return 404, {"error": "Invalid rev id"}
        return 200, [_entry(path, content, path.endswith(self.large)) for path, content in files.items()]


def _entry(path: str, content: bytes, large: bool) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(content), "oid": blob, **({"lfs": lfs} if large else {})}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, answer = hub.answer(self.command, urlsplit(self.path).path, body, token)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
