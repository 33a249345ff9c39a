"""What comes back for a picture's URL: cut off, endless, packed, lying, or no picture at all."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import shutil
import ssl
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image as pil

from mmguard import media
from mmguard.errors import ImageError, OversizeError
from mmguard.headers import count_gif, count_scans
from mmguard.server.fetch import Rules, connect
from mmguard.types import Image
from tests.test_fetch import LOOPBACK, get, near, resolver
from tests.test_media import huge, uri
from tests.web import Site, head, serve, whole
from tests.world import png

RED = png()


def picture(kind: str, frames: int = 1, **how: Any) -> bytes:
    """A small picture, or an animation whose frames all differ."""
    first, *rest = [pil.new("RGB", (9, 7), (40 * i % 256, i, 99)) for i in range(frames)]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": rest} if rest else {}
    first.save(buffer, kind, **more, **how)
    return buffer.getvalue()


# Bodies.


def answer(*pieces: bytes) -> Callable[[str], Iterator[bytes]]:
    return lambda path: iter(pieces)


LIES = [
    (head(content_length=99_999_999) + RED, OversizeError, "more than 20971520 bytes"),
    (head(content_length=len(RED) + 9) + RED, ImageError, "broke off"),
    (head(content_length=len(RED) - 30) + RED, ImageError, "cut short or damaged"),
    (head(content_length="many") + RED, ImageError, "answered no HTTP"),
    (head(transfer_encoding="chunked") + b"zz\r\n", ImageError, "answered no HTTP"),
    (head(content_encoding="gzip") + gzip.compress(RED), ImageError, "sent compressed"),
    (head(content_encoding="br") + RED, ImageError, "sent compressed"),
    (head(404) + RED, ImageError, "answered 404, not 200"),
    (head(206) + RED, ImageError, "answered 206, not 200"),
    (head(304), ImageError, "answered 304, not 200"),
    (b"SSH-2.0-OpenSSH\r\n", ImageError, "answered no HTTP"),
    (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 30_000, ImageError, "answered no HTTP"),
    (b"", ImageError, "broke off"),
    (head(content_type="image/png") + b"<html>hello</html>", ImageError, "is no PNG"),
    (head(content_type="image/png") + b"", ImageError, "is no PNG"),
    (head() + RED[:-30], ImageError, "cut short or damaged"),
    (head() + huge(30_000, 30_000), OversizeError, "pixels"),
    (head() + huge(9_000, 8_000), OversizeError, "9000 x 8000, more than 64000000 pixels"),
]


@pytest.mark.parametrize(("sent", "kind", "reason"), LIES)
def test_bodies_that_are_refused(sent: bytes, kind: type[ImageError], reason: str) -> None:
    with serve(answer(sent)) as site, pytest.raises(ImageError, match=reason) as found:
        near(site, "/a.png?token=secret")
    assert type(found.value) is kind
    for leak in ("secret", "hello", "127.0.0.1"):
        assert leak not in str(found.value)


BODIES = [
    whole(RED, content_type="text/html"),
    whole(RED, content_encoding="identity"),
    iter([head(), RED]),
    iter([head(transfer_encoding="chunked"), b"%x\r\n%b\r\n0\r\n\r\n" % (len(RED), RED)]),
]


@pytest.mark.parametrize("pieces", BODIES)
def test_bodies_are_kept_as_they_are(pieces: Iterator[bytes]) -> None:
    with serve(lambda path: pieces) as site:
        assert near(site) == Image(RED, "image/png")


def test_what_follows_a_picture_is_kept() -> None:
    with serve(lambda path: whole(RED + b"more")) as site:
        assert near(site).data == RED + b"more"


def test_an_endless_body_ends_at_the_limit() -> None:
    def pour(path: str) -> Iterator[bytes]:
        yield head()
        for _ in range(10_000):
            sent.append(1)
            yield b"\0" * 10_000

    sent = list[int]()
    with serve(pour) as site, pytest.raises(OversizeError, match="more than 5000000 bytes"):
        near(site, max_bytes=5_000_000)
    assert len(sent) < 5_000


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nx: ", head(), head() + RED[:20]])
def test_a_slow_body_ends_at_the_deadline(start: bytes) -> None:
    def trickle(path: str) -> Iterator[bytes]:
        yield start
        yield from site.drip(b"x", 0.02)

    start_at = time.monotonic()
    with serve(trickle) as site, pytest.raises(ImageError, match=r"took more than 0\.3 s"):
        near(site, seconds=0.3)
    assert time.monotonic() - start_at < 3


def test_the_deadline_holds_for_all_hops() -> None:
    def wander(path: str) -> Iterator[bytes]:
        yield from site.drip(b"", 0.2) if site.over.wait(0.2) else ()
        yield head(302, location=f"{path}x", content_length=0)

    with serve(wander) as site, pytest.raises(ImageError, match=r"took more than 0\.5 s"):
        near(site, seconds=0.5, redirects=10)
    assert 1 < len(site.heads) < 5


def test_a_server_that_is_not_there() -> None:
    with serve(answer()) as site:
        pass
    with pytest.raises(ImageError, match="cannot be reached"):
        near(site)


EIGHT = IPv4Network("127.0.0.0/8")


def test_the_next_address_is_tried() -> None:
    with serve(lambda path: whole(RED)) as site:
        rules = Rules(
            hosts=("*",),
            schemes=("http",),
            ports=(site.port,),
            private=(IPv4Network("127.0.0.0/8"),),
        )
        found = resolver(a=["127.0.0.9", "127.0.0.1"])
        url = f"http://a.test:{site.port}/"
        assert get(url, rules, resolve=found, connect=connect).data == RED


# Pictures.

STILL = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
MOVING = ["PNG", "WEBP", "GIF", "TIFF"]


@pytest.mark.parametrize("kind", STILL)
def test_the_kind_is_read_from_the_bytes(kind: str) -> None:
    data = picture(kind)
    assert get(uri(data)) == Image(data, f"image/{kind.lower()}")


@pytest.mark.parametrize("kind", MOVING)
def test_frames(kind: str) -> None:
    data = picture(kind, 5)
    for most in (1, 4):
        with pytest.raises(OversizeError, match=f"more than {most} frames: send a still"):
            get(uri(data), Rules(max_frames=most))
    for most in (5, 6):
        assert get(uri(data), Rules(max_frames=most)).data == data
    assert media.load_image(data).data == data


def test_previews_of_phones_are_no_frames() -> None:
    data = picture("MPO", 2)
    assert get(uri(data)) == Image(data, "image/jpeg")


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_gif_frames_are_counted_as_pillow_counts_them(
    frames: int, most: int, interlace: bool
) -> None:
    data = picture("GIF", frames, interlace=interlace, comment=b",;!" * 200)
    assert count_gif(data, most) == min(frames, most)
    assert count_gif(data + b",,,,", 99) == frames
    for end in range(0, len(data), 7):
        assert count_gif(data[:13] + data[13:][:end], 99) <= frames


def test_counting_decodes_nothing_and_ends() -> None:
    start = picture("GIF")[:-1]
    frame = b",\0\0\0\0\xff\xff\xff\xff\0\x02\0"
    since = time.monotonic()
    with pytest.raises(OversizeError, match="more than 64 frames"):
        get(uri(start + frame * 1_000_000), Rules(max_frames=64))
    assert time.monotonic() - since < 5


def jpeg(more: int) -> bytes:
    """A progressive JPEG of six scans, the last of which is there `more` times more."""
    data = picture("JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * more + data[-2:]


def test_scans() -> None:
    assert count_scans(picture("JPEG"), 99) == 1
    assert count_scans(jpeg(3) + jpeg(3), 99) == count_scans(jpeg(0), 99) + 3
    still = jpeg(100 - count_scans(jpeg(0), 99))
    assert get(uri(still)).data == still
    with pytest.raises(OversizeError, match="more than 100 scans"):
        get(uri(jpeg(100)))


def test_a_gif_whose_frame_outgrows_its_screen() -> None:
    data = b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;"
    with pytest.raises(OversizeError, match="pixels"):
        get(uri(data))


def test_a_tighter_limit_of_pixels() -> None:
    assert get(uri(picture("PNG")), Rules(max_pixels=63)).mime == "image/png"
    with pytest.raises(OversizeError, match="9 x 7, more than 62 pixels"):
        get(uri(picture("PNG")), Rules(max_pixels=62))


def test_a_text_that_unpacks_to_much_is_refused() -> None:
    body = b"zTXt" + b"a\0\0" + zlib.compress(b"\0" * 80_000_000)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(ImageError):
        get(uri(RED[:33] + chunk + RED[33:]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STILL), st.data())
def test_damaged_pictures_are_refused_or_read(kind: str, data: st.DataObject) -> None:
    good = bytearray(picture(kind))
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=6)):
        good[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(good)))
    for bad in (bytes(good), bytes(good[:end])):
        with contextlib.suppress(ImageError):
            assert get(uri(bad)).data == bad


# Data URIs.

BODY = base64.b64encode(RED).decode()
WAYS = [
    f"data:image/png;base64,{BODY}",
    f"DATA:image/png;BASE64,{BODY}",
    f"data:;base64,{BODY}",
    f"data:image/jpeg;name=a.png;charset=utf-8;base64,{BODY}",
    f"data:image/png; base64 ,{BODY}",
    f"data:image/png;base64,{BODY.replace('+', '-').replace('/', '_')}",
    f"data:image/png;base64,{BODY.rstrip('=')}",
    f"data:image/png;base64,{BODY.replace('i', '%69')}",
    "data:image/png;base64,\n" + "\r\n ".join(BODY[i : i + 76] for i in range(0, len(BODY), 76)),
    "data:image/png," + "".join(f"%{byte:02x}" for byte in RED),
]


@pytest.mark.parametrize("way", WAYS)
def test_data_uris(way: str) -> None:
    assert get(way) == Image(RED)
    assert media.load_image(way) == Image(RED)


def test_either_alphabet() -> None:
    assert media.unbase64("-_-_") == media.unbase64(b"+/+/") == b"\xfb\xff\xbf"


BAD_WAYS = ["data:image/png;base64,@@@", "data:image/png;base64", "data:image/png;base64,A"]


@pytest.mark.parametrize("way", [*BAD_WAYS, "data:", "data:,", "data:image/png;base64,\u00e9"])
def test_bad_data_uris(way: str) -> None:
    with pytest.raises(ImageError):
        get(way)


def test_a_long_data_uri() -> None:
    with pytest.raises(OversizeError, match=r"the data URI has \d+ bytes, more than 50"):
        get(uri(), Rules(max_bytes=50))


# TLS.


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `a.test` alone, and its key."""
    tool, path = shutil.which("openssl"), tmp_path_factory.mktemp("keys")
    if tool is None:
        pytest.skip("needs the openssl command")
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=a"
    made = "-addext subjectAltName=DNS:a.test -keyout key.pem -out cert.pem"
    line = [tool, *kind.split(), *made.split()]
    subprocess.run(line, cwd=path, check=True, capture_output=True, timeout=30)
    return path


@pytest.fixture
def secure(keys: Path) -> Iterator[Site]:
    """A TLS server whose heads begin with the name that each client asked TLS for."""

    def note(sock: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        site.heads.append(str(name))

    def reply(path: str) -> Iterator[bytes]:
        if path == "/moved":
            yield head(302, location=f"https://b.test:{site.port}/", content_length=0)
        yield from whole(RED)

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(keys / "cert.pem", keys / "key.pem")
    tls.sni_callback = note
    with serve(reply, tls) as site:
        yield site


def visit(site: Site, keys: Path, host: str, path: str = "/") -> Image:
    import httpx

    trust = ssl.create_default_context(cafile=keys / "cert.pem")
    rules = Rules(hosts=("*",), ports=(site.port,), private=LOOPBACK, seconds=5)
    found = resolver(a=["127.0.0.1"], b=["127.0.0.1"])
    url = f"https://{host}:{site.port}{path}"
    return get(url, rules, resolve=found, connect=lambda: httpx.AsyncHTTPTransport(verify=trust))


def test_tls_is_asked_for_the_name_and_not_the_address(secure: Site, keys: Path) -> None:
    assert visit(secure, keys, "a.test") == Image(RED)
    assert secure.heads[0] == "a.test"
    assert f"host: a.test:{secure.port}" in secure.heads[1].lower()


@pytest.mark.parametrize("host", ["b.test", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(secure: Site, keys: Path, host: str) -> None:
    with pytest.raises(ImageError, match="its certificate is not trusted"):
        visit(secure, keys, host)
    assert not any("GET" in note for note in secure.heads)


def test_a_connection_is_not_reused_for_another_name(secure: Site, keys: Path) -> None:
    with pytest.raises(ImageError, match="its certificate is not trusted"):
        visit(secure, keys, "a.test", "/moved")
    assert [note for note in secure.heads if "GET" not in note] == ["a.test", "b.test"]


def test_unknown_authorities_are_not_trusted(secure: Site) -> None:
    rules = Rules(hosts=("*",), ports=(secure.port,), private=LOOPBACK)
    found = resolver(a=["127.0.0.1"])
    with pytest.raises(ImageError, match="its certificate is not trusted"):
        get(f"https://a.test:{secure.port}/", rules, resolve=found, connect=connect)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda path: whole(RED)) as proxy, serve(lambda path: whole(RED)) as site:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert near(site).data == RED
    assert not proxy.heads
