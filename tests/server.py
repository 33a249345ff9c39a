"""A real OpenAI-compatible server on loopback, as small as it can be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str | dict[str, Any]]


class Chat(BaseHTTPRequestHandler):
    """Answers `POST /v1/chat/completions`, whole or as events, with what its server says.

    A mapping is the whole body, with its `status` if that is not 200. The path is `body["path"]`.
    """

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body["path"] = self.path
        text = self.server.answer(body)  # type: ignore[attr-defined]  # set by `serve`
        if isinstance(text, dict):
            status = text.pop("status", 200)
            self.reply("application/json", json.dumps(text).encode(), status)
        elif body.get("stream"):
            self.reply("text/event-stream", b"".join(events(text)))
        else:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.reply("application/json", json.dumps({"choices": [choice]}).encode())

    def reply(self, kind: str, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests are quiet."""


def events(text: str) -> Iterator[bytes]:
    for word in text.split(" "):
        yield f"data: {json.dumps({'choices': [{'delta': {'content': word + ' '}}]})}\n\n".encode()
    yield b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """The server's URL, up to and with `/v1`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.answer = answer  # type: ignore[attr-defined]  # read by `Chat`
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
