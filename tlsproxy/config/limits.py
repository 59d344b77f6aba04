"""The configuration model of limits: per caller, per role, per address, and in all (:mod:`tlsproxy.config.model`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictFloat, StrictInt

from tlsproxy.config.callers import Section

Seconds = Annotated[StrictFloat, Field(gt=0, le=86400 * 365)]
Count = Annotated[StrictInt, Field(ge=1, le=10_000_000)]
Size = Annotated[StrictInt, Field(ge=1024, le=1 << 40)]
PerSecond = Annotated[StrictFloat, Field(ge=0.001, le=1_000_000)]
Burst = Annotated[StrictInt, Field(ge=1, le=1_000_000)]


class Quota(Section):
    """Limits on requests, REST and gRPC together."""

    requests_per_second: PerSecond | None = None
    """Most requests per second over time; 0.1 is one in ten seconds. null for no limit."""
    burst: Burst | None = None
    """Most requests at once after a pause; null for what one second allows."""
    concurrent_requests: Count | None = None
    """Most requests under way at a time; null for no limit."""


class PerAddress(Section):
    """Limits of each client address; of IPv6 each /64."""

    handshakes_per_second: PerSecond | None = None
    """Most new connections per second over time; more are closed before TLS. null for no limit."""
    burst: Burst | None = None
    """Most new connections at once after a pause; null for what one second allows."""
    failed_authentications: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = None
    """Failed handshakes, and missing or wrong keys and tokens, per minute before a delay begins. From there on no new
    connection is taken for 1 s, twice as long after each further failure. Keys and tokens beside a good certificate
    count for that identity at that address: they get 429 meanwhile. null for no limit."""
    max_delay: Annotated[StrictFloat, Field(ge=1, le=3600)] = 60.0
    """Longest such delay, in seconds. After each delay everybody at the address is heard for 2 s."""
    unidentified: Quota = Quota()
    """Limits of clients without certificate, key and token, all of an address together: the dashboard and refusals
    (401) count, health and version do not."""


class MassCut(Section):
    """Live connections that one publication may end."""

    share: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None
    """Fraction of all live connections, 0 to 1. null: it does not count."""
    number: Annotated[StrictInt, Field(ge=0, le=10_000_000)] | None = None
    """Number of live connections. null: it does not count."""


class RoleLimits(Quota):
    """Limits of all holders of a role together."""

    max_body_mb: Annotated[StrictInt, Field(ge=1, le=1 << 20)] | None = None
    """Largest body of a request, or message of a call, in MiB as sent, uploads too (413, RESOURCE_EXHAUSTED). null for
    no limit of the role's."""
    per_identity: Quota | None = None
    """Limits of each holder, in place of `limits.per_identity`, or of `limits.per_key` for a token that has the role by
    a rule; {} for no limit."""


class LimitsConfig(Section):
    """Limits on clients. A changed one counts for open connections and for running waits too, except where it says
    otherwise.
    """

    connections: Count = 10_000
    """Most client connections at a time."""
    connections_per_address: Count = 1_000
    """Most client connections of one address at a time. Of IPv6 each /64 counts as one address, here and below."""
    per_address: PerAddress = PerAddress()
    """Further limits of each address."""
    per_identity: Quota = Quota()
    """Limits of each client certificate's identity: CA, issuer and subject, so that a renewed certificate starts no new
    account. They apply in addition to the role's. Refused requests count too; health and version do not."""
    per_key: Quota = Quota()
    """Limits of each API key, and of each subject of one signer's tokens."""
    handshake_timeout: Seconds = 10.0
    """Seconds for a TLS handshake."""
    head_timeout: Seconds = 10.0
    """Seconds from the first byte of a request to the end of its head."""
    body_timeout: Seconds = 30.0
    """Seconds for a request's body, or a call's message. A larger one must keep up `min_data_rate` over the last so
    many seconds. Time in which the upstream takes no more does not count."""
    write_timeout: Seconds = 30.0
    """Seconds over which a client must keep up `min_data_rate` in taking what waits to be sent to it, as far as its
    system has acknowledged it."""
    min_data_rate: Annotated[StrictFloat, Field(ge=1, le=1 << 30)] = 1024.0
    """Bytes per second. Slower clients are cut (408, DEADLINE_EXCEEDED, client_stalled), up to a fifth of the window
    later."""
    tcp_idle_timeout: Seconds = 600.0
    """Seconds without a byte in either direction after which a relayed TCP connection is ended."""
    idle_timeout: Seconds = 75.0
    """Seconds that a connection without a request is kept."""
    linger_timeout: Seconds = 10.0
    """Seconds for which the rest of a refused upload is read, so that the client sees the refusal. While
    draining, 1 at most."""
    mass_cut: MassCut = MassCut()
    """Guard on publications: one that would end more live connections than `number` and more than the fraction `share`
    is held back as a whole, except for the server's own certificate. The former state serves on, with rights that
    the files have taken away, until `tlsproxy reload --force`, or until the files would end fewer. Both null: no
    guard. The limit in force counts, not one of the files that wait."""
    expel_after: Seconds = 1.0
    """Seconds in which a change that Qdrant has received whole may still be answered after its client lost the right to
    it. All else under way ends at once."""
    end_spread: Annotated[StrictFloat, Field(ge=0, le=1)] = 0.5
    """Seconds over which connections are closed if many end together (a removed role, a shutdown), so that their
    clients do not all reconnect at once. Clients that lost a right are refused meanwhile. 0 closes all at once."""
    max_connection_age: Annotated[StrictFloat, Field(ge=0)] = 0.0
    """Seconds after which a connection is ended, once it has finished what it is doing; 0 for never. Some end up to a
    tenth before, so that connections opened together do not end together."""
    drain_grace: Annotated[StrictFloat, Field(ge=0, le=60)] = 1.0
    """Seconds at shutdown in which a connection without a request may send one more, which is answered as its last.
    Also the silence after which a relayed TCP connection to a former upstream ends."""
    drain_timeout: Seconds = 30.0
    """Seconds that running requests have to finish at shutdown, and relayed connections to a former upstream
    (`upstream.on_change`)."""
    max_head_size: Size = 32_768
    """Largest request head, in bytes. An open gRPC connection keeps the size that its client was told."""
    max_headers: Count = 100
    """Most headers of a request."""
    max_upload_size_mb: Annotated[StrictInt, Field(ge=0)] = 0
    """Largest snapshot upload, in MiB; 0 for no limit, as in Qdrant."""
    max_streams: Count = 128
    """Most calls at a time of one gRPC connection. An open connection keeps the number that its client was told."""
    streams_per_second: Count = 2_000
    """Most new calls of one gRPC connection, per second."""
    max_message_size_mb: Annotated[StrictInt, Field(ge=1, le=1 << 20)] = 64
    """Largest gRPC message, in MiB, of a caller whose messages must be rebuilt or decompressed to be decided."""
    inspection_memory_mb: Annotated[StrictInt, Field(ge=1, le=1 << 20)] = 256
    """Most memory, in MiB, for bodies, messages and answers that are read to decide or to reduce them, all requests of
    a worker together: received bytes, what they decode to, and what is made of them. More is refused (503,
    RESOURCE_EXHAUSTED). A body of vectors takes its own size if only names matter, eight times that for a tenant. At
    least `service.max_request_size_mb`, and `limits.max_message_size_mb` if gRPC is served."""
    max_response_timeout: Seconds = 3600.0
    """Most seconds to wait for the upstream where the client says how long it waits itself: by `grpc-timeout`, or by
    Qdrant's `?timeout=`. Such a request may take longer than `upstream.response_timeout`, up to this."""
    snapshot_timeout: Seconds = 3600.0
    """Seconds to wait for the upstream, in place of `upstream.response_timeout`, where snapshots are made, recovered,
    listed, deleted, uploaded and downloaded."""
    inspection_timeout: Seconds = 10.0
    """Seconds that a request waits for its part of that memory. A request that is open and waiting keeps the value that
    it began with."""
