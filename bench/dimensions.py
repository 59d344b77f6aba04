"""What a gateway can have much of: one row for each, with the sizes that are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bench.peers.tlsproxy import IDENTITIES, ROLES
from bench.site import DIMENSIONS, Site, search
from bench.workloads import BY_NAME, Workload

Sections = dict[str, Any]
_NEW_HEAD = BY_NAME["get-varying"]
_FIRST_SERIAL = 1 << 70
_BUSY = 10
"""Connections that ask, of those that are open."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """``sections`` of the configuration for a size, ``prepare`` what it needs in the site; ``sized``: the workload.

    ``resting``: how many connections are open beside those that ask. ``nodes``: servers behind the gateway, each a
    node; 0: one, by `upstream.rest` and `upstream.grpc`. ``tls``: whether that one is spoken to by TLS, with a client
    certificate.
    """

    name: str
    title: str
    sizes: tuple[int, ...]
    workload: Workload
    sections: Callable[[int], Sections] = lambda _size: {}
    prepare: Callable[[Site, int], object] = lambda _site, _size: None
    sized: Callable[[Workload, int], Workload] = lambda workload, _size: workload
    resting: Callable[[int], int] = lambda _size: 0
    nodes: Callable[[int], int] = lambda _size: 0
    tls: Callable[[int], bool] = lambda _size: False


def _roles(size: int) -> Sections:
    """Each with a rule's worth of rights; the caller's is the last."""
    others = {f"role-{n}": {"access": [{"collection": f"docs-{n}", "access": "rw"}]} for n in range(size - 1)}
    return {"roles": others | ROLES}


def _rules(size: int) -> Sections:
    others = [{"name": f"rule-{n}", "match": {"cn": f"service-{n}"}, "role": "reader"} for n in range(size)]
    return {"identities": [*others, *IDENTITIES]}


def _globs(size: int) -> Sections:
    others = [{"name": f"rule-{n}", "match": {"cn": f"service-{n}-*"}, "role": "reader"} for n in range(size)]
    return {"identities": [*others, *IDENTITIES]}


def _collections(size: int) -> Sections:
    """Those of the caller's own role; the one that it asks for is the last."""
    names = [*(f"docs-{n}" for n in range(size - 1)), "items"]
    return {"roles": ROLES | {"limited": {"access": [{"collection": name, "access": "rw"} for name in names]}}}


def _by_nodes(workload: str) -> Dimension:
    basis = BY_NAME[workload]
    return Dimension(f"nodes-{workload}", f"{basis.title}, by nodes", (0, 1, 3, 10), basis, nodes=lambda size: size)


def _by_tls(workload: str) -> Dimension:
    basis = BY_NAME[workload]
    return Dimension(f"tls-{workload}", f"{basis.title}, TLS to the upstream", (0, 1), basis, tls=bool)


def _crl_name(size: int) -> str:
    return f"crl-{size}.pem"


def _write_crl(site: Site, size: int) -> None:
    site.path(_crl_name(size)).write_bytes(site.authority.crl_pem(range(_FIRST_SERIAL, _FIRST_SERIAL + size)))


def _body_name(size: int) -> str:
    return f"search-{size}"


def _write_body(site: Site, size: int) -> None:
    site.request(_body_name(size)).write_bytes(search(size * DIMENSIONS // 12))


SCALE: tuple[Dimension, ...] = (
    Dimension(
        "body",
        "search, body inspected, by KB of body",
        (1, 10, 100, 1000),
        replace(BY_NAME["search-inspected"], connections=16),
        prepare=_write_body,
        sized=lambda workload, size: replace(workload, request=_body_name(size)),
    ),
    Dimension("roles", "GET with a new head, by roles", (1, 10, 100, 1000), _NEW_HEAD, _roles),
    Dimension("rules", "handshake, by rules before the match", (1, 100, 10_000), BY_NAME["handshake"], _rules),
    Dimension("globs", "handshake, by rules with globs before it", (1, 100, 10_000), BY_NAME["handshake"], _globs),
    Dimension(
        "collections",
        "GET with a new head, by collections of the role",
        (1, 10, 100, 1000),
        replace(_NEW_HEAD, client="limited"),
        _collections,
    ),
    Dimension(
        "connections",
        "small GET, by connections that are open",
        (10, 100, 1000, 10_000),
        replace(BY_NAME["get"], connections=_BUSY),
        resting=lambda size: size - _BUSY,
    ),
    Dimension(
        "crl",
        "handshake, by revoked certificates in a CRL",
        (0, 1000, 100_000, 500_000),
        BY_NAME["handshake"],
        lambda size: {"tls": {"crl": [_crl_name(size)]}} if size else {},
        prepare=lambda site, size: _write_crl(site, size) if size else None,
    ),
    _by_nodes("get"),
    _by_nodes("grpc"),
    _by_tls("get"),
    _by_tls("grpc"),
    _by_tls("download"),
)
