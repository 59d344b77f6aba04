"""Questions to `explain`: a client and its request, from arguments or from a line of the audit log."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
from cryptography import x509

from tlsproxy.authz.identity import Identity, identity_of, identity_of_subject
from tlsproxy.authz.subject_names import parsed_subject
from tlsproxy.authz.trust_anchors import Anchors
from tlsproxy.cli.inspection import NoConnection
from tlsproxy.cli.show import read_chain
from tlsproxy.config.model import HttpProtocol
from tlsproxy.errors import MaterialError, RequestError
from tlsproxy.qdrant.grpc_decision import operation_of
from tlsproxy.qdrant.router import recognise
from tlsproxy.snapshot.reading import read_argument
from tlsproxy.text import printable

NOBODY: Final = "none"
STDIN: Final = "-"
_LINE_LIMIT: Final = 64 << 10
_CONNECTIONS: Final = frozenset({"handshake", "connection", "tcp_open", "tcp_close"})
_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
_SCHEMES: Final = frozenset({"http", "https"})
_SUBJECT: Final = frozenset({"subject", "cn", "o", "ou"})
"""The fields of a rule that a subject tells."""


@dataclass(frozen=True, slots=True)
class Client:
    """``chain`` is sent in a handshake (DER, leaf first); None where only names are known, then ``told`` says which.

    ``identity`` is the leaf's, without its CA; None for no certificate.
    """

    identity: Identity | None
    chain: tuple[bytes, ...] | None
    told: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Request:
    """``method`` is `grpc`, or that of HTTP in upper case."""

    method: str
    path: str

    @property
    def protocol(self) -> HttpProtocol:
        return "grpc" if self.method == "grpc" else "rest"

    @classmethod
    def of(cls, method: str, path: str | None) -> Request:
        """As typed: `put`, `collections/docs`, a URL, `qdrant.Points/Upsert` with or without `grpc` and a slash."""
        if path is None:
            service, separator, _ = _target(method).removeprefix("/").partition("/")
            if not separator or "." not in service:
                raise click.UsageError("say METHOD and PATH, or the full method of a gRPC call: qdrant.Points/Search")
            method, path = "grpc", method
        return cls("grpc" if method.lower() == "grpc" else method.upper(), _target(path))


@dataclass(frozen=True, slots=True)
class Line:
    """One audit line. ``key`` is the name of an API key, ``token`` the rights of a token, as far as it had one."""

    fields: dict[str, str]

    @property
    def recorded(self) -> str:
        """The line's own outcome."""
        given = [self.fields.get(name, "") for name in ("timestamp", "result", "reason", "error")]
        when, result, reason, error = map(printable, given)
        return f"{when} {result} ({reason})" + (f": {error}" if error else "")

    @property
    def presented(self) -> Iterator[str]:
        """Lines of label and value on the certificate that a client presented."""
        for label in ("subject", "issuer", "serial", "sha256"):
            if value := self.fields.get(f"certificate_{label}"):
                yield f"{label:<10} {printable(value)}"

    @property
    def key(self) -> str:
        return self.fields.get("key", "") if self.fields.get("auth_type") == "ApiKey" else ""

    @property
    def token(self) -> str:
        return self.fields.get("key_rights", "unknown") if self.fields.get("auth_type") == "Jwt" else ""

    def request(self) -> Request:
        """Raises MaterialError where the line does not have it, NoConnection for a client that was turned away."""
        fields = self.fields
        if fields.get("event") in _CONNECTIONS and fields["result"] == "denied":
            error = fields.get("error", "it was refused or ended")
            raise NoConnection(f"at that time: {printable(error)}", printable(fields.get("reason", "")))
        if "event" in fields:
            raise MaterialError("the line", f"is of an event ({printable(fields['event'])}), not of a request")
        path = fields.get("api")
        if path is None:
            raise MaterialError("the line", "has no path (audit.log_api: false): give CERT, METHOD and PATH instead")
        if "grpc_status" in fields or operation_of(path) is not None:
            return Request("grpc", path)
        return Request(_method_of(path, fields.get("method", "")), path)

    def client(self, anchors: Anchors) -> Client:
        """Raises NoConnection where its CA is not trusted any more."""
        name, digest = self.fields.get("certificate_subject"), self.fields.get("ca_sha256", "")
        if name is None:
            return Client(None, ())
        told = _SUBJECT | {"sha256"}
        identity = replace(_named(name), sha256=self.fields.get("certificate_sha256", ""))
        if digest:
            if digest not in anchors.trusted:
                raise NoConnection(f"its CA (SHA-256 {printable(digest)}) is not trusted now", "issuer_not_trusted")
            identity, told = anchors.identified(identity, [anchors.trusted[digest]]), told | {"ca", "ca_sha256"}
        return Client(identity, None, told)


def client_of(text: str) -> Client:
    """CERT as typed: a file, a subject, or `none`. Raises MaterialError."""
    if text == NOBODY:
        return Client(None, ())
    if ("=" in text or not {"/", "."}.intersection(text)) and not Path(text).exists():
        try:
            return Client(identity_of_subject(parsed_subject(text)), None, _SUBJECT)
        except ValueError:
            hint = "a subject is written as CN=alice,OU=search (openssl x509 -noout -subject -nameopt RFC2253)"
            raise MaterialError(text, f"is no file, and no subject: {hint}") from None
    chain = read_chain(Path(text))
    return Client(identity_of(chain[0]), chain)


def line_of(source: str) -> Line:
    """The audit line in a file, or in the standard input for `-`. Raises MaterialError."""
    limit = _LINE_LIMIT
    data = sys.stdin.buffer.read(limit + 1) if source == STDIN else read_argument(Path(source), limit)
    lines = data.strip().splitlines()
    if len(data) > limit or len(lines) != 1:
        raise MaterialError(source, f"holds {len(lines)} lines where one audit line is needed: choose it with grep")
    try:
        found = json.loads(lines[0])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "result" not in found:
        raise MaterialError(source, "is not a line of the audit log: a JSON object with `result` is expected")
    return Line({name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()})


def _method_of(path: str, operation: str) -> str:
    """The method by which a path is this operation of Qdrant's; GET if none is."""
    for method in _METHODS:
        try:
            found = recognise(method, path).operation
        except RequestError:
            break
        if found is not None and found.audit_method == operation:
            return method
    return _METHODS[0]


def _target(text: str) -> str:
    """The path of a request, with its query, also out of a URL."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() in _SCHEMES:
        text = rest[rest.index("/") :] if "/" in rest else "/"
    return text if text.startswith("/") else f"/{text}"


def _named(name: str) -> Identity:
    """The identity of a certificate's name: its subject, or an alternative name where that is empty."""
    try:
        return identity_of_subject(parsed_subject(name))
    except ValueError:
        nameless = identity_of_subject(x509.Name([]))
    if "://" in name:
        return replace(nameless, uris=(name,))
    if "@" in name:
        return replace(nameless, emails=(name,))
    try:
        return replace(nameless, ips=(str(ipaddress.ip_address(name)),))
    except ValueError:
        return replace(nameless, dns_names=(name,))
