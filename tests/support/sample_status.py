"""A status as a busy gateway would tell it, with names that somebody chose to do harm."""

from __future__ import annotations

import math
from typing import Any

NOW = 1_800_000_005.0
HOSTILE = "CN=<script>alert(1)</script>\"'><img src=x onerror=alert(2)>,O={{ 7*7 }}\x1b[2J\u202e[red]&amp;"
DAY = 86400.0


def certificate(subject: str, begins: float, ends: float, **more: Any) -> dict[str, Any]:
    facts = {"subject": subject, "issuer": "CN=Example root", "serial": "5e1f00d5", "sha256": "ab" * 32}
    return facts | {"not_before": NOW + begins, "not_after": NOW + ends, "dns_names": [], "ips": []} | more


def lifetime(kind: str, name: str, begins: float, ends: float, detail: str = "serial 5e1f00d5") -> dict[str, Any]:
    """``begins`` and ``ends`` are in days from now."""
    told = {"kind": kind, "name": name, "source": "a file", "detail": detail, "edition": "e"}
    return told | {"start": NOW + begins * DAY, "end": NOW + ends * DAY}


def connection(number: int, identity: str | None, **more: Any) -> dict[str, Any]:
    told = {
        "number": number,
        "protocol": "rest",
        "address": "192.0.2.7",
        "identity": identity,
        "issuer": "CN=Example root",
        "ca": "CN=Partner root" if identity else None,
        "ca_sha256": "cd" * 32 if identity else None,
    }
    told |= {"serial": "77", "certificate_expires": NOW + DAY, "rule": "platform", "role": "admin", "key": None}
    told |= {"age": 61.0 * number, "requests": 17, "bytes_in": 4096, "bytes_out": 5_400_000, "ending": None}
    return told | more


def refusal(when: float, identity: str | None, **more: Any) -> dict[str, Any]:
    told = {"when": NOW - when, "remote": "192.0.2.7", "operation": "upsert_points", "reason": "needs_write"}
    told |= {
        "identity": identity,
        "key": None,
        "rule": "search-svc",
        "role": "search",
        "collection": "docs",
        "presented": None,
    }
    return told | more


def slots() -> list[dict[str, Any]]:
    first = int(NOW) // 10 * 10 - 890
    wave = [round(60 + 50 * math.sin(index / 7)) for index in range(90)]
    return [
        {
            "start": first + 10 * index,
            "roles": {
                "search": {"allowed": wave[index], "denied": 9 * (index % 17 == 3)},
                "ingest": {"allowed": wave[-index] // 9, "failed": 4 * (60 < index < 66)},
                **({"": {"denied": 3}} if index > 80 else {}),
            },
        }
        for index in range(90)
    ]


def status(**more: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "version": "0.1.0",
        "form": "compiled",
        "readiness": {"ready": True, "state": "serving", "headline": "serving", "parts": {"reload": "ok"}},
        "generation": {
            "number": 4, "digest": "d" * 64, "built_at": NOW - 4000, "warnings": [f"ca.pem: {HOSTILE} expired"],
            "unused": [], "restart_needed": ["service.http_port"],
        },
        "last_reload": {
            "result": "ok", "trigger": "watch", "when": NOW - 3999, "generation": 4, "error": "",
            "changed_at": NOW - 3999,
            "changes": [
                {"what": "role", "name": "search", "how": "changed", "detail": "access r → rw on docs"},
                {"what": "CA", "name": HOSTILE, "how": "added", "detail": ""},
            ],
        },
        "certificate": certificate(
            "CN=qdrant.example.org", -60 * DAY, 30 * DAY,
            dns_names=["qdrant.example.org"], ips=["192.0.2.1"],
        ),
        "authorities": [
            certificate("CN=Example root", -3000 * DAY, 650 * DAY),
            certificate("CN=Example issuing CA 2026", -360 * DAY, 5 * DAY),
            certificate(HOSTILE, -300 * DAY, -3 * DAY),
        ],
        "crls": [{
            "issuer": "CN=Example root", "number": 7, "count": 12, "scope": "s",
            "this_update": NOW - DAY, "next_update": NOW + 6 * DAY,
        }],
        "lifetimes": [
            lifetime("server", "CN=qdrant.example.org", -60, 30, "serial 5e1f00d5, for qdrant.example.org, 192.0.2.1"),
            lifetime("intermediate", "CN=Example servers", -60, 1000),
            lifetime("ca", "CN=Example root", -3000, 650),
            lifetime("ca", "CN=Example issuing CA 2026", -360, 5),
            lifetime("ca", HOSTILE, -300, -3),
            lifetime("crl", "CN=Example root", -1, 6, "12 revoked"),
            lifetime("key", "nightly", -85, 5, "role ingest"),
        ],
        "key_sets": [],
        "listeners": [
            {"address": "0.0.0.0:6333", "protocols": ["rest"]},
            {"address": "0.0.0.0:6334", "protocols": ["grpc"]},
        ],
        "connections": {
            "open": 3, "draining": False,
            "live": [
                connection(1, "CN=alice,OU=platform", tls_version="TLSv1.2", tls_cipher="AEAD", tls_group="X25519"),
                connection(2, HOSTILE, protocol="grpc", role="search", rule="search-svc", ending="certificate_revoked"),
                connection(7, None, rule=None, role=None, key="nightly"),
            ],
        },
        "tls": [
            {"version": "TLSv1.3", "cipher": "AEAD", "group": None, "connections": 2},
            {"version": "TLSv1.2", "cipher": "AEAD", "group": "X25519", "connections": 1},
        ],
        "upstream": {"rest": "http://127.0.0.1:16333", "idle": 3, "busy": 1},
        "decisions": {"seconds": 10, "kept": 90, "slots": slots()},
        "refusals": [
            refusal(3, "spiffe://example.org/search/web"),
            refusal(9, HOSTILE, collection="<b>docs</b>", operation="unknown", reason="no_role", rule=None, role=None),
            refusal(30, None, operation="handshake", reason="no_certificate", rule=None, role=None, collection=None),
            refusal(31, None, operation="handshake", reason="unknown_ca", rule=None, role=None, presented="CN=b"),
            refusal(80_000, None, key="nightly", reason="invalid_key"),
        ],
        "audit": {"queued": 2, "written": 48211, "dropped": 0},
    }  # fmt: skip
    return told | more
