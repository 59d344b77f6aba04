"""The configuration's shape, of what clients may use: each caller, all of a role, each address, and all together.

The rest of it, and what is said there of units, is in :mod:`tlsproxy.config.model`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tlsproxy.config.callers import Section

Seconds = Annotated[float, Field(gt=0, le=86400 * 365)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Size = Annotated[int, Field(ge=1024, le=1 << 40)]
PerSecond = Annotated[float, Field(ge=0.001, le=1_000_000)]
Burst = Annotated[int, Field(ge=1, le=1_000_000)]


class Quota(Section):
    """How many requests of either protocol may be made. Null is no limit."""

    requests_per_second: PerSecond | None = None
    """Most requests per second over time; 0.1 is one in ten seconds."""
    burst: Burst | None = None
    """Most requests at once after a pause; null for what a second allows."""
    concurrent_requests: Count | None = None
    """Most requests that are going on at a time."""


class PerAddress(Section):
    """What each client address may do; of IPv6 each /64. Null is no limit."""

    handshakes_per_second: PerSecond | None = None
    """Most new connections per second over time; more are closed before TLS is spent on them."""
    burst: Burst | None = None
    """Most new connections at once after a pause; null for what a second allows."""
    failed_authentications: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Failed handshakes, keys and tokens per minute that go without a delay. Each beyond doubles it, from a second."""
    max_delay: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """Most seconds for which an address, or an identity's keys and tokens, are not heard at a time."""
    unidentified: Quota = Quota()
    """Limits of clients without certificate, key and token: the dashboard and refusals count, health and version are
    free."""


class MassCut(Section):
    """Bounds on the live connections that a publication may end. One that would end more is held back. Null is no
    bound; where both are given, more than both must end.
    """

    share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Most of all live connections, as a fraction: 0.5 is half of them."""
    number: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Most live connections."""


class RoleLimits(Quota):
    """What the holders of a role may use, all of them together."""

    max_body_mb: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Largest body of a request, or message of a call, in MiB, uploads too; null for no limit but those of all."""
    per_identity: Quota | None = None
    """What each of them may use, in place of `limits.per_identity`: {} for no limit."""


class Limits(Section):
    """Bounds on what clients may use. Times are seconds. A changed one counts for open connections too, and for what
    they wait for, but where it says otherwise.
    """

    connections: Count = 10_000
    """Most client connections at a time."""
    connections_per_address: Count = 1_000
    """Most client connections of one address at a time; of IPv6 each /64 is one."""
    per_address: PerAddress = PerAddress()
    """What each client address may do before anybody is known; of IPv6 each /64."""
    per_identity: Quota = Quota()
    """What each client certificate's subject may use."""
    per_key: Quota = Quota()
    """What each API key may use, and each subject of one signer's tokens."""
    handshake_timeout: Seconds = 10.0
    """Seconds for a TLS handshake."""
    head_timeout: Seconds = 10.0
    """Seconds from the first byte of a request to the end of its head."""
    body_timeout: Seconds = 30.0
    """Seconds for a request's body, or a call's message; a larger one must keep up `min_data_rate` over as many."""
    write_timeout: Seconds = 30.0
    """Seconds over which a client must keep up `min_data_rate` in taking what waits to be sent to it."""
    min_data_rate: Annotated[float, Field(ge=1, le=1 << 30)] = 1024.0
    """Bytes per second that a client must send and take at least, over the last window, whatever came before."""
    tcp_idle_timeout: Seconds = 600.0
    """Seconds without a byte in either direction after which a relayed TCP connection is ended."""
    idle_timeout: Seconds = 75.0
    """Seconds that a connection without a request is kept."""
    linger_timeout: Seconds = 10.0
    """Seconds for which the rest of a refused upload is read, so that the client sees the refusal."""
    mass_cut: MassCut = MassCut()
    """Live connections that a publication may end; one that would end more waits for `tlsproxy reload --force`."""
    expel_after: Seconds = 1.0
    """Seconds in which a change that Qdrant has whole may still be answered, after its client lost the right to it."""
    end_spread: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Seconds over which connections are closed where many end together; 0 for all at once. Who has lost a right is
    refused meanwhile."""
    max_connection_age: Annotated[float, Field(ge=0)] = 0.0
    """Seconds after which a connection is ended, or up to a tenth before, once it has finished what it is doing; 0 for
    never."""
    drain_grace: Annotated[float, Field(ge=0, le=60)] = 1.0
    """Seconds at shutdown in which a connection without a request may send one more, which is answered as its last. So
    long a relayed TCP connection must have been silent, after its upstream spoke, to end when that has changed."""
    drain_timeout: Seconds = 30.0
    """Seconds that running requests have to finish at shutdown, and what is relayed to a former upstream (see
    `upstream.on_change`)."""
    max_head_size: Size = 32_768
    """Largest request head, in bytes. An open gRPC connection keeps the one that its client was told."""
    max_headers: Count = 100
    """Most headers of a request."""
    max_upload_size_mb: Annotated[int, Field(ge=0)] = 0
    """Largest snapshot upload, in MiB; 0 for no limit, as in Qdrant."""
    max_streams: Count = 128
    """Most calls at a time of one gRPC connection. An open connection keeps the one that its client was told."""
    streams_per_second: Count = 2_000
    """Most new calls of one gRPC connection, per second."""
    max_message_size_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """Largest gRPC message, in MiB, of a caller whose messages must be rebuilt or decompressed to be decided."""
    inspection_memory_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Most memory, in MiB, for what is read because a decision or an answer depends on it, all requests together."""
    inspection_timeout: Seconds = 10.0
    """Seconds that a request waits for its part of that memory. One that is open by then keeps those it began with."""
