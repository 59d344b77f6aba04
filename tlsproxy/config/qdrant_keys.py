"""The keys of Qdrant's config.yaml (1.16 to 1.19) that are Qdrant's own business.

They are accepted, so that a Qdrant user can point tlsproxy at the file they have, and listed by `check`, so that nobody
believes that tlsproxy acts on them. The keys that it does act on are in :mod:`tlsproxy.config.model`.
"""

from __future__ import annotations

from typing import Final

SECTIONS: Final = frozenset(
    {
        "cluster",
        "debugger",
        "feature_flags",
        "gpu",
        "inference",
        "per_collection_metrics_enabled",
        "storage",
        "telemetry_disabled",
    }
)
"""Keys at the top level, whatever is below them."""

KEYS: Final = {
    "logger": frozenset({"log_level", "on_disk", "span_events"}),
    "service": frozenset(
        {
            "enable_snapshot_url_recovery",
            "enable_static_content",
            "enforce_internal_auth",
            "hardware_reporting",
            "hide_jwt_dashboard",
            "max_workers",
            "metrics_port",
            "metrics_prefix",
            "slow_query_secs",
            "static_content_dir",
        }
    ),
}
"""Keys of sections that are otherwise used."""


def is_unused(path: tuple[str, ...]) -> bool:
    """Whether Qdrant has this key and tlsproxy does not."""
    match path:
        case (section, *_) if section in SECTIONS:
            return True
        case (section, key, *_):
            return key in KEYS.get(section, ())
        case _:
            return False
