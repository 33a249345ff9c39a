"""Pictures by URL: from where they may come, no larger than they may be, and as they came."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from mmguard.errors import ImageError
from mmguard.server.fetch import Resolve, Rules, connect, fetch
from mmguard.types import Image
from tests.test_media import uri
from tests.web import Site, head, serve, whole
from tests.world import png

RED = png()
PUBLIC = "93.184.216.34"
LOOPBACK = (IPv4Network("127.0.0.1/32"),)
ANY = Rules(hosts=("*",))


def resolver(**hosts: Sequence[str]) -> Resolve:
    """Answers for `name.test`; nothing else exists."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host not in {f"{name}.test" for name in hosts}:
            raise socket.gaierror("unknown")
        return hosts[host.removesuffix(".test")]

    return resolve


def forbidden() -> httpx.AsyncBaseTransport:
    raise AssertionError("this must not be connected to")


def get(url: str, rules: Rules = ANY, **how: Any) -> Image:
    return asyncio.run(fetch(url, rules, **{"connect": forbidden, **how}))


class Far:
    """Servers on public addresses, as a transport; `seen` has what they were asked."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answer, self.seen = answer, list[httpx.Request]()

    def __call__(self) -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(self.note)

    def note(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return self.answer(request)


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def red(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=once(RED))


def moves(location: str) -> Far:
    """A server that sends everybody elsewhere."""
    sent = [(b"location", location.encode(errors="replace"))]
    return Far(lambda request: httpx.Response(302, headers=sent))


def near(site: Site, path: str = "/a.png", **how: Any) -> Image:
    """What the loopback server says, as rules for it alone let through."""
    named = {"hosts": ("a.test",), "schemes": ("https", "http"), "ports": (site.port,)}
    rules = Rules(**{**named, "private": LOOPBACK, "seconds": 5, **how})
    found = resolver(a=["127.0.0.1"])
    return get(f"http://a.test:{site.port}{path}", rules, resolve=found, connect=connect)


# Where a URL may lead.


def test_the_checked_address_is_the_one_connected_to() -> None:
    asked = list[str]()

    async def rebind(host: str, port: int) -> Sequence[str]:
        asked.append(f"{host}:{port}")
        return [PUBLIC if len(asked) == 1 else "127.0.0.1"]

    far = Far(red)
    image = get("https://Pics.Test./a.png?x=1#y", resolve=rebind, connect=far)
    assert image == Image(RED)
    assert asked == ["pics.test:443"]
    (request,) = far.seen
    assert str(request.url) == f"https://{PUBLIC}/a.png?x=1"
    assert request.headers["host"] == "pics.test"
    assert request.extensions["sni_hostname"] == "pics.test"
    assert request.headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization"} & set(request.headers)


def test_a_loopback_server_is_reached_by_address_and_asked_by_name() -> None:
    with serve(lambda path: whole(RED)) as site:
        assert near(site) == Image(RED)
    assert site.heads[0].startswith("GET /a.png HTTP/1.1\r\n")
    assert f"\r\nhost: a.test:{site.port}\r\n" in site.heads[0].lower()


def test_the_resolver_of_the_system() -> None:
    inner = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
    with serve(lambda path: whole(RED)) as site:
        rules = Rules(hosts=("localhost",), schemes=("http",), ports=(site.port,), private=inner)
        url = f"http://localhost:{site.port}/"
        assert asyncio.run(fetch(url, rules)).data == RED
        with pytest.raises(ImageError, match="public address"):
            asyncio.run(fetch(url, rules.model_copy(update={"private": ()})))
    assert len(site.heads) == 1


INNER = [
    ["127.0.0.1"],
    ["10.1.2.3"],
    ["172.16.0.1"],
    ["192.168.1.1"],
    ["169.254.169.254"],
    ["100.64.0.1"],
    ["168.63.129.16"],
    ["0.0.0.0"],
    ["224.0.0.1"],
    ["240.0.0.1"],
    ["255.255.255.255"],
    ["::"],
    ["::1"],
    ["::127.0.0.1"],
    ["::ffff:127.0.0.1"],
    ["::ffff:10.0.0.1"],
    ["64:ff9b::10.0.0.1"],
    ["64:ff9b:1::1"],
    ["2002:7f00:1::"],
    ["2001:0:1::1"],
    ["2001:db8::1"],
    ["fc00::1"],
    ["fd00:ec2::254"],
    ["fe80::1"],
    ["fec0::1"],
    ["4000::1"],
    ["fe80::1%2"],
    ["ff02::1"],
    [PUBLIC, "10.0.0.1"],
    ["10.0.0.1", PUBLIC],
    [PUBLIC, "::1"],
    ["not an address"],
    [],
]


@pytest.mark.parametrize("addresses", INNER)
def test_a_name_that_resolves_inwards_is_refused(addresses: list[str]) -> None:
    with pytest.raises(ImageError, match="without a public address") as found:
        get("https://a.test/a.png", resolve=resolver(a=addresses))
    assert not any(address in str(found.value) for address in addresses)


def test_unknown_names_and_inner_ones_look_alike() -> None:
    with pytest.raises(ImageError) as inner:
        get("https://a.test/", resolve=resolver(a=["10.0.0.1"]))
    with pytest.raises(ImageError) as unknown:
        get("https://a.test/", resolve=resolver())
    assert str(inner.value) == str(unknown.value)


PUBLIC_ONES = [PUBLIC, "8.8.8.8", "2606:2800::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", PUBLIC_ONES)
def test_public_addresses_are_reached(address: str) -> None:
    far = Far(red)
    assert get("https://a.test/", resolve=resolver(a=[address]), connect=far).data == RED
    assert ip_address(far.seen[0].url.host) == ip_address(address)


def test_an_address_in_a_url() -> None:
    far = Far(red)
    assert get("https://[2606:2800::1]/", connect=far).data == RED
    assert far.seen[0].headers["host"] == "[2606:2800::1]"
    assert far.seen[0].extensions["sni_hostname"] == "2606:2800::1"


BAD_URLS = [
    ("http://a.test/", "scheme that is not fetched: use https:// or data:"),
    ("file:///etc/hostname", "scheme"),
    ("/etc/hostname", "scheme"),
    ("ftp://a.test/", "scheme"),
    ("gopher://a.test/", "scheme"),
    ("https:/a.png", "oddly spelled"),
    ("//a.test/", "scheme"),
    ("", "scheme"),
    ("https://me@a.test/", "user name"),
    ("https://me:pass@a.test/", "user name"),
    ("https://evil.test\\@a.test/", "user name"),
    ("https://a.test:22/", "port"),
    ("https://a.test:80/", "port"),
    ("https://a.test:0/", "port"),
    ("https://a.test:99999/", "port"),
    ("https://a.test:x/", "no URL"),
    ("https://[::1/", "no URL"),
    ("https://a.test\n/", "no URL"),
    ("https://a..test/", "oddly spelled"),
    ("https://a.test../", "oddly spelled"),
    ("https://a test/", "oddly spelled"),
    ("https://%61.test/", "oddly spelled"),
    ("https://[fe80::1%25eth0]/", "oddly spelled"),
    (f"https://{'a' * 64}.test/", "oddly spelled"),
    (f"https://{'a.' * 130}test/", "oddly spelled"),
    ("https://2130706433/", "oddly spelled"),
    ("https://127.1/", "oddly spelled"),
    ("https://0177.0.0.1/", "no URL"),
    ("https://0x7f.0.0.1/", "oddly spelled"),
    ("https://0x7F000001/", "oddly spelled"),
    ("https://1.2.3.4.5/", "oddly spelled"),
    ("https://127.0.0.1./", "public address"),
    ("https://127。0。0。1/", "public address"),
    ("https://[::]/", "public address"),
    ("https://[::ffff:7f00:1]/", "public address"),
    ("https://localhost/", "public address"),
]


@pytest.mark.parametrize(("url", "reason"), BAD_URLS)
def test_bad_urls(url: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        get(url, resolve=resolver(a=[PUBLIC]))


# Of the others some are relative addresses, one is a downgrade.
ABSOLUTE = [case for case in BAD_URLS if case[0].startswith(("https://", "ftp:", "file:"))]


@pytest.mark.parametrize(("url", "reason"), ABSOLUTE)
def test_bad_redirects(url: str, reason: str) -> None:
    far = moves(url)
    with pytest.raises(ImageError, match=reason):
        get("https://a.test/", resolve=resolver(a=[PUBLIC]), connect=far)
    assert len(far.seen) == 1


# Which hosts are named.


def test_no_host_is_fetched_by_default() -> None:
    with pytest.raises(ImageError, match="not allowed: send the picture as a data URI"):
        get("https://a.test/", Rules(), resolve=resolver(a=[PUBLIC]))
    assert get(uri(), Rules()) == Image(RED)


def test_patterns_are_read_as_hosts_are() -> None:
    rules = Rules(hosts=("A.Test.", "*.Bücher.test", "2606:2800:0::1"))
    assert rules.hosts == ("a.test", "*.xn--bcher-kva.test", "2606:2800::1")
    found = resolver(**{"x.xn--bcher-kva": [PUBLIC]})
    assert get("https://x.bücher.test/", rules, resolve=found, connect=Far(red)).data == RED


@pytest.mark.parametrize("host", ["https://a.test", "a.test:8", "a.*.test", "*a.test", "", "127.1"])
def test_bad_patterns(host: str) -> None:
    with pytest.raises(ValidationError, match="no host"):
        Rules(hosts=(host,))


def test_a_named_host_may_not_lead_inwards() -> None:
    with pytest.raises(ImageError, match="public address"):
        get("https://a.test/", Rules(hosts=("a.test",)), resolve=resolver(a=["10.0.0.1"]))


# Redirects.


def test_redirects_are_followed_and_checked() -> None:
    answers = {
        "/1": httpx.Response(302, headers={"location": "/2"}),
        "/2": httpx.Response(307, headers={"location": "https://b.test/3"}),
        "/3": httpx.Response(200, content=once(RED)),
    }
    far = Far(lambda request: answers[request.url.path])
    found = resolver(a=[PUBLIC], b=["8.8.8.8"])
    assert get("https://a.test/1", resolve=found, connect=far).data == RED
    assert [request.url.host for request in far.seen] == [PUBLIC, PUBLIC, "8.8.8.8"]
    assert far.seen[2].headers["host"] == "b.test"


INWARDS = ["https://b.test/", "https://127.0.0.1/", "https://[::1]/", "//169.254.169.254/latest"]


@pytest.mark.parametrize("location", INWARDS)
def test_a_redirect_inwards_is_refused_and_not_told(location: str) -> None:
    far = moves(location)
    with pytest.raises(ImageError, match="public address") as found:
        get("https://a.test/", resolve=resolver(a=[PUBLIC], b=["10.9.8.7"]), connect=far)
    assert len(far.seen) == 1
    for secret in ("b.test", "127.0.0.1", "::1", "169.254", "10.9.8.7"):
        assert secret not in str(found.value)


def test_a_real_redirect_inwards_is_not_followed() -> None:
    with serve(lambda path: whole(RED)) as inner:

        def answer(path: str) -> Iterator[bytes]:
            yield head(302, location=f"http://127.0.0.2:{inner.port}/", content_length=0)

        with serve(answer) as site, pytest.raises(ImageError, match="public address"):
            near(site, hosts=("*",), ports=(site.port, inner.port))
    assert len(site.heads) == 1
    assert not inner.heads


def test_the_second_hop_is_resolved_anew() -> None:
    turns = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebind(host: str, port: int) -> Sequence[str]:
        return next(turns)

    far = moves("/again")
    with pytest.raises(ImageError, match="public address"):
        get("https://a.test/", resolve=rebind, connect=far)
    assert len(far.seen) == 1


def test_a_redirect_to_a_host_that_is_not_named() -> None:
    far = moves("https://b.test/")
    rules = Rules(hosts=("a.test",))
    with pytest.raises(ImageError, match="not allowed") as found:
        get("https://a.test/", rules, resolve=resolver(a=[PUBLIC], b=[PUBLIC]), connect=far)
    assert "b.test" not in str(found.value)
    assert found.value.__notes__ == ["the host is 'b.test'"]


def test_no_way_back_to_http() -> None:
    rules = Rules(hosts=("*",), schemes=("https", "http"))
    far = moves("http://a.test/")
    with pytest.raises(ImageError, match="from https to http"):
        get("https://a.test/", rules, resolve=resolver(a=[PUBLIC]), connect=far)
    assert len(far.seen) == 1
    with pytest.raises(ImageError, match="more than 3 redirects"):
        get("http://a.test/", rules, resolve=resolver(a=[PUBLIC]), connect=far)


@pytest.mark.parametrize("most", [0, 2])
def test_redirect_loops_end(most: int) -> None:
    far = moves("/")
    rules = Rules(hosts=("*",), redirects=most)
    with pytest.raises(ImageError, match=f"more than {most} redirects"):
        get("https://a.test/", rules, resolve=resolver(a=[PUBLIC]), connect=far)
    assert len(far.seen) == most + 1


@pytest.mark.parametrize("location", ["data:image/png;base64,AAAA", "file:///etc/hostname"])
def test_redirects_to_other_schemes(location: str) -> None:
    with pytest.raises(ImageError, match="scheme"):
        get("https://a.test/", resolve=resolver(a=[PUBLIC]), connect=moves(location))
