"""A placeholder for a model server: says back what it was asked, whole or as a stream.

Standard library only. It stands where vLLM, SGLang or Ray Serve would, to try a deployment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


class Echo(BaseHTTPRequestHandler):
    """`GET /v1/models`, which tells that it is up, and `POST /v1/chat/completions`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": "echo", "object": "model"}]}
        self.reply(json.dumps(listed).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = f"You asked: {asked(body)}"
        if body.get("stream"):
            self.reply(b"".join(events(text)), "text/event-stream")
        else:
            message = {"role": "assistant", "content": text}
            told = {**shared("chat.completion"), "choices": [choice("message", message, "stop")]}
            self.reply(json.dumps(told).encode())

    def reply(self, data: bytes, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are logged by the sidecar."""


def asked(body: Json) -> str:
    """The words of the last message."""
    content = body["messages"][-1].get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "(a picture)") for part in content)


def shared(kind: str) -> Json:
    return {"id": "echo-1", "object": kind, "created": 0, "model": "echo"}


def choice(name: str, said: Json, finish: str | None = None) -> Json:
    return {"index": 0, name: said, "finish_reason": finish}


def events(text: str) -> Iterator[bytes]:
    parts = [choice("delta", {"content": f"{word} "}) for word in text.split()]
    for part in (*parts, choice("delta", {}, "stop")):
        told = {**shared("chat.completion.chunk"), "choices": [part]}
        yield f"data: {json.dumps(told)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def main(port: int = 8000, host: str = "0.0.0.0") -> ThreadingHTTPServer:
    """The server, bound and not yet serving."""
    return ThreadingHTTPServer((host, port), Echo)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 8000).serve_forever()
