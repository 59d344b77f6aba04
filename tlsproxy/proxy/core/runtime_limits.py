"""Limits in force: times, sizes and counts for connections, requests and calls.

One object for a process, updated by each publication and read at the time of use, so that an edited limit counts for
open connections too. Limits that were announced to a client in its SETTINGS (`limits.max_streams`, and over HTTP/2
`limits.max_head_size`) stay with the connection, which copies them.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.config.model import Config
from tlsproxy.config.networks import networks
from tlsproxy.qdrant.timeouts import SNAPSHOT

LAST_ANSWER: Final = 5.0
"""Seconds for the upstream to say that a client's own time is over."""


class RuntimeLimits:
    """Slots under the names of the configuration, times in seconds, sizes in bytes; ``kept_timeout`` is
    `upstream.idle_timeout`, ``upstream_connections`` is `upstream.max_connections`, ``drains_former`` says whether
    `upstream.on_change` is drain, ``probe_networks`` are those of `health`.

    They stand in the configuration too, but an attribute of its models costs ten times as much.
    """

    __slots__ = (
        "body_timeout",
        "connect_timeout",
        "drain_grace",
        "drain_timeout",
        "drains_former",
        "end_spread",
        "expel_after",
        "handshake_timeout",
        "head_timeout",
        "idle_timeout",
        "inspection_memory",
        "inspection_timeout",
        "kept_timeout",
        "linger_timeout",
        "max_connection_age",
        "max_head_size",
        "max_message_size",
        "max_response_timeout",
        "max_streams",
        "min_data_rate",
        "probe_networks",
        "response_timeout",
        "snapshot_timeout",
        "streams_per_second",
        "tcp_idle_timeout",
        "upstream_connections",
        "write_timeout",
    )

    def __init__(self, config: Config) -> None:
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        limits, upstream = config.limits, config.upstream
        self.handshake_timeout = limits.handshake_timeout
        self.head_timeout = limits.head_timeout
        self.body_timeout = limits.body_timeout
        self.write_timeout = limits.write_timeout
        self.min_data_rate = limits.min_data_rate
        self.tcp_idle_timeout = limits.tcp_idle_timeout
        self.idle_timeout = limits.idle_timeout
        self.linger_timeout = limits.linger_timeout
        self.expel_after = limits.expel_after
        self.end_spread = limits.end_spread
        self.max_connection_age = limits.max_connection_age
        self.drain_grace = limits.drain_grace
        self.drain_timeout = limits.drain_timeout
        self.max_head_size = limits.max_head_size
        self.max_streams = limits.max_streams
        self.streams_per_second = limits.streams_per_second
        self.max_message_size = limits.max_message_size_mb << 20
        self.inspection_memory = limits.inspection_memory_mb << 20
        self.inspection_timeout = limits.inspection_timeout
        self.connect_timeout = upstream.connect_timeout
        self.response_timeout = upstream.response_timeout
        self.max_response_timeout = limits.max_response_timeout
        self.snapshot_timeout = limits.snapshot_timeout
        self.kept_timeout = upstream.idle_timeout
        self.upstream_connections = upstream.max_connections
        self.drains_former = upstream.on_change == "drain"
        self.probe_networks = networks(config.health.probe_networks)

    def client_write(self) -> tuple[float, float]:
        """Slowest rate at which a client may read: (seconds of the window, bytes per second)."""
        return self.write_timeout, self.min_data_rate

    def response_wait(self, asked: float) -> float:
        """Seconds to wait for the upstream's response; ``asked`` are the client's own (0 where it says none), or
        :data:`tlsproxy.qdrant.timeouts.SNAPSHOT`.

        For example, with a `response_timeout` of 300 and a `max_response_timeout` of 3600: 300 for 10, 605 for 600,
        3600 for a day.
        """
        if not asked:
            return self.response_timeout
        if asked == SNAPSHOT:
            return self.snapshot_timeout
        return max(self.response_timeout, min(asked + LAST_ANSWER, self.max_response_timeout))

    def upstream_write(self) -> tuple[float, float]:
        """Slowest rate at which the upstream may read, in the same form."""
        return self.response_timeout, self.min_data_rate
