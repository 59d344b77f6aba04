"""What tlsproxy wants to reach: at most this much of a peer's CPU (or memory), as the median of paired rounds."""

from __future__ import annotations

_BULK = {"nginx": 0.85, "nginx-raised": 1.15, "haproxy": 0.9, "nghttpx": 0.85, "envoy": 1.15, "caddy": 0.95}
_INSPECTED = {"nginx": 1.7, "haproxy": 2.0, "nghttpx": 1.7, "envoy": 0.75, "caddy": 0.35}

TARGETS: dict[str, dict[str, float]] = {
    "get": {"nginx": 1.15, "haproxy": 1.25, "nghttpx": 1.2, "envoy": 0.5, "caddy": 0.22},
    "search": {"nginx": 1.1, "haproxy": 1.3, "nghttpx": 1.1, "envoy": 0.48, "caddy": 0.22},
    "search-inspected": _INSPECTED,
    "search-claims": _INSPECTED,
    "search-policy": _INSPECTED,
    "upsert": _BULK,
    "download": _BULK,
    "handshake": {"nginx": 0.8, "haproxy": 0.75, "nghttpx": 0.8, "envoy": 2.0, "caddy": 1.4},
    "grpc": {"nginx": 0.4, "haproxy": 0.7, "nghttpx": 1.1, "envoy": 0.25, "caddy": 0.13},
    "grpc-varying": {"nginx": 1.0, "haproxy": 1.8, "envoy": 0.7, "caddy": 0.4},
    "tcp": {"nginx": 1.4, "haproxy": 1.4, "envoy": 1.3},
}
BESIDE: dict[str, tuple[str, float | None]] = {
    "search-claims": ("search-inspected", 1.1),
    "search-policy": ("search-inspected", 1.1),
    "search-hidden": ("search-inspected", None),
    "grpc-policy": ("grpc-inspected", 1.1),
    "grpc-hidden": ("grpc-inspected", None),
}
"""The workload of ours that each is paired with, and at most what it should cost of that: a tenth is noise. Where
something is hidden the answer is read too, and there is none.
"""
AIMED_AT = ("nginx", "haproxy", "nghttpx", "envoy", "caddy")
"""The peers that most of them are for."""
IDLE: dict[str, float] = {"nginx": 1.1, "haproxy": 1.15, "nghttpx": 1.15, "envoy": 0.9, "caddy": 0.62}
