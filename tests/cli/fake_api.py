"""A small HTTP server that answers like the API, and keeps what it was asked."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

PROOF = {
    "path": "pd",
    "prefill": "p1",
    "decode": "d1",
    "transport": "nixl",
    "cached_tokens": 0,
    "transferred_tokens": 64,
    "kv_bytes": 4096,
    "verified": True,
    "timings_ms": {"prefill": 12.4},
}


@dataclass
class FakeApi:
    """What the server says, and what it heard."""

    words: list[str] = field(default_factory=lambda: ["Paris", "."])
    models: list[str] = field(default_factory=lambda: ["smollm2"])
    error_status: int | None = None
    breaks_off: bool = False
    is_ready: bool = True
    members: dict[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 1, "embed": 1})
    """How many workers it knows, by role."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    base_url: str = ""

    def metrics(self) -> str:
        return "".join(f'tandem_members{{role="{role}"}} {number}.0\n' for role, number in self.members.items())

    def chunks(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        for word in self.words:
            yield {"choices": [{"index": 0, "delta": {"content": word}}], "usage": None}
        if body.get("stream_options", {}).get("include_usage"):
            yield {"choices": [], "usage": {"total_tokens": 3, "tandem": PROOF}}


@contextmanager
def serving(api: FakeApi) -> Iterator[FakeApi]:
    """Serve ``api`` on a free port until the context is left."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(api))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api.base_url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler_of(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.keys.append(self.headers.get("Authorization"))
            models = json.dumps({"data": [{"id": name} for name in api.models]})
            others = {"/readyz": (200 if api.is_ready else 503, ""), "/metrics": (200, api.metrics())}
            self._send_text(*others.get(self.path, (200, models)))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            api.bodies.append(body)
            api.keys.append(self.headers.get("Authorization"))
            if api.error_status is not None:
                self._send(api.error_status, {"error": {"message": "no such thing", "code": "x"}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b": still here\n\n")
            for chunk in api.chunks(body):
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            if not api.breaks_off:
                self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, status: int, body: dict[str, Any]) -> None:
            self._send_text(status, json.dumps(body))

        def _send_text(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
