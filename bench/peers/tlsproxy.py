"""tlsproxy as it ships: compiled, with policy, identities, the audit log in a file, the admin server with its metrics.

Beside it the same in plain Python. Where nothing is compiled there is the plain form alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

import tlsproxy
from bench.compiled import interpreter
from bench.errors import AbsentError
from bench.peers.peer import WITH_TWO, Peer, Place, Program
from bench.site import AUDIENCE, BLINDED, BOUNDED, CLIENT, GROUP, ISSUER, LIMITED

_ITEMS = [{"collection": "items", "access": "rw"}]
_BOUNDS = {"max_limit": 100, "max_offset": 1000, "exact": "forbid", "timeout": 10}
ROLES: dict[str, Any] = {
    "admin": {"access": "m"},
    "reader": {"access": "r"},
    "limited": {"access": _ITEMS},
    "bounded": {"access": _ITEMS, "queries": _BOUNDS},
    "blinded": {"access": _ITEMS, "queries": {**_BOUNDS, "payload": {"hide": ["salary"]}}},
}
IDENTITIES: list[Any] = [
    {"name": "operators", "match": {"ou": "operators"}, "role": "admin"},
    {"name": "search", "match": {"uri": f"spiffe://bench/{CLIENT}"}, "role": "admin"},
    {"name": "limited", "match": {"cn": LIMITED, "o": "bench"}, "role": "limited"},
    {"name": "bounded", "match": {"cn": BOUNDED, "o": "bench"}, "role": "bounded"},
    {"name": "blinded", "match": {"cn": BLINDED, "o": "bench"}, "role": "blinded"},
    {"name": "group", "match": {"claims": {"iss": ISSUER, "groups": GROUP}}, "role": "limited"},
]


def locate(venv: Path) -> Program:
    try:
        return _program(str(interpreter(venv.parent)), "compiled")
    except AbsentError:
        return _program(sys.executable, "plain")


def _locate_plain(venv: Path) -> Program:
    try:
        interpreter(venv.parent)
    except AbsentError as error:
        raise AbsentError(f"tlsproxy itself is plain here: {error}") from None
    return _program(sys.executable, "plain")


def _program(python: str, form: str) -> Program:
    return Program(python, f"{tlsproxy.__version__} {form} (Python {sys.version.split()[0]})")


def configuration(place: Place, **sections: Mapping[str, Any] | list[Any]) -> dict[str, Any]:
    """Sections that are given are merged into the usual ones; a list replaces."""
    site = place.site
    config: dict[str, Any] = {
        "service": {"host": "127.0.0.1", "http_port": place.http, "grpc_port": place.grpc},
        "listeners": [
            {"port": place.tcp, "mode": "tcp", "upstream": f"127.0.0.1:{place.upstream_http}", "allow": ["admin"]}
        ],
        "tls": {name: str(site.path(file)) for name, file in _FILES.items()},
        "upstream": {
            "rest": f"http://127.0.0.1:{place.upstream_http}",
            "grpc": f"http://127.0.0.1:{place.upstream_grpc}",
        },
        "roles": ROLES,
        "identities": IDENTITIES,
        "jwt_issuers": [
            {
                "name": "bench",
                "issuer": ISSUER,
                "audience": AUDIENCE,
                "algorithm": "EdDSA",
                "pem": str(site.path("issuer.pem")),
            }
        ],
        "workers": place.workers,
        "audit": {"dir": str(place.directory / "audit")},
        "admin": {"listen": f"unix:{place.directory}/admin.sock"},
        # All clients of the bench share one address, few connections carry many calls, and many rest.
        "limits": {
            "connections": 20_000,
            "connections_per_address": 20_000,
            "streams_per_second": 1_000_000,
            "idle_timeout": 3600,
        },
    }
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(section, Mapping) else section
    return config


_FILES = {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem"}


def command(program: Program, place: Place) -> list[str]:
    config = place.write("tlsproxy.yaml", yaml.safe_dump(configuration(place)))
    return [program.path, "-P", "-m", "tlsproxy", "run", "--config", str(config)]


PEER: Peer = Peer("tlsproxy", frozenset({"http", "grpc", "tcp"}), locate, command, reload=0)
PLAIN: Peer = replace(PEER, name="tlsproxy-plain", locate=_locate_plain, reload=None, note="tlsproxy in plain Python")
TWO: Peer = replace(PEER, name="tlsproxy-2", workers=2, only=WITH_TWO, note="two workers, on both sets of cores")
