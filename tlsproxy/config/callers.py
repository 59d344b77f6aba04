"""The configuration's shape, of whoever calls: certificates and how they are told apart, named keys, issuers of tokens.

The rest of it, and what is said there of units and paths, is in :mod:`tlsproxy.config.model`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tlsproxy.authz.tokens import IssuerAlgorithm

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that appears in the audit log and as a metric's label."""


KeySetUrl = Annotated[str, Field(pattern="://")]
"""What is not a path. :func:`tlsproxy.config.endpoints.check_key_set_url` says which of these are fetched."""


class Section(BaseModel):
    """Frozen; a key that is neither ours nor Qdrant's is an error (the loader takes Qdrant's unused keys out first)."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)


class Match(Section):
    """All fields that are given must hold. A value is exact or a glob; `*` stops at `/` and `.`, `**` does not."""

    cn: str | None = None
    """Common name of the subject."""
    o: str | None = None
    """Organization of the subject; any of several."""
    ou: str | None = None
    """Organizational unit of the subject; any of several."""
    dns: str | None = None
    """DNS alternative name, in any case."""
    uri: str | None = None
    """URI alternative name, such as a SPIFFE ID."""
    email: str | None = None
    """Email alternative name."""
    ip: str | None = None
    """IP alternative name."""
    subject: str | None = None
    """The whole subject as RFC 4514 writes it, for example `CN=alice,OU=platform,O=Acme`."""
    issuer: str | None = None
    """The issuer as RFC 4514 writes it. Where several CAs are trusted it is believed if it is one of them; an
    intermediate needs its CA named beside it."""
    serial: str | None = None
    """Serial number in hex."""
    sha256: str | None = None
    """SHA-256 fingerprint of the certificate in hex, with or without colons."""
    ca: str | None = None
    """Subject of the CA of `tls.ca_cert` that the certificate's chain ends in: needed where several are trusted."""
    ca_sha256: str | None = None
    """SHA-256 fingerprint of that CA's certificate in hex, with or without colons."""


class CaConstraint(Section):
    """The only names that a CA may give: certificates below it that have others, or none, are refused."""

    ca: str | None = None
    """Subject of a CA of `tls.ca_cert` as RFC 4514 writes it. This or `ca_sha256` is needed."""
    ca_sha256: str | None = None
    """SHA-256 fingerprint of its certificate in hex, with or without colons."""
    trust_domain: str | None = None
    """SPIFFE trust domain of all its SPIFFE IDs: `partner.example`, or `spiffe://partner.example`."""
    dns: tuple[str, ...] = ()
    """DNS names that all its DNS names are, or end in: `partner.example` has `api.partner.example` too. Its email
    addresses have such domains."""


class NamedKey(Section):
    """An API key with a name: its use is attributed, and it can be revoked alone."""

    name: Label
    """What the audit log calls this key."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of the key, in hex: `printf %s KEY | sha256sum`. This or `file` is needed."""
    file: Path | None = None
    """File that holds the key, or `credential:NAME` (systemd)."""
    role: str
    """A key of `roles`."""
    expires: AwareDatetime | None = None
    """The moment from which it is refused: RFC 3339, with its time zone."""
    require_certificate: Match | None = None
    """The key counts only on a connection whose client certificate matches."""


class JwtIssuer(Section):
    """Somebody whose tokens are accepted: signed with a key of their own, never with a shared secret."""

    name: Label
    """What the audit log calls this issuer."""
    issuer: Annotated[str, Field(min_length=1)]
    """What the `iss` claim must be."""
    audience: Annotated[str, Field(min_length=1)]
    """What the `aud` claim must be, or hold."""
    algorithm: IssuerAlgorithm
    """The only algorithm that is accepted."""
    pem: Path | None = None
    """PEM file: the public key. This or `jwks` is needed."""
    jwks: KeySetUrl | Path | None = None
    """A set of public keys (RFC 7517): a JSON file, or an https:// URL to fetch it from (http:// on loopback only)."""
    refresh: Annotated[float, Field(ge=1, le=86400)] = 300.0
    """Seconds between two fetches of a URL."""
    role: str | None = None
    """A key of `roles`, whose rights and filter hold for these tokens too: they only ever narrow."""
