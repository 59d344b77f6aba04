"""Keys of Qdrant's config.yaml that have no effect here: of 1.16 to 1.19 by its source, of 1.20 by its documentation.

They are accepted, so that a Qdrant configuration works as it is, and `check` lists them as unused. Keys with an effect
are in :mod:`tlsproxy.config.model`. The documentation of 1.20 names no new key outside `storage`, which is accepted
whole. A key that it leaves out is refused here as unknown, with its line.
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
"""Unused keys at the top level, with all below them."""

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
"""Unused keys of sections that are used."""


def is_unused(path: tuple[str, ...]) -> bool:
    """Whether Qdrant has this key and tlsproxy does not."""
    match path:
        case (section, *_) if section in SECTIONS:
            return True
        case (section, key, *_):
            return key in KEYS.get(section, ())
        case _:
            return False
