"""Checks of `health`, and the networks of its probes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from tlsproxy.config.findings import Finding
from tlsproxy.config.model import Config
from tlsproxy.config.positions import Tree

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def probe_networks(config: Config) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, config.health.probe_networks))


def networks(config: Config, _tree: Tree) -> Iterator[Finding]:
    for index, text in enumerate(config.health.probe_networks):
        path = ("health", "probe_networks", index)
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            yield Finding(path, f"an address or a network such as 10.0.0.0/24 is expected: {error}")
            continue
        if not network.prefixlen:
            warned = "this is everybody: a connection without a certificate is nobody's failed authentication any more"
            yield Finding(path, warned, warning=True)
