"""Server-sent events by the letter of WHATWG HTML, 9.2.6, however the bytes are cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings, strategies as st

from mmguard.sse import Parser, frame
from tests.upstream import cut

BOM = b"\xef\xbb\xbf"


def reference(stream: bytes) -> list[bytes]:
    """The data of each event, from the whole stream at once and as plainly as can be."""
    text = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data = [], b""
    # What follows the last line end is no line.
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data:
                events.append(data[:-1])
            data = b""
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            if name == b"data":
                data += value.removeprefix(b" ") + b"\n"
    return events


def parsed(pieces: list[bytes]) -> list[bytes]:
    parser = Parser()
    return [event.data for piece in pieces for event in parser.feed(piece)]


LINES = st.sampled_from(
    [
        b"data: x",
        b"data:x",
        b"data",
        b"data:",
        b"data:  x",
        b"datas: x",
        b": data: x",
        b"",
        b"",
        b":",
    ]
) | st.sampled_from(
    [b"event: e", b"id: 1", b"retry: 3", b"\xc3\xa9", b" data: x", b"data: \xc3\xa9:y"]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
STREAMS = st.builds(
    lambda start, lines: start + b"".join(line + end for line, end in lines),
    st.sampled_from([b"", BOM, BOM[:2], BOM * 2]),
    st.lists(st.tuples(LINES, ENDS), max_size=20),
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


@settings(deadline=None, max_examples=400)
@given(STREAMS | st.binary(max_size=40) | st.text("d:\r\n ata", max_size=40).map(str.encode), CUTS)
def test_events_are_the_standards_however_they_were_cut(stream: bytes, ends: list[int]) -> None:
    assert parsed(cut(stream, ends)) == reference(stream)
    assert parsed([bytes([byte]) for byte in stream]) == reference(stream)


@settings(deadline=None, max_examples=200)
@given(STREAMS, CUTS)
def test_raw_bytes_say_the_same_again(stream: bytes, ends: list[int]) -> None:
    parser = Parser()
    events = [event for piece in cut(stream, ends) for event in parser.feed(piece)]
    again = b"".join(event.raw for event in events)
    assert reference(b"\n" + again) == [event.data for event in events]
    for event in events:
        assert event.raw in stream.removeprefix(BOM)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_is_there_with_its_last_byte(end: bytes) -> None:
    """Who waits for one byte more waits forever where a server sends no more."""
    parser, data = Parser(), b"data: [DONE]" + end
    early = [event for piece in cut(data[:-1], range(20)) for event in parser.feed(piece)]
    found = early or list(parser.feed(data[-1:]))
    assert [event.data for event in found] == [b"[DONE]"]


def test_frames_are_events() -> None:
    assert reference(frame(b"x") + frame(b"y")) == [b"x", b"y"]


@pytest.mark.parametrize("shape", ["a line", "lines of one event", "a comment"])
def test_long_events_take_time_in_step_with_their_length(shape: str) -> None:
    piece = {"a line": b"x" * 64, "lines of one event": b"data: " + b"x" * 57 + b"\n"}.get(
        shape, b": " + b"x" * 62
    )

    def seconds(pieces: int) -> float:
        parser, start = Parser(), time.process_time()
        for _ in range(pieces):
            list(parser.feed(piece))
        return time.process_time() - start

    seconds(100)
    few, many = min(seconds(1000) for _ in range(3)), min(seconds(16_000) for _ in range(2))
    assert many < max(few, 0.001) * 16 * 4
