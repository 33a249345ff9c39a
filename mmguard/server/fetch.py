"""Pictures of a request by URL: fetched once, from where they may come, checked, kept as bytes.

The bytes that were checked are the ones that detectors see and models get, so nobody fetches
a URL a second time. Every hop is checked anew, and connects to an address that was checked.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import httpx
from pydantic import AfterValidator, Field, IPvAnyNetwork

from mmguard import media
from mmguard.errors import ImageError, OversizeError
from mmguard.fields import Strict
from mmguard.server.addresses import is_public, matches, read_host, read_literal, within
from mmguard.types import Image

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[], httpx.AsyncBaseTransport]

PORTS = {"https": 443, "http": 80}
MOVED = (301, 302, 303, 307, 308)
# An address that does not answer is followed by the next, but not for ever.
TRIES = 3
HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "mmguard"}


def read_pattern(pattern: str) -> str:
    star, host = ("*.", pattern[2:]) if pattern.startswith("*.") else ("", pattern)
    if pattern == "*":
        return pattern
    try:
        encoded = httpx.URL(scheme="https", host=host).raw_host.decode("ascii")
        return star + read_host(encoded)
    except (ValueError, httpx.InvalidURL):
        raise ValueError("no host; use a name, *.example.com, an address, or * for any") from None


Host = Annotated[str, AfterValidator(read_pattern)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Rules(Strict):
    """Where pictures may come from and how large they may be.

    No URL is fetched unless `hosts` names its host: `example.com` itself, `*.example.com` for
    all below it, or `*` for any public host. `schemes` adds `http` to https, `ports` adds to
    the schemes' own. `private` names networks that may be reached although they are not
    public. A picture takes at most `redirects` hops and `seconds` in all; one frame unless
    `max_frames` says more, as nothing looks at the second. Data URIs need no host.
    """

    hosts: tuple[Host, ...] = ()
    schemes: tuple[Literal["https", "http"], ...] = ("https",)
    ports: tuple[Port, ...] = ()
    private: tuple[IPvAnyNetwork, ...] = ()
    redirects: Annotated[int, Field(ge=0, le=10)] = 3
    seconds: Annotated[float, Field(gt=0, le=300)] = 10.0
    max_bytes: Annotated[int, Field(ge=1, le=media.MAX_BYTES)] = 20 * 2**20
    max_pixels: Annotated[int, Field(ge=1, le=media.MAX_PIXELS)] = media.MAX_PIXELS
    max_frames: Annotated[int, Field(ge=1)] = 1

    @property
    def limits(self) -> media.Limits:
        return media.Limits(self.max_bytes, self.max_pixels, self.max_frames)


async def look_up(host: str, port: int) -> Sequence[str]:
    """All addresses of a host, by the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@functools.cache
def trust() -> ssl.SSLContext:
    """Who is believed: certifi's authorities, or those that `SSL_CERT_FILE` names."""
    return httpx.create_ssl_context()


def connect() -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(verify=trust(), trust_env=False)


async def fetch(
    url: str, rules: Rules, *, resolve: Resolve = look_up, connect: Connect = connect
) -> Image:
    """The picture behind a data URI or URL; its bytes are exactly those received.

    Raises `OversizeError` beyond a limit of size, and `ImageError` for all else. Messages name
    the URL as given, without its query, and never where it led to. `connect` makes the
    transport of one hop.
    """
    trip = Trip(shorten(url), rules, resolve, connect)
    try:
        async with asyncio.timeout(rules.seconds):
            data = None if is_data(url) else await trip.follow(url)
            return await asyncio.to_thread(inspect, url, data, trip)
    except TimeoutError:
        raise trip.refuse(f"took more than {rules.seconds:g} s: send it as a data URI") from None


def is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def inspect(url: str, data: bytes | None, trip: Trip) -> Image:
    return media.check(media.parse_uri(url) if data is None else data, trip.name, trip.rules.limits)


def shorten(url: str) -> str:
    """How messages name a URL: without user, password and query."""
    if is_data(url):
        return "the data URI"
    try:
        parsed = httpx.URL(url)
        return repr(media.shorten(f"{parsed.scheme}://{parsed.host}{parsed.path}"))
    except (httpx.InvalidURL, UnicodeError):
        return "the picture's URL"


@dataclass(frozen=True, slots=True)
class Target:
    """One hop: the URL with its host in one spelling, and the addresses that were checked."""

    url: httpx.URL
    addresses: tuple[str, ...]

    def request(self, address: str, seconds: float) -> httpx.Request:
        """A request to the address that still names the host: to TLS, and in `Host`."""
        headers = {"host": self.url.netloc.decode("ascii"), **HEADERS}
        patience = httpx.Timeout(None, connect=seconds).as_dict()
        extensions = {"sni_hostname": self.url.raw_host.decode("ascii"), "timeout": patience}
        pinned = self.url.copy_with(host=address)
        return httpx.Request("GET", pinned, headers=headers, extensions=extensions)


@dataclass(frozen=True, slots=True)
class Trip:
    """The way to one picture."""

    name: str
    rules: Rules
    resolve: Resolve
    connect: Connect

    def refuse(self, reason: str) -> ImageError:
        return ImageError(f"{self.name} {reason}")

    async def follow(self, url: str) -> bytes:
        """The body at the end of all redirects."""
        found: httpx.URL | bytes = self.parse(url)
        for _ in range(self.rules.redirects + 1):
            if isinstance(found, bytes):
                break
            found = await self.visit(await self.aim(found))
        if isinstance(found, bytes):
            return found
        raise self.refuse(f"has more than {self.rules.redirects} redirects: name its last address")

    def parse(self, url: str) -> httpx.URL:
        try:
            return httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError):
            raise self.refuse("is no URL: use https:// or data:") from None

    async def aim(self, url: httpx.URL) -> Target:
        url = self.admit(url)
        host = url.raw_host.decode("ascii")
        return Target(url, await self.locate(host, url.port or PORTS[url.scheme]))

    def admit(self, url: httpx.URL) -> httpx.URL:
        """The URL in its one spelling, if scheme, user, port and host are within the rules."""
        if url.scheme not in self.rules.schemes:
            use = " or ".join([*(f"{scheme}://" for scheme in self.rules.schemes), "data:"])
            raise self.refuse(f"has or leads to a scheme that is not fetched: use {use}")
        if url.userinfo:
            raise self.refuse("has or leads to a URL with a user name: leave it out")
        if url.port is not None and url.port not in self.rules.ports:
            raise self.refuse("has or leads to a port that is not allowed: leave it out")
        return url.copy_with(host=self.admit_host(url), fragment=None)

    def admit_host(self, url: httpx.URL) -> str:
        try:
            host = read_host(url.raw_host.decode("ascii"))
        except ValueError:
            raise self.refuse("has or leads to a host that is oddly spelled") from None
        if not any(matches(host, pattern) for pattern in self.rules.hosts):
            error = self.refuse(
                "has or leads to a host that is not allowed: send the picture as a data URI,"
                " or ask the operator to allow it"
            )
            error.add_note(f"the host is {host!r}")
            raise error
        return host

    async def locate(self, host: str, port: int) -> tuple[str, ...]:
        """Every address of a host; one that must not be reached refuses all of them."""
        literal = read_literal(host)
        try:
            found = [str(literal)] if literal else await self.resolve(host, port)
        except (OSError, UnicodeError):
            found = []
        if found and all(self.may_reach(address) for address in found):
            return tuple(dict.fromkeys(found))
        # One message for both: which inner names exist is nobody's business.
        raise self.refuse("has or leads to a host without a public address: send a data URI")

    def may_reach(self, text: str) -> bool:
        address = read_literal(text)
        return address is not None and (is_public(address) or within(address, self.rules.private))

    async def visit(self, target: Target) -> httpx.URL | bytes:
        """The body there, or where it has moved to, from the first address that answers."""
        seconds = self.rules.seconds / min(len(target.addresses), TRIES)
        for address in target.addresses[:TRIES]:
            try:
                # A connection of its own: a pool would reuse one whose TLS named another host.
                async with self.connect() as transport:
                    request = target.request(address, seconds)
                    return await self.read(await transport.handle_async_request(request), target)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except httpx.HTTPError:
                raise self.refuse("broke off or answered no HTTP: try again") from None
        raise self.refuse("cannot be reached, or its certificate is not trusted")

    async def read(self, response: httpx.Response, target: Target) -> httpx.URL | bytes:
        try:
            if response.status_code in MOVED:
                return self.turn(target.url, response.headers.get("location", ""))
            if response.status_code != 200:
                raise self.refuse(f"answered {response.status_code}, not 200")
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise self.refuse("is sent compressed: have it sent as it is")
            return await self.collect(response)
        finally:
            await response.aclose()

    def turn(self, here: httpx.URL, location: str) -> httpx.URL:
        try:
            there = here.join(location)
        except httpx.InvalidURL:
            raise self.refuse("redirects to what is no URL") from None
        if here.scheme == "https" and there.scheme == "http":
            raise self.refuse("redirects from https to http: name an https address")
        return there

    async def collect(self, response: httpx.Response) -> bytes:
        most = self.rules.max_bytes
        # What the header says only ever shortens the wait: the count below decides.
        told = response.headers.get("content-length", "")
        if told.isdecimal() and int(told) > most:
            raise self.oversize()
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > most:
                raise self.oversize()
        return bytes(data)

    def oversize(self) -> OversizeError:
        return OversizeError(f"{self.name} has more than {self.rules.max_bytes} bytes")
