"""A small server that speaks as `polydraft serve` does, with a text that a test lays down beforehand."""

from __future__ import annotations

import json
import math
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polydraft

PAGE = Path(polydraft.__file__).parent / "serving" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HORIZON = 4
Token = dict[str, Any]


def words(texts: list[str], *, components: int = 2) -> list[Token]:
    """Tokens with these texts: step k keeps k mod (HORIZON + 1) drafts; a token of the model's own ends it.

    Every figure is another one for every token, so that a figure in the wrong place is seen.
    """
    tokens: list[Token] = []
    step, place = 0, 0
    for index, text in enumerate(texts):
        kept = step % (HORIZON + 1)
        drafted = place < kept
        own = "first" if step == 0 else "bonus" if kept == HORIZON else "correction"
        share = (index % 97 + 1) / 98
        tokens.append(
            {
                "id": 1000 + index,
                "text": text,
                "origin": place + 1 if drafted else 0,
                "kind": "drafted" if drafted else own,
                "step": step,
                "logprob": math.log(share),
                "draft_logprob": math.log(share / 2) if drafted else None,
                "top": [
                    {"text": text, "logprob": math.log(share)},
                    {"text": f" other{index}", "logprob": math.log((1 - share) / 2)},
                ],
                "weights": _weights(share, components) if drafted else [],
            }
        )
        step, place = (step, place + 1) if drafted else (step + 1, 0)
    return tokens


def _weights(share: float, components: int) -> list[float]:
    return [share, *[(1 - share) / (components - 1)] * (components - 1)] if components > 1 else []


def plainly(tokens: list[Token]) -> list[Token]:
    """The same tokens, each from a step of its own."""
    own: Token = {"origin": 0, "draft_logprob": None, "weights": []}
    return [
        token | own | {"step": index, "kind": "plain" if index else "first"}
        for index, token in enumerate(tokens)
    ]


def usage(tokens: list[Token]) -> dict[str, Any]:
    """What the server says of a whole text."""
    steps, accepted = tokens[-1]["step"], sum(token["origin"] > 0 for token in tokens)
    figures = {
        "steps": steps,
        "drafted_tokens": 2 * accepted,
        "accepted_tokens": accepted,
        "mean_acceptance_length": 1 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": 0.5 if accepted else 0.0,
        "seconds": 1.25,
        "tokens_per_second": len(tokens) / 1.25,
        "queued_seconds": 0.3,
    }
    return {"prompt_tokens": 3, "completion_tokens": len(tokens), "polydraft": figures}


@dataclass
class Fake:
    """The server; `start` and `stop` may alternate, the port stays.

    Attributes:
        tokens: the text. hold_at: the chunk before which it waits for `go`. together: tokens in one chunk.
        cut: bytes in one write, to cut events and characters anywhere. line_end: of the events.
        refuse: (status, message) for every request for a text. key: the API key asked for. breaks_after:
            chunks after which the connection breaks. fails_after: chunks after which an error is sent.
        differs: index of a token that is another one when drafted.
        bodies: (path, body) of the requests for texts. left: set when a reader went away.
    """

    tokens: list[Token] = field(default_factory=list)
    hold_at: int | None = None
    together: int = 1
    cut: int | None = None
    line_end: str = "\n"
    refuse: tuple[int, str] | None = None
    key: str | None = None
    breaks_after: int | None = None
    fails_after: int | None = None
    differs: int | None = None
    rank: int = 2
    port: int = 0
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """As if the process had been killed: open connections break."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.open:
            with suppress(OSError):  # closed before by the reader
                connection.shutdown(socket.SHUT_RDWR)
        self.go.set()

    def chunks(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """What a request is answered."""
        drafted = body["polydraft"]["drafted"]
        tokens = self.tokens if drafted else plainly(self.tokens)
        if drafted and self.differs is not None:
            other = {"id": 7, "text": " other"}
            tokens = [token | other if at == self.differs else token for at, token in enumerate(tokens)]
        tokens = tokens[: body["max_tokens"]]
        parts = [tokens[i : i + self.together] for i in range(0, len(tokens), self.together)]
        out = [_chunk({"polydraft": {"tokens": part}, "finish_reason": None}) for part in parts]
        last = _chunk({"finish_reason": "length" if len(tokens) < len(self.tokens) else "stop"})
        return [*out, last, {"choices": [], "usage": usage(tokens)}]


def _chunk(choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, **choice}]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any) -> None:
        self.open: list[socket.socket] = []
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is what the tests want."""


class _Handler(BaseHTTPRequestHandler):
    fake: Fake

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing is printed."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._json({"status": "ok"})
        elif self.path == "/v1/models":
            head = {"joint": "cp", "rank": self.fake.rank, "horizon": HORIZON}
            self._authorised() and self._json({"data": [{"id": "tiny", "polydraft": {"head": head}}]})
        else:
            file = PAGE / (self.path.lstrip("/") or "index.html")
            self._send(200, file.read_bytes(), TYPES[file.suffix])

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._authorised():
            return
        fake.bodies.append((self.path, body))
        if fake.refuse:
            status, message = fake.refuse
            self._json({"error": {"message": message}}, status)
            return
        self._head(200, "text/event-stream")
        try:
            self._stream(fake.chunks(body))
        except OSError:
            fake.left.set()

    def _stream(self, chunks: list[dict[str, Any]]) -> None:
        fake = self.fake
        for index, chunk in enumerate(chunks):
            if index == fake.hold_at:
                fake.go.wait()
            if index == fake.breaks_after:
                return
            if index == fake.fails_after:
                chunk = {"error": {"message": "the request took longer than 1 seconds", "code": "timeout"}}
            self._event(json.dumps(chunk, ensure_ascii=False))
        self._event("[DONE]")

    def _event(self, data: str) -> None:
        content = f"data: {data}{2 * self.fake.line_end}".encode()
        step = self.fake.cut or len(content)
        for start in range(0, len(content), step):
            self.wfile.write(content[start : start + step])
            self.wfile.flush()

    def _authorised(self) -> bool:
        if self.fake.key is None or self.headers["authorization"] == f"Bearer {self.fake.key}":
            return True
        self._json({"error": {"message": "the API key is missing or wrong"}}, 401)
        return False

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self._head(status, kind)
        self.wfile.write(content)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-security-policy", "default-src 'self'")
        self.end_headers()
