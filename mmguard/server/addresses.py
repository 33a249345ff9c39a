"""Hosts and addresses that a caller's URL may lead to; no I/O.

Fail-closed: an address is public if the registries say so and nothing here says otherwise
(IANA special-purpose address registries, RFC 6890; RFC 6052 for NAT64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

GLOBAL = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
# What `ipaddress` of some Python we run on takes for public.
CLOSED: tuple[Network, ...] = tuple(
    ip_network(net)
    for net in (
        "100.64.0.0/10",  # carrier-grade NAT; one cloud's metadata
        "168.63.129.16/32",  # another cloud's host, on a public address
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# A name that ends so is an IPv4 address to somebody (WHATWG URL, "ends in a number").
NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")


def is_public(address: Address) -> bool:
    """Whether anybody on the internet may be behind it, and nobody nearer."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or unwrap(address)
        if inner:
            return is_public(inner)
        if address.scope_id or address not in GLOBAL:
            return False
    special = address.is_multicast or address.is_reserved or within(address, CLOSED)
    return address.is_global and not special


def unwrap(address: IPv6Address) -> IPv4Address | None:
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None


def within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def read_host(host: str) -> str:
    """A host in its one spelling: lower case, no last dot, an address in canonical form.

    Raises `ValueError` for what is no name (RFC 1123, and `_`) or an address spelled oddly:
    `127.1`, `0177.0.0.1`, `0x7f000001` and `2130706433` are loopback to some resolvers.
    """
    if ":" in host and "%" not in host:
        return str(IPv6Address(host))
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not NAME.fullmatch(host):
        raise ValueError("is no host name")
    if NUMBER.fullmatch(host.rpartition(".")[2]):
        return str(IPv4Address(host))
    return host


def read_literal(host: str) -> Address | None:
    """The address that a host of `read_host` spells out, if it does."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def matches(host: str, pattern: str) -> bool:
    """Whether a host of `read_host` is named: exactly, by `*.example.com`, or by `*`.

    `*.example.com` names what is below `example.com`, at any depth, and not itself.
    """
    if pattern == "*":
        return True
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
