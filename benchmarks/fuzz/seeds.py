"""What fuzzing starts from: inputs that already go deep, and the words that it builds with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.fuzz.targets import FIELDS, POLICIES, ROUTES
from tests import talks
from tests.upstream import completion, streamed

# Inputs that once broke a promise; the tests try them all.
KEPT = Path(__file__).parent / "kept"
NO_CUT, TWO_CUTS = b"\x00", b"\x02\x00\x07\x00\x21"
WORDS = (
    *("data: ", "data:", "\\x0a\\x0a", "\\x0d\\x0a", "\\xef\\xbb\\xbf", ": ", "event: ", "[DONE]"),
    *('{\\"choices\\":[{', '\\"index\\":0,', '\\"index\\":1,', '\\"delta\\":{', '\\"message\\":{'),
    *('\\"content\\":\\"', '\\"refusal\\":\\"', '\\"reasoning_content\\":\\"', '\\"text\\":\\"'),
    *('\\"tool_calls\\":[{', '\\"function\\":{', '\\"arguments\\":\\"', '\\"name\\":\\"'),
    *('\\"finish_reason\\":\\"stop\\"', '\\"usage\\":{', "null", "NaN", "1e999", "\\\\ud83d"),
    *('\\"type\\":\\"content_block_delta\\"', '\\"type\\":\\"text_delta\\"', '\\"partial_json\\":'),
    *("BAD", "BA", "AD", "B\\\\u0041D", '\\"messages\\":[{', '\\"role\\":\\"user\\"', '\\"n\\":2'),
)


def dictionary() -> str:
    """The words in libFuzzer's form."""
    return "".join(f'"{word}"\n' for word in WORDS)


def seeds(target: str) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted(KEPT.glob(f"{target}-*")))
    yield from {"sse": events, "wire": wires, "leak": answers}[target]()


def events() -> Iterator[bytes]:
    for stream in (
        talk(),
        b"\xef\xbb\xbf: hello\r\n\r\ndata: a\rdata: b\r\r",
        b"data\n\ndata:\n\n",
    ):
        yield NO_CUT + stream
        yield TWO_CUTS + stream


def wires() -> Iterator[bytes]:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "hello"}, picture]}
    yield json.dumps({"model": "up", "n": 2, "messages": [asked]}).encode()
    yield json.dumps(completion({"content": "fine", "tool_calls": CALLS})).encode()
    yield json.dumps(completion({"content": None, "refusal": "no", "vendor": [["x"]]})).encode()


CALLS = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"x": "BA'}}]


def talk() -> bytes:
    """Two choices in turns, banned words in pieces, a tool, usage."""
    pieces = ({"content": "fine BA"}, {"tool_calls": CALLS}, {"content": "D"})
    return streamed(pieces, ({"content": "fine"}, {"refusal": "BA"}), usage=True)


def answers() -> Iterator[bytes]:
    """Every route and policy with a stream and a whole answer, and frames of our own."""
    plain = talk().replace(b'"delta": {"content": ', b'"text": ')
    calm = talks.stream(talks.talk("fine ", "BA", "D"), talks.talk("so"))
    whole = json.dumps(completion({"content": "B\ud83d"}, {"content": "BAD"})).encode()
    message = json.dumps(talks.message(talks.words("BAD"), talks.words("fine"))).encode()
    texts = json.dumps({"choices": [{"index": 0, "text": "BAD"}]}).encode()
    for policy in range(len(POLICIES)):
        for route, (stream, body) in enumerate(((talk(), whole), (plain, texts), (calm, message))):
            first = bytes([policy * len(ROUTES) + route])
            yield first + b"\x03" + TWO_CUTS + stream
            yield first + b"\x02" + NO_CUT + body
        for field in range(len(FIELDS)):
            pieces = bytes(n for text in (7, 3, 2, 0, 1, 66) for n in (field, text))
            yield bytes([policy * len(ROUTES), 7]) + NO_CUT + pieces
            yield bytes([policy * len(ROUTES), 6]) + NO_CUT + pieces
