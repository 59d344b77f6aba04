"""The configuration model of callers: certificates, named keys, token issuers (:mod:`tlsproxy.config.model`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from tlsproxy.authz.claim_paths import LONGEST_PATH
from tlsproxy.authz.tokens import IssuerAlgorithm
from tlsproxy.config.descriptions import descriptions

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that appears in the audit log and as a metric's label."""


URL_PATTERN: Final = "://"
KeySetUrl = Annotated[str, Field(pattern=URL_PATTERN)]
"""A URL rather than a path; :func:`tlsproxy.config.endpoints.check_key_set_url` checks it."""


ClaimPath = Annotated[str, Field(min_length=1, max_length=LONGEST_PATH)]


def _kind(value: object) -> str:
    return "boolean" if isinstance(value, bool) else "integer" if isinstance(value, int) else "text"


Scalar = Annotated[
    Annotated[StrictBool, Tag("boolean")] | Annotated[StrictInt, Tag("integer")] | Annotated[StrictStr, Tag("text")],
    Discriminator(_kind),
]
"""Text, an integer or a boolean: each only as itself."""


class Section(BaseModel):
    """A frozen mapping. An unknown key is an error; the loader removes Qdrant's unused ones first."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for key, text in descriptions(cls).items():
            properties[key]["description"] = text
        return schema


class Match(Section):
    """Certificate fields, and claims of a token. All that are given must hold. A value is exact or a glob; case matters
    except in `dns`. `*` stops at `/` and, in certificate fields, at `.`; `**` does not.
    """

    cn: str | None = None
    """Common name."""
    o: str | None = None
    """Organization; any of several."""
    ou: str | None = None
    """Organizational unit; any of several."""
    dns: str | None = None
    """DNS alternative name, in any case; any of several."""
    uri: str | None = None
    """URI alternative name, such as a SPIFFE ID; any of several."""
    email: str | None = None
    """Email alternative name; any of several."""
    ip: str | None = None
    """IP alternative name; any of several."""
    subject: str | None = None
    """The whole subject as RFC 4514 writes it: `CN=alice,OU=platform,O=Acme`."""
    issuer: str | None = None
    """The issuer as RFC 4514 writes it. With several trusted CAs it holds if it is one of them; for an intermediate,
    name its CA too."""
    serial: str | None = None
    """Serial number in hex, with or without colons."""
    sha256: str | None = None
    """SHA-256 fingerprint of the certificate in hex, with or without colons."""
    ca: str | None = None
    """Subject of the CA of `tls.ca_cert` that the certificate's chain ends in. Needed with several trusted CAs: each of
    them may give any name."""
    ca_sha256: str | None = None
    """SHA-256 fingerprint of that CA's certificate in hex, with or without colons."""
    claims: dict[ClaimPath, Scalar] = Field(default={})
    """In `identities` only: claims of a token of `jwt_issuers`, by path: text, integer or boolean, such as `{groups:
    sre, sub: "alice@*", "realm_access.roles": ops}`. A list holds if one of its values does. The exact name of a claim
    comes before a path that is split at dots. With several issuers `iss` is required: each of them may give any claim.
    With certificate fields, the token counts beside such a certificate only."""


class CaConstraint(Section):
    """The names that one CA may give. `trust_domain`, `dns` or both are required."""

    ca: str | None = None
    """The CA, by its whole subject as RFC 4514 writes it. This or `ca_sha256` is required."""
    ca_sha256: str | None = None
    """The CA, by the SHA-256 fingerprint of its certificate (`openssl x509 -noout -fingerprint -sha256`)."""
    trust_domain: str | None = None
    """SPIFFE trust domain of all its SPIFFE IDs: `partner.example`, or `spiffe://partner.example`."""
    dns: tuple[str, ...] = ()
    """DNS names that its DNS names, and the domains of its email addresses, equal or end in: `partner.example` includes
    `api.partner.example`."""


class NamedKey(Section):
    """An API key with a name."""

    name: Label
    """Name of the key in the audit log."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 of the key in hex: `printf %s KEY | sha256sum`. This or `file` is required."""
    file: Path | None = None
    """File that holds the key, or `credential:NAME` (systemd)."""
    role: str
    """A key of `roles`. Its filter may not need a token, and needs `require_certificate` if it needs a certificate."""
    expires: AwareDatetime | None = None
    """Moment from which the key is refused: RFC 3339, with a time zone; null for never."""
    require_certificate: Match | None = None
    """The key counts only beside a client certificate that matches: fields as under `identities`. null for any
    connection."""


class JwtIssuer(Section):
    """An issuer of tokens, with its public keys."""

    name: Label
    """Name of the issuer in the audit log."""
    issuer: Annotated[str, Field(min_length=1)]
    """Required value of the `iss` claim, and of `issuer` in the document of `discovery`. A SPIFFE trust domain
    (`spiffe://example.org`) requires `exp` and a `sub` of that domain instead."""
    audience: Annotated[str, Field(min_length=1)]
    """Required value of the `aud` claim, or a member of it. A token has the rights of its `access` claim, as in
    Qdrant's own tokens, and of the role that a rule of `identities` gives its claims: both must allow, one is required.
    """
    algorithm: IssuerAlgorithm
    """The only accepted algorithm."""
    pem: Path | None = None
    """PEM file: the public key. This, `jwks` or `discovery` is required."""
    jwks: KeySetUrl | Path | None = None
    """A set of public keys (JWKS, RFC 7517): a file, or an https:// URL (http:// on loopback only)."""
    discovery: str | None = None
    """URL of the issuer's OpenID configuration, which names that of its keys; both as for `jwks`. Where the path has no
    `/.well-known/`, `/.well-known/openid-configuration` is added to it."""
    refresh: Annotated[StrictFloat, Field(ge=1, le=86400)] = 300.0
    """Seconds between two fetches of a URL; at most 60 once a token names a key that is not there. The last good
    document counts until there is a newer one that can be used."""
    ca_cert: Path | None = None
    """PEM file of the CAs of the URL's server, read at each fetch; null for the system's."""
    bearer_token_file: Path | None = None
    """File with a bearer token for the URL, or `credential:NAME` (systemd), read at each fetch. A `jwks_uri` of another
    scheme, host or port is fetched without it. null for none."""
    role: str | None = None
    """A key of `roles`: its rights and filter hold for these tokens too, and only narrow them. A {claim:NAME} in the
    filter is taken from the token, {cn} and the like from the certificate beside it; without it there are no rights.
    null for none."""
    groups_claim: ClaimPath = "groups"
    """Path of the claim whose values are `token_groups` in the audit log, and the credential's `groups` in `whoami`."""
