"""The configuration's shape. `service`, `tls` and `audit` speak Qdrant; the other sections are ours.

Units stand in the names or the descriptions: times are seconds, sizes bytes unless a name says megabytes. A path is
absolute here: the loader resolves it against the configuration file's directory. What concerns more than one key is
checked in :mod:`tlsproxy.config.checks`; the texts below each field are the descriptions of the JSON Schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, SecretStr, Tag

from tlsproxy.config.callers import CaConstraint, JwtIssuer, Label, Match, NamedKey, Section
from tlsproxy.config.limits import Count, Limits, RoleLimits, Seconds

Port = Annotated[int, Field(ge=0, le=65535)]
HttpProtocol = Literal["rest", "grpc"]
ProtocolName = Literal["rest", "grpc", "tcp"]
Protocols = tuple[ProtocolName, ...]


class Service(Section):
    """Where clients connect, and the keys that they may send; keys and names are Qdrant's."""

    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"  # noqa: S104 - Qdrant's own default
    """Address to listen on. Needs a restart."""
    http_port: Port | None = 6333
    """Port of the REST API; 0 lets the system choose one, null is for none. Needs a restart."""
    grpc_port: Port | None = 6334
    """Port of the gRPC API; 0 lets the system choose one, null is for none. Needs a restart."""
    enable_tls: bool = True
    """Must be true: terminating TLS is what this gateway is for."""
    verify_https_client_certificate: bool = True
    """Whether a client certificate is required; if false it is optional, and verified where one is sent."""
    api_key: SecretStr | None = None
    """Key with all rights, sent as `api-key` or as a bearer token. Prefer `api_key_file`."""
    api_key_file: Path | None = None
    """File that holds the `api_key`, or `credential:NAME` (systemd)."""
    alt_api_key: SecretStr | None = None
    """A second key with all rights, for the time of a key rotation."""
    alt_api_key_file: Path | None = None
    """File that holds the `alt_api_key`."""
    read_only_api_key: SecretStr | None = None
    """Key that may read everything and write nothing."""
    read_only_api_key_file: Path | None = None
    """File that holds the `read_only_api_key`."""
    jwt_rbac: bool = False
    """Whether tokens (JWT, HS256) that are signed with `api_key` or `alt_api_key` are accepted."""
    jwt_full_access_without_claim: bool = False
    """Whether a token without an `access` claim has all rights, as in Qdrant; if false it is refused."""
    jwt_require_exp: bool = False
    """Whether a token without an `exp` claim is refused."""
    unmapped_certificate: Literal["deny", "token"] | None = None
    """What a certificate that no rule matches means: deny refuses its holder, token lets a key or token alone count.
    Null is deny where there are `identities`, and token where there are none, which is what Qdrant does."""
    enable_cors: bool = True
    """Whether web pages of any origin may call, as in Qdrant: preflights are answered, refusals can be read."""
    allowed_origins: tuple[str, ...] = ()
    """Origins (`https://host[:port]`) whose pages may use the certificates of their visitors. Where there are some,
    `enable_cors` is for them alone. Pages of other origins need a key or token."""
    max_request_size_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 32
    """Largest JSON request body, in MiB. Uploads have `limits.max_upload_size_mb`."""


class Listener(Section):
    """A further address where clients connect."""

    host: Annotated[str, Field(min_length=1)] | None = None
    """Address to listen on; null for `service.host`. Needs a restart."""
    port: Port
    """0 lets the system choose one. Needs a restart."""
    mode: Literal["http", "tcp"] = "http"
    """http decides each request of Qdrant's APIs; tcp relays bytes to one address, for whoever may at all. Needs a
    restart."""
    protocols: tuple[HttpProtocol, ...] = ()
    """What is served there (mode http): rest, grpc, or both, between which each client chooses by ALPN. Needs a
    restart."""
    upstream: str | None = None
    """Where its bytes go (mode tcp): `host:port`. See `upstream.on_change`."""
    allow: tuple[Label, ...] = ()
    """The roles whose holders may connect, and stay connected (mode tcp)."""


class Tls(Section):
    """The server's certificate, and what clients' certificates are verified against."""

    cert: Path
    """PEM file: the server certificate, then its intermediates."""
    key: Path
    """PEM file: the private key of `cert`."""
    key_passphrase_file: Path | None = None
    """File that holds the passphrase of an encrypted `key`."""
    on_suspicious: Literal["warn", "refuse"] = "warn"
    """What a new server certificate meets that clients of the one that serves may refuse: a warning, or a refusal."""
    ca_cert: Path | None = None
    """PEM file: the CAs that client certificates are verified against. The system's roots are never used."""
    crl: tuple[Path, ...] = ()
    """PEM or DER files: complete revocation lists, each signed by a CA of `ca_cert`."""
    crl_policy: Literal["require", "where_present"] = "require"
    """Whether, once there is any CRL, a client certificate that none covers is refused (require), or admitted."""
    crl_expired: Literal["deny", "warn"] = "deny"
    """What a CRL past its next update means: deny refuses whom it covers, live and new; warn lets it go on counting."""
    ca_constraints: tuple[CaConstraint, ...] = ()
    """The names that CAs of `ca_cert` are confined to, such as a partner's to its own."""
    cert_ttl: Annotated[int, Field(ge=0)] | None = 3600
    """Seconds after which all files are read and judged anew, and what differs is published; 0 or null for never."""
    poll_interval: Seconds = 5.0
    """Seconds between two looks at the files' contents."""
    read_timeout: Seconds = 2.0
    """Seconds to wait for the next MiB of a file. One that does not answer stays as it was before, and is told of."""


class Upstream(Section):
    """The plaintext Qdrant behind the gateway."""

    rest: str = "http://127.0.0.1:16333"
    """Its REST API: `http://host:port`."""
    grpc: str = "http://127.0.0.1:16334"
    """Its gRPC API: `http://host:port`. It must be that of the same Qdrant."""
    api_key: SecretStr | None = None
    """Key that is sent to Qdrant with every request, where it asks for one."""
    api_key_file: Path | None = None
    """File that holds the upstream's `api_key`."""
    max_connections: Count = 256
    """Most connections to Qdrant at a time, for both protocols; a request beyond waits for one.

    A gRPC client has one of its own while it makes calls. Beyond as many clients, one without calls has to reconnect.
    """
    connect_timeout: Seconds = 5.0
    """Seconds to wait for a connection to Qdrant."""
    response_timeout: Seconds = 300.0
    """Seconds to wait for the head of Qdrant's response, and between two pieces of its body."""
    idle_timeout: Seconds = 4.0
    """Seconds that an unused connection is kept. Qdrant closes one after 5 s, so this must be less."""
    on_change: Literal["drain", "keep"] = "drain"
    """What becomes of relayed TCP connections and gRPC calls whose upstream is elsewhere after a reload: drain ends
    them within `limits.drain_timeout`, keep lets them stay until they end. New ones go to the new upstream; requests
    that run end where they began."""


class CollectionGrant(Section):
    """What a role may do in the collections that one name or glob describes."""

    collection: Annotated[str, Field(min_length=1, max_length=255)]
    """Name or glob. `*` stops at `/` and `.`, so `docs.v2` is matched by `docs.*` or `**` but not by `*`."""
    access: Literal["r", "rw", "prw"]
    """As in Qdrant's tokens: r reads, rw reads and writes, prw reads and writes points only."""


def _access_kind(value: object) -> str:
    return "grants" if isinstance(value, list | tuple) else "mode"


class Role(Section):
    """The rights of a role."""

    access: Annotated[
        Annotated[Literal["r", "m"], Tag("mode")] | Annotated[tuple[CollectionGrant, ...], Tag("grants")],
        Discriminator(_access_kind),
    ]
    """r (read everything), m (everything), or a list of collections and what may be done in each."""
    filter: dict[str, str] = Field(default={})
    """Payload keys and values that confine the role to some of the points; `{cn}` is the certificate's common name,
    `{claim:NAME}` a claim of the token."""
    limits: RoleLimits = RoleLimits()
    """What its holders may use."""


class IdentityRule(Section):
    """Which certificates have which role. The first rule that matches decides."""

    name: Label
    """What `explain` and the audit log call this rule."""
    match: Match
    """The certificate fields that must hold."""
    role: str
    """A key of `roles`."""


class Audit(Section):
    """The audit log: one JSON object a line, in Qdrant's format and files. All but `log_api` needs a restart."""

    enabled: bool = True
    """Whether decisions are written down."""
    dir: Path | Literal["-"] = Path("./audit")
    """Directory of the files, or `-` for standard output."""
    rotation: Literal["daily", "hourly"] = "daily"
    """How often a new file begins (UTC)."""
    max_log_files: Count = 7
    """How many files are kept."""
    on_full: Literal["refuse", "block"] = "refuse"
    """What a request meets when its line cannot be queued: a refusal (503), or a wait."""
    queue_size: Count = 65536
    """Most lines that wait to be written."""
    flush_interval: Seconds = 0.5
    """Seconds for which a line may stay in memory."""
    trust_forwarded_headers: Literal[False] = False
    """Must be false: who the client is, is known from its connection."""
    log_api: bool = True
    """Whether the request's path is written."""


class Admin(Section):
    """The admin server: a page for people, health, metrics, status and reload."""

    listen: str | None = None
    """`unix:/path`, or `host:port` on loopback; null for no admin server. Needs a restart."""


class Logger(Section):
    """How the log is written; keys are Qdrant's, but for `output`. All need a restart."""

    format: Literal["text", "json"] = "text"
    """A line for people, or an object with timestamp, level, logger, pid, message, fields and exception."""
    color: Literal["auto", "enable", "disable"] = "auto"
    """Whether text has colours: auto is on a terminal, unless NO_COLOR is set."""
    output: Literal["stderr", "stdout"] = "stderr"
    """Where to: standard error or standard output, which the audit log may have to itself (`audit.dir`)."""


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Config(Section):
    """The configuration of tlsproxy."""

    service: Service = Service()
    listeners: tuple[Listener, ...] = ()
    """Where clients connect beside the ports of `service`. All but `upstream` and `allow` needs a restart."""
    tls: Tls
    upstream: Upstream = Upstream()
    roles: dict[Label, Role] = {}  # noqa: RUF012 - pydantic copies it
    """Role names and their rights."""
    identities: tuple[IdentityRule, ...] = ()
    """Which certificates have which role, in order: the first rule that matches decides."""
    keys: tuple[NamedKey, ...] = ()
    """API keys beside those of `service`."""
    jwt_issuers: tuple[JwtIssuer, ...] = ()
    """Whose tokens are accepted beside those that are signed with an API key of `service`."""
    audit: Audit = Audit()
    limits: Limits = Limits()
    admin: Admin = Admin()
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that serve, each with an event loop of its own: as many as there are cores to use. Needs a restart."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARN", "ERROR"], BeforeValidator(_upper)] = "INFO"
    """How much is logged."""
    logger: Logger = Logger()
