"""Lists of addresses and networks: their checks, and whether an address is in one.

A peer over a unix socket has no address: it is told as `unix:uid=1000`, the user that it runs as, and :data:`UNIX`
stands for all of them in a list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from tlsproxy.config.findings import Finding
from tlsproxy.config.positions import Path

UNIX: Final = "unix"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network | Literal["unix"]

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""Addresses of IPv4 on a socket of both (RFC 4291 §2.5.5.2). Listeners tell them as those of IPv4."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(UNIX if text == UNIX else ipaddress.ip_network(text) for text in texts)


def unix_peer(uid: int) -> str:
    """Address of a peer over a unix socket."""
    return f"{UNIX}:uid={uid}"


def is_unix(address: str) -> bool:
    return address.startswith(f"{UNIX}:")


def listed(address: str, among: Iterable[Network]) -> bool:
    """Whether one of the networks has the address. Zones do not count."""
    if is_unix(address):
        return UNIX in among
    found = ipaddress.ip_address(address.partition("%")[0])
    return any(network != UNIX and found in network for network in among)


def _meant(text: str) -> str:
    """The network of an address with bits of its host, as a piece of advice; "" for none."""
    try:
        return f": write {ipaddress.ip_network(text, strict=False)}, or the address alone"
    except ValueError:
        return ""


def findings(path: Path, texts: Iterable[str], everybody: str) -> Iterator[Finding]:
    """Checks of the list at ``path``; ``everybody`` is the warning on a network of all addresses."""
    for index, text in enumerate(texts):
        where: Path = (*path, index)
        if text == UNIX:
            continue
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            yield Finding(where, f"an address or a network such as 10.0.0.0/24 is expected: {error}{_meant(text)}")
            continue
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            base, bits = int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen
            written = ipaddress.IPv4Network((base, bits))
            yield Finding(where, f"addresses of IPv4 are compared as such: write {written}")
        elif not network.prefixlen:
            yield Finding(where, everybody, warning=True)
