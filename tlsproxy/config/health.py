"""Address of the health listener, networks of probes, and the checks of `health`."""

from __future__ import annotations

from collections.abc import Iterator

from tlsproxy.config.endpoints import Endpoint, UnixSocket, admin_endpoint, listen_endpoint
from tlsproxy.config.findings import Finding
from tlsproxy.config.listeners import listening
from tlsproxy.config.model import Config
from tlsproxy.config.networks import findings
from tlsproxy.config.positions import Path, Tree, dotted


def health_endpoint(config: Config) -> Endpoint | UnixSocket | None:
    """Address of the health listener. Raises ValueError."""
    return None if config.health.listen is None else listen_endpoint(config.health.listen)


def listener(config: Config, _tree: Tree) -> Iterator[Finding]:
    path: Path = ("health", "listen")
    try:
        endpoint = health_endpoint(config)
    except ValueError as error:
        yield Finding(path, str(error))
        return
    if endpoint is None:
        for key in ("tls", "metrics", "proxy_protocol"):
            if getattr(config.health, key):
                yield Finding(("health", key), "health.listen is missing: nothing is served", warning=True)
        return
    for entry in listening(config):
        if entry.endpoint.overlaps(endpoint):
            yield Finding(path, f"{endpoint} is taken: {dotted(entry.path)} listens on {entry.endpoint}")
    admin = _admin(config)
    if admin is not None and admin.overlaps(endpoint):
        yield Finding(path, f"{endpoint} is taken: admin.listen is {admin}")


def _admin(config: Config) -> Endpoint | UnixSocket | None:
    """Address of the admin server; None for one that its own check reports."""
    try:
        return None if config.admin.listen is None else admin_endpoint(config.admin.listen)
    except ValueError:
        return None


def networks(config: Config, _tree: Tree) -> Iterator[Finding]:
    everybody = "this is everybody: a connection without a certificate is nobody's failed authentication any more"
    yield from findings(("health", "probe_networks"), config.health.probe_networks, everybody)
