"""What the gateway answers itself: who the caller is, and whether a web page may ask at all (CORS)."""

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
    """A response of status 200. ``fields`` are whole header lines."""

    body: bytes = b""
    fields: bytes = b""


def is_preflight(head: RequestHead, origins: AbstractSet[bytes]) -> bool:
    """Fetch standard, CORS-preflight request; answered before any authentication, as in Qdrant.

    ``origins`` as in :func:`cors_fields`: a page that may not ask has no preflight, but a request like any other.
    """
    return (
        head.method == "OPTIONS"
        and cors_fields(head, origins) != b""
        and head.value(b"access-control-request-method") is not None
    )


def cors_fields(head: RequestHead, origins: AbstractSet[bytes]) -> bytes:
    """Header lines that let a page of this origin read the response; empty where no page asks, or none that may.

    Without ``origins`` any may, as in Qdrant, and none with the browser's own credentials: a page has to send a key of
    its own. ``origins`` are those that may ask with the certificate of the browser; no other may then.
    """
    origin = _field(head, b"origin")
    if origin is None or (origins and origin not in origins):
        return b""
    allowed = b"access-control-allow-origin: " + origin + b"\r\n" + _VARY
    return allowed + b"access-control-allow-credentials: true\r\n" if origins else allowed


def preflight(head: RequestHead, origins: AbstractSet[bytes]) -> LocalResponse:
    allowed = cors_fields(head, origins)
    for asked, answered in ((b"method", b"methods"), (b"headers", b"headers")):
        value = _field(head, b"access-control-request-" + asked)
        if value is not None:
            allowed += b"access-control-allow-" + answered + b": " + value + b"\r\n"
    return LocalResponse(fields=allowed)


def whoami(admission: Admission) -> LocalResponse:
    """JSON: the connection's identity, what each credential gives, until when. A request must pass all ``rights``."""
    principal, credential = admission.principal, admission.credential
    identity = principal.identity
    told: dict[str, Any] = {
        "identity": None,
        "rule": principal.rule or None,
        "role": admission.role or None,
        "rights": [str(rights) for rights in admission.rights],
        "certificate": {"role": principal.role, "rights": str(principal.rights)} if principal.role else None,
        "credential": None,
        "expires": _moment(min(admission.expires, identity.not_after if identity is not None else NEVER)),
    }
    if identity is not None:
        told["identity"] = {
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
        told["credential"] = {
            "kind": credential.kind,
            "name": credential.name,
            "role": credential.role or None,
            "rights": credential.gives,
            "subject": credential.subject or None,
            "expires": _moment(credential.expires),
        }
    return LocalResponse(orjson.dumps(told), b"content-type: application/json\r\n")


def _moment(seconds: float) -> str | None:
    return None if seconds == NEVER else rfc3339(seconds)


def _field(head: RequestHead, name: bytes) -> bytes | None:
    return next((value for field, value in head.fields if field == name), None)
