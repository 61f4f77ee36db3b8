"""A hub on this machine: the few addresses that pushing and loading use, over repositories held in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by their hash, and what each branch points at."""

    private: bool
    commits: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit(self, branch: str, files: Files) -> str:
        """Add `files` to a branch; the new commit."""
        whole = self.commits[self.branches[branch]] | files
        name = hashlib.sha1(repr((self.branches[branch], sorted(whole.items()))).encode()).hexdigest()
        self.commits[name] = whole
        self.branches[branch] = name
        return name


class FakeHub(ThreadingHTTPServer):
    """Serves `repositories`; `requests` keeps method and path of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, with its headers for errors."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        in_api = path[:2] == ["api", "models"]
        owner, name, kind, *rest = [*(path[2:] if in_api else path), "", "", ""]
        revision = "/".join(rest).strip("/") if in_api else rest[0]
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.private and not self.may):
            return self.refuse(404 if self.may else 401, "RepoNotFound")
        folder = ""
        if kind == "tree" and revision not in repository.branches:
            revision, _, folder = revision.partition("/")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repository.commits[commit]
        if folder:
            return self.refuse(404, "EntryNotFound", commit=commit)
        if kind == "revision":
            names = [{"rfilename": name} for name in files]
            return self.json({"id": f"{owner}/{name}", "sha": commit, "siblings": names})
        if kind == "tree":
            return self.json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": etag(data)}
                    for name, data in files.items()
                ]
            )
        wanted = "/".join(path[4:])
        if wanted not in files:
            return self.refuse(404, "EntryNotFound", commit=commit)
        return self.send(200, files[wanted], {"ETag": f'"{etag(files[wanted])}"', "X-Repo-Commit": commit})

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        if path == ["api", "validate-yaml"]:
            return self.json({"errors": [], "warnings": []})
        if not self.may:
            return self.refuse(401, "")
        if path == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                return self.json({"url": f"{self.server.address}/{name}"}, status=409)
            self.server.repositories[name] = Repository(
                private=asked.get("visibility", "private" if asked.get("private") else "") == "private"
            )
            return self.json({"url": f"{self.server.address}/{name}"})
        repository, kind, branch = self.server.repositories["/".join(path[2:4])], path[4], "/".join(path[5:])
        if kind == "branch":
            repository.branches.setdefault(branch, repository.branches["main"])
            return self.json({})
        if kind == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.json({"files": modes})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commit = repository.commit(branch, added)
        url = f"{self.server.address}/{'/'.join(path[2:4])}/commit/{commit}"
        return self.json({"success": True, "commitOid": commit, "commitUrl": url})

    @property
    def may(self) -> bool:
        """Whether the right token came along."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def json(self, content: Any, *, status: int = 200) -> None:
        """Answer with JSON."""
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, *, commit: str = "") -> None:
        """Answer with an error that the client knows by its code."""
        headers = {"X-Error-Code": code, "X-Error-Message": code or "Invalid username or password."}
        self.send(status, b"", headers | ({"X-Repo-Commit": commit} if commit else {}))

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Answer; without the body where only the headers are asked for."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(data: bytes) -> str:
    """Names a file's content."""
    return hashlib.sha1(data).hexdigest()


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub for as long as the block lasts."""
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
