"""The configuration model. `service`, `tls` and `audit` have Qdrant's keys; the other sections are ours.

Times are seconds, sizes bytes unless a key ends in `_mb`. Paths are absolute here: the loader resolves them against the
configuration file's directory. Checks over several keys are in :mod:`tlsproxy.config.checks`. The texts below the
fields are the descriptions of the JSON Schema and of the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, SecretStr, StrictFloat, StrictInt, Tag

from tlsproxy.config.bundle import BundleConfig
from tlsproxy.config.callers import CaConstraint, JwtIssuer, Label, Match, NamedKey, Scalar, Section
from tlsproxy.config.descriptions import NEEDS_RESTART
from tlsproxy.config.grants import CollectionGrant, Operations
from tlsproxy.config.limits import Count, LimitsConfig, RoleLimits, Seconds
from tlsproxy.config.locks import LockEntry
from tlsproxy.config.proxy_protocol import ProxyProtocol
from tlsproxy.config.queries import Queries
from tlsproxy.config.shared import SharedConfig
from tlsproxy.config.upstream import UpstreamConfig
from tlsproxy.config.upstream_tls import UpstreamTls

Port = Annotated[StrictInt, Field(ge=0, le=65535)]
HttpProtocol = Literal["rest", "grpc"]
ProtocolName = Literal["rest", "grpc", "tcp"]
Protocols = tuple[ProtocolName, ...]


class Service(Section):
    """Addresses for clients, and the API keys that they may send. The names are Qdrant's."""

    host: Annotated[str, Field(min_length=1), NEEDS_RESTART] = "0.0.0.0"  # noqa: S104 - Qdrant's own default
    """Address to listen on."""
    http_port: Annotated[Port | None, NEEDS_RESTART] = 6333
    """Port of the REST API; 0 lets the system choose one, null is for none."""
    grpc_port: Annotated[Port | None, NEEDS_RESTART] = 6334
    """Port of the gRPC API; 0 lets the system choose one, null is for none."""
    enable_tls: bool = True
    """Must be true: terminating TLS is what this gateway is for."""
    verify_https_client_certificate: bool = True
    """true: a client certificate is required. false: it is optional, and verified if one is sent."""
    api_key: SecretStr | None = None
    """API key with all rights, sent as `api-key: KEY` or `Authorization: Bearer KEY`. A key never widens what a
    certificate's role allows. Prefer `api_key_file`; "" and null are no key."""
    api_key_file: Path | None = None
    """File that holds the `api_key`, or `credential:NAME` (systemd)."""
    alt_api_key: SecretStr | None = None
    """Second API key with all rights, for key rotation."""
    alt_api_key_file: Path | None = None
    """File that holds the `alt_api_key`, or `credential:NAME`."""
    read_only_api_key: SecretStr | None = None
    """API key that reads everything and writes nothing."""
    read_only_api_key_file: Path | None = None
    """File that holds the `read_only_api_key`, or `credential:NAME`."""
    jwt_rbac: bool = False
    """Whether tokens (JWT, HS256) signed with `api_key` or `alt_api_key` are accepted, as in Qdrant. `tlsproxy token
    mint` makes one."""
    jwt_full_access_without_claim: bool = False
    """true: a token without an `access` claim has all rights, as in Qdrant. false: it is refused."""
    jwt_require_exp: bool = False
    """Whether a token without an `exp` claim is refused."""
    unmapped_certificate: Literal["deny", "token"] | None = None
    """Treatment of a certificate that no rule of `identities` matches. deny: its holder is refused, whatever key or
    token is sent, except a token whose rule names such a certificate too. token: a key or token alone counts. null:
    token if there are no `identities` (as in Qdrant), else deny."""
    enable_cors: bool = True
    """Whether web pages of any origin may call, as in Qdrant: preflights are answered, and refusals can be read. With
    `allowed_origins`, only those origins may."""
    allowed_origins: tuple[str, ...] = ()
    """Origins (`https://host[:port]`) whose pages may use the certificates of their visitors. Pages of other origins
    need a key or token."""
    max_request_size_mb: Annotated[StrictInt, Field(ge=1, le=1 << 20)] = 32
    """Largest JSON request body, in MiB. Snapshot uploads have `limits.max_upload_size_mb`."""
    proxy_protocol: ProxyProtocol | None = None
    """Balancers before `http_port` and `grpc_port` that send the PROXY protocol: `{from: [10.0.0.0/24]}`. Clients then
    connect through them alone. null: no header is expected."""


class ListenerConfig(Section):
    """An address for clients beside those of `service`."""

    host: Annotated[Annotated[str, Field(min_length=1)] | None, NEEDS_RESTART] = None
    """Address to listen on; null for `service.host`."""
    port: Annotated[Port | None, NEEDS_RESTART] = None
    """Port; 0 lets the system choose one."""
    unix: Annotated[str | None, NEEDS_RESTART] = None
    """Unix socket to listen on, in place of `host` and `port`: an absolute path such as `/run/tlsproxy/rest.sock`, or
    `"@name"`, in quotes, in the abstract namespace, where whoever shares the network namespace may connect. TLS is
    spoken there as elsewhere; the client's address is `unix:uid=1000`, its user."""
    unix_mode: Annotated[Literal["0600", "0660", "0666"], NEEDS_RESTART] = "0660"
    """Mode of the socket at a path, in quotes. 0600: only the gateway's own user may connect. 0660: its group too.
    0666: everybody who may enter the directory."""
    mode: Annotated[Literal["http", "tcp"], NEEDS_RESTART] = "http"
    """http: each request of Qdrant's APIs is decided. tcp: bytes are relayed to one address, for the holders of some
    roles."""
    protocols: Annotated[tuple[HttpProtocol, ...], NEEDS_RESTART] = ()
    """For mode http: rest, grpc, or both. With both, ALPN decides: a client that offers http/1.1, or has no
    ALPN, gets REST; one that offers h2 alone gets gRPC."""
    upstream: str | None = None
    """For mode tcp: the address that bytes are relayed to: `host:port`, `unix:/path` or `unix:@name`. See
    `upstream.on_change`."""
    upstream_tls: UpstreamTls | None = None
    """For mode tcp: TLS with an `upstream` of `host:port`, `{ca_cert: ca.pem}`. null: bytes are relayed in
    plaintext."""
    allow: tuple[Label, ...] = ()
    """For mode tcp: the roles whose holders may connect, and stay connected."""
    send_proxy_protocol: Literal["v2"] | None = None
    """For mode tcp. v2: each connection to `upstream` begins with a header of the PROXY protocol: the client's address,
    its TLS version, the common name of its verified certificate, and an id that the audit log has too. null: none."""
    proxy_protocol: ProxyProtocol | None = None
    """Balancers before this listener that send the PROXY protocol, as in `service`, whose setting does not count
    here."""


class Tls(Section):
    """The server's certificate, and the CAs and CRLs that verify client certificates. Changed files are reloaded."""

    cert: Path
    """PEM file: the server certificate, then its intermediates. Required."""
    key: Path
    """PEM file: the private key of `cert`. Required."""
    key_passphrase_file: Path | None = None
    """File that holds the passphrase of an encrypted `key`."""
    on_suspicious: Literal["warn", "refuse"] = "warn"
    """Treatment of a new server certificate that today's clients may refuse: a missing intermediate, another CA,
    missing names, an older certificate, a shorter key, an Ed25519 key (the last also at start). warn: it is
    published with a warning. refuse: the certificate in use stays, and all other changes are published."""
    ca_cert: Path | None = None
    """PEM file: the CAs of client certificates. The system's roots are never used. Required unless client certificates
    are optional."""
    crl: tuple[Path, ...] = ()
    """Revocation lists (PEM or DER), each signed by a CA of `ca_cert` or by an intermediate that clients send, and
    complete: no delta or indirect CRL. With an issuing distribution point, a CRL covers the certificates of its
    scope; its serial numbers count for all."""
    crl_policy: Literal["require", "where_present"] = "require"
    """Applies once there is any CRL. require: a client certificate that no CRL covers is refused (`crl_missing`).
    where_present: it is admitted. An intermediate needs a CRL if its issuer has CRLs for CAs."""
    crl_expired: Literal["deny", "warn"] = "deny"
    """Treatment of a CRL past its next update. deny: certificates that it covers are refused (`crl_expired`), on live
    connections too, until there is a newer one. warn: it goes on counting. Both are reported in the log, in
    `/readyz` and in `/status`."""
    ca_constraints: tuple[CaConstraint, ...] = ()
    """Names that CAs of `ca_cert` are confined to, such as a partner's CA to the partner's own names. A certificate
    below such a CA with any other alternative name, or with none, is refused; its cn, o, ou and subject count only
    in rules that name the CA."""
    cert_ttl: Annotated[StrictInt, Field(ge=0)] | None = 3600
    """Seconds after which all files are read and judged anew, and what differs is published; 0 or null for never."""
    poll_interval: Seconds = 5.0
    """Seconds between two checks of the files' contents."""
    settle_time: Annotated[StrictFloat, Field(ge=0, le=60)] = 5.0
    """Seconds for which `cert`, `key` and its passphrase may not fit together, or lack one of them, before that is an
    error: while they are replaced one after the other, the pair in use stays and all other changes are published. A
    start waits as long for a pair that does not match. 0 for not at all, as with `tlsproxy reload` and SIGHUP."""
    read_timeout: Seconds = 2.0
    """Seconds to wait for the next MiB of a file, or for a directory. A file that does not answer (its file server is
    gone) keeps its last contents, and is reported."""


def _access_kind(value: object) -> str:
    return "grants" if isinstance(value, list | tuple) else "mode"


class Role(Section):
    """Rights of a role."""

    access: Annotated[
        Annotated[Literal["r", "m", "pr"], Tag("mode")] | Annotated[tuple[CollectionGrant, ...], Tag("grants")],
        Discriminator(_access_kind),
    ]
    """r (reads everything), pr (reads all points, and nothing else), m (everything), or a list of collections."""
    operations: Operations = Operations()
    """Operations that the role may use, of those that `access` permits."""
    filter: dict[str, Scalar] = Field(default={})
    """Confines the role to points whose payload has these values: `{tenant: "{cn}"}`, `{"meta.team": "team-{ou}"}`,
    `{level: 3}`. A key may be a path: `a.b`, or `a[].b` for a list of objects. A text has at most one of {cn}, {o},
    {ou}, {uri}, {dns}, {email}; a certificate without exactly one such field has no rights. {claim:NAME} is a claim of
    the token sent beside the certificate, or any value of one that is a list; without it there are no rights. Needs
    Qdrant 1.16 or later. See docs/tenants.md."""
    or_public: dict[str, Scalar] = Field(default={})
    """Points that the role may read besides those of its `filter`, by fixed values that must all hold:
    `{visibility: public}`. It may change none of them."""
    queries: Queries = Queries()
    """Bounds of the role's queries, and parts of points that it never sees. See docs/roles-and-rules.md."""
    limits: RoleLimits = RoleLimits()
    """Limits of all holders of the role together, over REST and gRPC together. Requests beyond are refused as by
    Qdrant's strict mode: 429 or RESOURCE_EXHAUSTED, with the seconds to wait in Retry-After."""


class IdentityRule(Section):
    """A rule that gives certificates, or tokens, a role."""

    name: Label
    """Name of the rule in `explain` and in the audit log."""
    match: Match
    """Certificate fields and claims that must hold."""
    role: str
    """A key of `roles`."""


class AuditConfig(Section):
    """The audit log: one JSON object a line, in Qdrant's format and files."""

    enabled: Annotated[bool, NEEDS_RESTART] = True
    """Whether decisions are written."""
    dir: Annotated[Path | Literal["-"], NEEDS_RESTART] = Path("./audit")
    """Directory of the files, or `-` for standard output."""
    rotation: Annotated[Literal["daily", "hourly"], NEEDS_RESTART] = "daily"
    """Interval of new files (UTC): daily or hourly."""
    max_log_files: Annotated[Count, NEEDS_RESTART] = 7
    """Number of files to keep."""
    group: Annotated[str | None, NEEDS_RESTART] = None
    """Group that may read the files too, such as that of a log shipper: they have mode 0640 then. null: 0600. tlsproxy
    must be a member; under systemd by `Group=` of the unit. A directory that is there already keeps its mode."""
    on_full: Annotated[Literal["refuse", "block"], NEEDS_RESTART] = "refuse"
    """Treatment of a request whose line cannot be queued: refuse (503) or block (it waits)."""
    queue_size: Annotated[Count, NEEDS_RESTART] = 65536
    """Most lines that wait to be written."""
    flush_interval: Annotated[Seconds, NEEDS_RESTART] = 0.5
    """Most seconds that a line stays in memory."""
    trust_forwarded_headers: Literal[False] = False
    """Must be false: the client is known from its connection."""
    log_api: bool = True
    """Whether the request's path is written."""
    probes: bool = False
    """Whether allowed health checks (`/`, `/healthz`, `/livez`, `/readyz`, over gRPC too) and scrapes (`/metrics`,
    `/telemetry`, `/cluster/telemetry`) have a line. Without, as in Qdrant, refused and failed ones have."""


class AdminConfig(Section):
    """The admin server: a page for operators, health, metrics, status, reload. It has no authentication."""

    listen: Annotated[str | None, NEEDS_RESTART] = None
    """`unix:/run/tlsproxy/admin.sock`, which only its owner and root may open; `unix:@name` or `host:port` on loopback
    such as `127.0.0.1:9333`, which every user of the machine may; null for no admin server."""


class HealthConfig(Section):
    """Health checks by load balancers, which hold no client certificate. Under systemd the gateway binds this address
    itself.
    """

    listen: Annotated[str | None, NEEDS_RESTART] = None
    """`host:port`, such as `10.0.0.5:9334`, `unix:/path` (mode 0666: its directory says who may connect) or
    `unix:@name`, for `/livez`, `/readyz` and nothing else, without authentication; null for no such listener. Answers
    name no file and no caller."""
    tls: Annotated[bool, NEEDS_RESTART] = False
    """true: HTTPS with the server's certificate, without asking for one of the client's. false: plain HTTP."""
    metrics: bool = False
    """Whether `/metrics` is served there too. Metrics hold names of roles, operations and CAs: let the monitoring alone
    reach them."""
    probe_networks: tuple[str, ...] = ()
    """Addresses and networks of the balancers, such as `10.0.0.7` or `10.0.0.0/24`; `unix` for those on this
    machine, over unix sockets. A TLS connection of theirs that brings no certificate, or ends during its handshake, is
    a check: no refusal and no failed authentication."""
    proxy_protocol: ProxyProtocol | None = None
    """Balancers whose checks of `listen` begin with a header of the PROXY protocol, as HAProxy's with
    `check-send-proxy`. Nobody else gets an answer there then."""


class Logger(Section):
    """Form of the log. The keys are Qdrant's, except `output`. All need a restart."""

    format: Literal["text", "json"] = "text"
    """text: one line a record, for people. json: one object a line (timestamp, level, logger, pid, message, fields,
    exception). Under systemd either has its priority, and text has no time of its own."""
    color: Literal["auto", "enable", "disable"] = "auto"
    """auto, enable or disable. auto: colours on a terminal, unless NO_COLOR is set. For text only."""
    output: Literal["stderr", "stdout"] = "stderr"
    """stderr or stdout; not stdout if `audit.dir` is `-`."""


def upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Config(Section):
    """The configuration of tlsproxy."""

    include: str | tuple[str, ...] = ()
    """Further files of the configuration, such as `conf.d/*.yaml`, or a list of such entries; in the main file alone,
    and relative to it. Wildcards are for file names, match no hidden file, and give the order of names. Sections merge
    key by key, and lists are joined, the main file's entries first; a key that is set twice is an error. Paths are
    relative to the file that has them. A file that comes, changes or goes is applied like a change of the main file."""
    bundle: BundleConfig | None = None
    service: Service = Service()
    listeners: tuple[ListenerConfig, ...] = ()
    """Addresses to listen on beside those of `service`. `host`, `port`, `mode` and `protocols` need a restart:
    until then a removed one serves on as it was."""
    tls: Tls
    upstream: UpstreamConfig = UpstreamConfig()
    roles: dict[Label, Role] = {}  # noqa: RUF012 - pydantic copies it
    """Roles and their rights."""
    identities: tuple[IdentityRule, ...] = ()
    """Rules that give certificates and tokens their roles. The first rule without claims that matches a certificate
    decides for it, the first with claims for a token; where both have a role, both must allow. A certificate that no
    rule matches is refused (see `service.unmapped_certificate`), as is an ambiguous one (two common names, control
    characters, no name at all). `tlsproxy explain` shows which rule matches, and why the others do not."""
    keys: tuple[NamedKey, ...] = ()
    """Named API keys beside those of `service`: the audit log says which was used, and each can be revoked alone."""
    jwt_issuers: tuple[JwtIssuer, ...] = ()
    """Issuers whose tokens are accepted beside tokens signed with an API key of `service`. Each signs with a key of its
    own."""
    revoked: tuple[LockEntry, ...] = ()
    """Callers that are refused whatever else is configured (403 `locked`): for good, or `until` a moment. `tlsproxy
    lock` does it at once and without this file."""
    audit: AuditConfig = AuditConfig()
    limits: LimitsConfig = LimitsConfig()
    shared: SharedConfig = SharedConfig()
    admin: AdminConfig = AdminConfig()
    health: HealthConfig = HealthConfig()
    workers: Annotated[StrictInt, Field(ge=1, le=64), NEEDS_RESTART] = 1
    """Processes that serve, 1 to 64: one for each core to use. With more than 1, a supervisor process watches them."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARN", "ERROR"], BeforeValidator(upper)] = "INFO"
    """DEBUG, INFO, WARN or ERROR."""
    logger: Annotated[Logger, NEEDS_RESTART] = Logger()
