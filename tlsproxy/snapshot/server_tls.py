"""TLS with the upstreams of a generation. What is made of the same states is the former generation's object, so that a
connection is known to be as a new one would be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tlsproxy.config.endpoints import UnixSocket, UpstreamUrl
from tlsproxy.config.pins import pin_of
from tlsproxy.tls.client_context import ClientTls, ExpectedServer, client_tls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cryptography import x509

    from tlsproxy.config.upstream_tls import UpstreamTls
    from tlsproxy.snapshot.states import InputState
    from tlsproxy.tls.owncert import OwnCertificate

_Key: TypeAlias = tuple[object, ...]


class TlsStates(Protocol):
    """States of the files that sections of TLS name."""

    @property
    def server_authorities(self) -> Mapping[Path, InputState[tuple[x509.Certificate, ...]]]: ...
    @property
    def client_certificates(self) -> Mapping[Path, InputState[OwnCertificate]]: ...


@dataclass(frozen=True, slots=True)
class ServerTls:
    """``made`` so far, by all that each was made of; ``former`` is that of the generation before."""

    states: TlsStates = field(repr=False)
    former: Mapping[_Key, ClientTls] = field(repr=False)
    made: dict[_Key, ClientTls] = field(default_factory=dict, repr=False)

    def of(self, section: UpstreamTls | None, url: UpstreamUrl, alpn: str) -> ClientTls | None:
        """TLS with the server of a URL; None for plaintext. Raises MaterialError."""
        if not url.tls:
            return None
        if section is None or isinstance(url.endpoint, UnixSocket):
            raise AssertionError("an upstream over TLS without a name, or without a section that says how")
        host = url.endpoint.host
        expected = ExpectedServer(
            (section.server_name or ("" if section.spiffe_id or section.spki_sha256 else host)).rstrip("."),
            section.spiffe_id or "",
            frozenset(map(pin_of, section.spki_sha256)),
        )
        authorities = self.states.server_authorities[section.ca_cert]
        trust = (host, expected, section.min_version, alpn)
        certificate = None if section.cert is None else self.states.client_certificates[section.cert]
        key = (*trust, authorities.digest, "" if certificate is None else certificate.digest)
        if key not in self.made:
            self.made[key] = self.former.get(key) or client_tls(
                authorities.value,
                server_name=host,
                expected=expected,
                certificate=None if certificate is None else certificate.value,
                key_path=str(section.key),
                min_version=section.min_version,
                alpn=alpn,
                trust=trust,
            )
        return self.made[key]
