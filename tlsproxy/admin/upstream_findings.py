"""Findings about an upstream, as sentences that say what is wrong and which key of the configuration to set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tlsproxy.admin.readiness import OK, Part, not_ready
from tlsproxy.config.model import HttpProtocol
from tlsproxy.qdrant.operations import Release
from tlsproxy.qdrant.releases import release_of


class Finding(Enum):
    """The text follows `http://host:port: `."""

    GOOD = ""
    NO_ADDRESS = "its name does not resolve"
    UNREACHABLE = "{detail}: is Qdrant running there?"
    SILENT = "it accepts connections, and does not answer within {detail} s"
    SPEAKS_TLS = (
        "it speaks TLS, and the gateway plaintext: set service.enable_tls: false in Qdrant's configuration, or write "
        "https:// and upstream.tls here"
    )
    NO_TLS = "TLS with it fails: {detail}"
    SPEAKS_CLEAR = "it speaks {detail} in plaintext, and the gateway TLS: enable TLS there, or write http:// here"
    CLOSES_TLS = (
        "it closes the connection after the TLS handshake, without an answer: does it want a client certificate, or "
        "another one (upstream.tls.cert and key)?"
    )
    OTHER_PORT = "it is Qdrant's {other} port, or another {other} server: are upstream.rest and upstream.grpc swapped?"
    NO_GRPC = "it speaks HTTP/2, and not gRPC: set upstream.grpc to Qdrant's service.grpc_port"
    CLOSES = "it closes the connection without an answer"
    NO_HTTP = "it does not speak HTTP: is Qdrant's port another one?"
    FAILS = "it answers {detail}"
    KEY_MISSING = (
        "Qdrant wants an API key, and the gateway's own key for Qdrant is missing: "
        "set upstream.api_key_file to a file with the value of Qdrant's service.api_key"
    )
    KEY_REFUSED = (
        "Qdrant refuses the gateway's own key: "
        "put the value of Qdrant's service.api_key in the file of upstream.api_key_file (or in upstream.api_key)"
    )


_TITLES: Final = {"rest": "REST", "grpc": "gRPC"}


@dataclass(frozen=True, slots=True)
class Found:
    """``version`` is that of the Qdrant which answered, as far as it tells."""

    finding: Finding
    detail: str = ""
    version: str = ""

    @property
    def release(self) -> Release | None:
        return release_of(self.version)

    def part(self, protocol: HttpProtocol, url: str) -> Part:
        if self.finding is Finding.GOOD:
            return OK
        other = _TITLES["grpc" if protocol == "rest" else "rest"]
        return not_ready(f"{url}: {self.finding.value.format(detail=self.detail, other=other)}")


GOOD: Final = Found(Finding.GOOD)


class Speech(Enum):
    """The protocol of a server, by the first bytes that it sends."""

    HTTP1 = "HTTP/1"
    HTTP2 = "HTTP/2"
    TLS = "TLS"
    UNKNOWN = "unknown"


_RECORDS: Final = (b"\x15\x03", b"\x16\x03")
"""A TLS alert, or the beginning of a handshake (RFC 8446 §5.1)."""
_SETTINGS: Final = b"\x04\x00\x00\x00\x00\x00"
"""Type, flags and stream of the frame that an HTTP/2 server begins with (RFC 9113 §3.4)."""
_KIND: Final = slice(3, 9)


def speech_of(data: bytes) -> Speech:
    if data.startswith(b"HTTP/1."):
        return Speech.HTTP1
    if data[_KIND] == _SETTINGS:
        return Speech.HTTP2
    return Speech.TLS if data.startswith(_RECORDS) else Speech.UNKNOWN


def found_instead(protocol: HttpProtocol, speech: Speech) -> Found:
    """The finding about a server that does not speak well what is expected of ``protocol``."""
    if speech is Speech.TLS:
        return Found(Finding.SPEAKS_TLS)
    own, other = (Speech.HTTP1, Speech.HTTP2) if protocol == "rest" else (Speech.HTTP2, Speech.HTTP1)
    if speech is own:
        return Found(Finding.FAILS, f"in {speech.value}, with a response that is malformed or cut off")
    return Found(Finding.OTHER_PORT if speech is other else Finding.NO_HTTP)
