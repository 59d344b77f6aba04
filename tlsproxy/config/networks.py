"""Lists of addresses and networks: their checks, and whether an address is in one."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from tlsproxy.config.findings import Finding
from tlsproxy.config.positions import Path

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""Addresses of IPv4 on a socket of both (RFC 4291 §2.5.5.2). Listeners tell them as those of IPv4."""


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


def listed(address: str, among: Iterable[Network]) -> bool:
    """Whether one of the networks has the address. Zones do not count."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return any(found in network for network in among)


def findings(path: Path, texts: Iterable[str], everybody: str) -> Iterator[Finding]:
    """Checks of the list at ``path``; ``everybody`` is the warning on a network of all addresses."""
    for index, text in enumerate(texts):
        where: Path = (*path, index)
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            yield Finding(where, f"an address or a network such as 10.0.0.0/24 is expected: {error}")
            continue
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            base, bits = int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen
            written = ipaddress.IPv4Network((base, bits))
            yield Finding(where, f"addresses of IPv4 are compared as such: write {written}")
        elif not network.prefixlen:
            yield Finding(where, everybody, warning=True)
