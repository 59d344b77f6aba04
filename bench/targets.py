"""What tlsproxy wants to reach: at most this much of a peer's CPU (or memory), as the median of paired rounds."""

from __future__ import annotations

_INSPECTED = {"nginx": 1.1, "haproxy": 1.4, "nghttpx": 1.15, "envoy": 0.55, "caddy": 0.35}

TARGETS: dict[str, dict[str, float]] = {
    "get": {"nginx": 1.0, "haproxy": 1.0, "nghttpx": 1.0, "envoy": 0.35, "caddy": 0.22},
    "get-varying": {"nginx": 1.5, "haproxy": 1.5, "envoy": 0.6},
    "search": {"nginx": 0.95, "haproxy": 1.1, "nghttpx": 0.9, "envoy": 0.45, "caddy": 0.22},
    "search-inspected": _INSPECTED,
    "search-claims": _INSPECTED,
    "search-policy": _INSPECTED,
    "upsert": {"nginx": 0.7, "nginx-raised": 1.15, "haproxy": 0.85, "nghttpx": 0.85, "envoy": 1.05, "caddy": 0.95},
    "download": {"nginx": 0.85, "nginx-raised": 1.15, "haproxy": 0.75, "nghttpx": 0.85, "envoy": 1.25, "caddy": 0.95},
    "handshake": {"nginx": 0.8, "haproxy": 0.72, "nghttpx": 0.74, "envoy": 1.4, "caddy": 1.4},
    "grpc": {"nginx": 0.35, "haproxy": 0.8, "nghttpx": 1.2, "envoy": 0.35, "caddy": 0.13},
    "grpc-varying": {"nginx": 0.45, "haproxy": 1.0, "nghttpx": 1.3, "envoy": 0.4, "caddy": 0.4},
    "grpc-inspected": {"nginx": 0.55, "haproxy": 1.2, "nghttpx": 1.7},
    "tcp": {"nginx": 1.0, "haproxy": 0.95, "envoy": 0.8},
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
IDLE: dict[str, float] = {"nginx": 1.1, "haproxy": 1.1, "nghttpx": 1.1, "envoy": 0.85, "caddy": 0.62}
