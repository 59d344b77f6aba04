"""Address of the health listener, networks of probes, and the checks of `health`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

from tlsproxy.config.endpoints import Endpoint, admin_endpoint, listen_endpoint
from tlsproxy.config.findings import Finding
from tlsproxy.config.listeners import listening
from tlsproxy.config.model import Config
from tlsproxy.config.positions import Path, Tree, dotted

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
"""Addresses of IPv4 on a socket of both (RFC 4291 §2.5.5.2). Listeners tell them as those of IPv4."""


def health_endpoint(config: Config) -> Endpoint | None:
    """Address of the health listener. Raises ValueError."""
    return None if config.health.listen is None else listen_endpoint(config.health.listen)


def probe_networks(config: Config) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, config.health.probe_networks))


def listener(config: Config, _tree: Tree) -> Iterator[Finding]:
    path: Path = ("health", "listen")
    try:
        endpoint = health_endpoint(config)
    except ValueError as error:
        yield Finding(path, str(error))
        return
    if endpoint is None:
        for key in ("tls", "metrics"):
            if getattr(config.health, key):
                yield Finding(("health", key), "health.listen is missing: nothing is served", warning=True)
        return
    for entry in listening(config):
        if entry.endpoint.overlaps(endpoint):
            yield Finding(path, f"{endpoint} is taken: {dotted(entry.path)} listens on {entry.endpoint}")
    admin = _admin(config)
    if isinstance(admin, Endpoint) and admin.overlaps(endpoint):
        yield Finding(path, f"{endpoint} is taken: admin.listen is {admin}")


def _admin(config: Config) -> Endpoint | str | None:
    """Address of the admin server; None for one that its own check reports."""
    try:
        return None if config.admin.listen is None else admin_endpoint(config.admin.listen)
    except ValueError:
        return None


def networks(config: Config, _tree: Tree) -> Iterator[Finding]:
    for index, text in enumerate(config.health.probe_networks):
        path = ("health", "probe_networks", index)
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            yield Finding(path, f"an address or a network such as 10.0.0.0/24 is expected: {error}")
            continue
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            base, bits = int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen
            written = ipaddress.IPv4Network((base, bits))
            yield Finding(path, f"addresses of IPv4 are compared as such: write {written}")
        elif not network.prefixlen:
            warned = "this is everybody: a connection without a certificate is nobody's failed authentication any more"
            yield Finding(path, warned, warning=True)
