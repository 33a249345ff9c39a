"""Which addresses are public, the one spelling of a host, and all the others."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings, strategies as st

from mmguard.errors import ImageError
from mmguard.server.addresses import is_public, matches, read_host
from mmguard.server.fetch import Rules
from tests.test_fetch import PUBLIC, get, moves, resolver


@given(st.ip_addresses())
def test_public_is_a_narrow_word(address: IPv4Address | IPv6Address) -> None:
    plain = address.is_global and not address.is_multicast and not address.is_private
    assert not is_public(address) or plain or str(address).startswith(("::ffff:", "64:ff9b::"))


def test_patterns() -> None:
    assert matches("a.test", "a.test")
    assert matches("b.a.test", "*.a.test")
    assert matches("c.b.a.test", "*.a.test")
    for host in ("a.test", "ba.test", "a.test.evil", "b.a.test.evil"):
        assert not matches(host, "*.a.test")
    assert not matches("b.a.test", "a.test")


@pytest.mark.parametrize("host", ["EXAMPLE.com.", "example.com"])
def test_hosts_have_one_spelling(host: str) -> None:
    assert read_host(host) == "example.com"


HOSTILE = st.text(st.sampled_from("a1.:/\\@[]%?#-_ \t*é。ß℀٣\u200d\ufeff") | st.characters())


@settings(max_examples=300, deadline=None)
@example("\ud800", "").via("half of a surrogate pair was once an error of the encoding")
@given(HOSTILE, st.sampled_from(["", "//", "https:", "https://", "https://[", "https://a.test"]))
def test_no_text_is_more_than_a_bad_url(text: str, start: str) -> None:
    rules, found = Rules(hosts=("a.test",), redirects=1), resolver(a=[PUBLIC])
    for how in ({"url": start + text}, {"url": "https://a.test/", "location": start + text}):
        far = moves(how.get("location", "/"))
        with pytest.raises(ImageError):
            get(how["url"], rules, resolve=found, connect=far)
        assert {request.url.host for request in far.seen} <= {PUBLIC}


V4 = st.sampled_from(["127.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "0.0.0.0/8"])


def parts(number: int, count: int) -> list[int]:
    """An address as `inet_aton` splits it: the last part holds all that is left."""
    octets = list(number.to_bytes(4, "big"))
    return [*octets[: count - 1], int.from_bytes(bytes(octets[count - 1 :]), "big")]


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """A private address as some resolver, proxy or network would read it."""
    number = int(draw(V4.flatmap(lambda net: st.ip_addresses(v=4, network=net))))
    plain, wide = IPv4Address(number), (number >> 16, number & 0xFFFF)
    six = [
        f"::ffff:{plain}",
        f"::{plain}",
        f"64:ff9b::{plain}",
        f"2002:{wide[0]:x}:{wide[1]:x}::1",
        f"0:0:0:0:0:FFFF:{wide[0]:X}:{wide[1]:x}",
    ]
    if draw(st.booleans()):
        return f"[{draw(st.sampled_from(six))}]"
    forms = st.sampled_from(["{}", "0{:o}", "0x{:x}", "0X{:X}", "00{:o}", "0x0{:x}"])
    words = [draw(forms).format(part) for part in parts(number, draw(st.integers(1, 4)))]
    return draw(st.sampled_from([".", "。"])).join(words) + draw(st.sampled_from(["", "."]))


async def lenient(host: str, port: int) -> Sequence[str]:
    """Reads whatever the C library takes for an address; asks nobody."""
    found = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@settings(max_examples=300, deadline=None)
@given(spellings())
def test_no_spelling_of_a_private_address_gets_through(host: str) -> None:
    with pytest.raises(ImageError):
        get(f"https://{host}/", resolve=lenient)
    with pytest.raises(ImageError):
        get("https://a.test/", resolve=lambda _, port: lenient(host.strip("[]"), port))
