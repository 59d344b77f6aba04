"""Responses made by the gateway: the caller's identity and rights (`whoami`), and CORS for web pages."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tlsproxy.authz.admission import Admission
from tlsproxy.authz.keys import NEVER
from tlsproxy.text import rfc3339
from tlsproxy.wire.http1 import RequestHead

_VARY: Final = b"vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n"


@dataclass(frozen=True, slots=True)
class LocalResponse:
    """Response of status 200. ``fields`` are whole header lines."""

    body: bytes = b""
    fields: bytes = b""


def is_preflight(head: RequestHead, origins: AbstractSet[bytes]) -> bool:
    """Whether this is a CORS preflight (Fetch standard), which is answered before authentication, as in Qdrant.

    ``origins`` as in :func:`cors_fields`: from an origin that is not allowed it is a request like any other.
    """
    return (
        head.method == "OPTIONS"
        and cors_fields(head, origins) != b""
        and head.value(b"access-control-request-method") is not None
    )


def cors_fields(head: RequestHead, origins: AbstractSet[bytes]) -> bytes:
    """Header lines that let a page of the request's origin read the response; empty for no origin, or a forbidden one.

    Without ``origins`` every origin is allowed, as in Qdrant, but without the browser's credentials: the page sends its
    own key. With ``origins``, these alone are allowed, and may use the browser's client certificate.
    """
    origin = _field(head, b"origin")
    if origin is None or (origins and origin not in origins):
        return b""
    allowed = b"access-control-allow-origin: " + origin + b"\r\n" + _VARY
    return allowed + b"access-control-allow-credentials: true\r\n" if origins else allowed


def preflight(head: RequestHead, origins: AbstractSet[bytes]) -> LocalResponse:
    allowed = cors_fields(head, origins)
    for requested, allowing in ((b"method", b"methods"), (b"headers", b"headers")):
        value = _field(head, b"access-control-request-" + requested)
        if value is not None:
            allowed += b"access-control-allow-" + allowing + b": " + value + b"\r\n"
    return LocalResponse(fields=allowed)


def whoami(admission: Admission) -> LocalResponse:
    """JSON with the connection's identity, the rights of each credential, and the expiry.

    A request needs all of ``rights``. Example: a read-only certificate and a key with write access give read access.
    """
    principal, credential = admission.principal, admission.credential
    identity = principal.identity
    described: dict[str, Any] = {
        "identity": None,
        "rule": admission.rule or None,
        "role": admission.role or None,
        "rights": [str(rights) for rights in admission.rights],
        "certificate": {"role": principal.role, "rights": str(principal.rights)} if principal.role else None,
        "credential": None,
        "expires": _moment(min(admission.expires, identity.not_after if identity is not None else NEVER)),
    }
    if identity is not None:
        described["identity"] = {
            "subject": identity.subject,
            "issuer": identity.issuer,
            "ca": identity.ca,
            "ca_sha256": identity.ca_sha256,
            "serial": identity.serial,
            "sha256": identity.sha256,
            "dns": identity.dns_names,
            "uri": identity.uris,
            "email": identity.emails,
            "ip": identity.ips,
            "not_after": _moment(identity.not_after),
        }
    if credential is not None:
        rule = credential.rule
        described["credential"] = {
            "kind": credential.kind,
            "name": credential.name,
            "role": credential.role or None,
            "rights": credential.gives,
            "rule": {"name": rule.name, "role": rule.role} if rule is not None else None,
            "subject": credential.subject or None,
            "groups": credential.groups,
            "expires": _moment(credential.expires),
        }
    return LocalResponse(orjson.dumps(described), b"content-type: application/json\r\n")


def _moment(seconds: float) -> str | None:
    return None if seconds == NEVER else rfc3339(seconds)


def _field(head: RequestHead, name: bytes) -> bytes | None:
    return next((value for field, value in head.fields if field == name), None)
