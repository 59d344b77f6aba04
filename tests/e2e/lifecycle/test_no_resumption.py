"""No TLS session is resumed, in any version: it would be a way round what has changed since it began."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.gateway import Gateway
from support.raw_request import ask, read_response, request
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def saved(gateway: Gateway, context: ssl.SSLContext) -> ssl.SSLSession:
    """The session of a connection that was admitted, has been used, and was ended well.

    OpenSSL forgets the session of one that ends without a close_notify.
    """
    with gateway.connect(context) as sock:
        assert ask(sock).status == 200
        session = sock.session
        assert session is not None
        assert not session.has_ticket
        with suppress(ssl.SSLEOFError):  # it is ours that matters
            sock.unwrap()
        return session


def entered(gateway: Gateway, context: ssl.SSLContext, session: ssl.SSLSession) -> str:
    """How far a client gets with its old session: the alert that it got, or the status of what it asked."""
    try:
        with gateway.connect(context, session) as sock:
            sock.sendall(request("GET", "/collections"))
            return f"{read_response(sock).status}{' resumed' if sock.session_reused else ''}"
    except ssl.SSLError as error:
        return str(error.reason)


@dataclass(frozen=True)
class Served:
    """A gateway, and what may be changed of its files; ``numbers`` are those of its CRLs."""

    gateway: Gateway
    site: Site
    config: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def revoke(self, *serials: int) -> None:
        self.site.replace("ca.crl", self.site.authority.crl_pem(serials, number=next(self.numbers)))


def revoked(served: Served) -> Callable[[], None]:
    served.revoke(served.site.serial("search"))
    return served.revoke


def another_ca(served: Served) -> Callable[[], None]:
    served.site.edit_config(served.config, tls={"crl": []})
    served.gateway.reloaded()
    served.site.replace("ca.pem", Authority.create().certificate_pem)

    def back() -> None:
        served.site.replace("ca.pem", served.site.authority.certificate_pem)
        served.gateway.reloaded()
        served.site.edit_config(served.config, tls={"crl": ["ca.crl"]})

    return back


def role_lost(served: Served) -> Callable[[], None]:
    served.site.edit_config(served.config, identities=CONFIG["identities"][:2])
    return lambda: served.site.edit_config(served.config, identities=CONFIG["identities"])


def another_server_certificate(served: Served) -> Callable[[], None]:
    issued = served.site.authority.issue(dns=["localhost"], server=True)
    served.site.replace("server.key", issued.key_pem)
    served.site.replace("server.pem", issued.chain_pem)
    return served.gateway.hang_up


def nothing_but_a_signal(served: Served) -> Callable[[], None]:
    served.gateway.hang_up()
    return served.gateway.hang_up


CHANGES = {
    revoked: "SSLV3_ALERT_CERTIFICATE_REVOKED",
    another_ca: "TLSV1_ALERT_UNKNOWN_CA",
    role_lost: "403",
    another_server_certificate: "200",
    nothing_but_a_signal: "200",
    None: "200",  # what a handshake checks by now: a CRL or an intermediate may have run out since
}
"""How far an old session leads after each; each returns its own undoing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, shared_upstream: ScriptedUpstream) -> Iterator[Served]:
    site = Site(tmp_path_factory.mktemp("site"))
    site.write("ca.crl", site.authority.crl_pem(number=1))
    config = site.write_config(shared_upstream.url, tls={"crl": ["ca.crl"]})
    with Gateway(config) as gateway:
        yield Served(gateway, site, config)


@pytest.mark.parametrize(("change", "expected"), CHANGES.items())
def test_a_session_of_before(
    served: Served,
    shared_upstream: ScriptedUpstream,
    change: Callable[[Served], Callable[[], None]] | None,
    expected: str,
) -> None:
    sessions = []
    for version in VERSIONS:
        context = served.site.client("search")
        context.minimum_version = context.maximum_version = version
        sessions.append((context, saved(served.gateway, context)))
    undo = None if change is None else change(served)
    if undo is not None:
        served.gateway.reloaded()
    before = len(shared_upstream.requests)
    assert [entered(served.gateway, *each) for each in sessions] == [expected] * len(VERSIONS)
    assert len(shared_upstream.requests) - before == (len(VERSIONS) if expected == "200" else 0)
    if undo is not None:
        undo()
        served.gateway.reloaded()
