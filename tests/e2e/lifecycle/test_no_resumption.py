"""No TLS session is resumed, in any version: it would be a way round what has changed since it began."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from support.client import ask, read_response, request
from support.gateway import DEADLINE, Gateway
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

Clients = dict[ssl.TLSVersion, ssl.SSLContext]


@contextmanager
def connected(
    gateway: Gateway, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=DEADLINE) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as sock,
    ):
        yield sock


def saved(gateway: Gateway, context: ssl.SSLContext) -> ssl.SSLSession:
    """The session of a connection that was admitted, has been used, and was ended well.

    OpenSSL forgets the session of one that ends without a close_notify.
    """
    with connected(gateway, context) as sock:
        assert ask(sock).status == 200
        session = sock.session
        with suppress(ssl.SSLEOFError):  # it is ours that matters
            sock.unwrap()
        return session


def entered(gateway: Gateway, context: ssl.SSLContext, session: ssl.SSLSession) -> str:
    """How far a client gets with its old session: the alert that it got, or the status of what it asked."""
    try:
        with connected(gateway, context, session) as sock:
            sock.sendall(request("GET", "/collections"))
            return f"{read_response(sock).status}{' resumed' if sock.session_reused else ''}"
    except ssl.SSLError as error:
        return str(error.reason)


@pytest.fixture
def clients(own_site: Site) -> Clients:
    """The same client, once with each version."""
    contexts: Clients = {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        contexts[version] = own_site.client("search")
        contexts[version].minimum_version = contexts[version].maximum_version = version
    return contexts


def save_all(gateway: Gateway, clients: Clients) -> list[tuple[ssl.SSLContext, ssl.SSLSession]]:
    return [(context, saved(gateway, context)) for context in clients.values()]


def test_no_tickets_are_given(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        assert not any(session.has_ticket for _, session in save_all(gateway, clients))


def test_revoked_since(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    own_site.write("ca.crl", own_site.authority.crl_pem(number=1))
    with Gateway(own_site.write_config(upstream.url, tls={"crl": ["ca.crl"]})) as gateway:
        sessions = save_all(gateway, clients)
        own_site.replace("ca.crl", own_site.authority.crl_pem([own_site.serial("search")], number=2))
        gateway.reloaded()
        before = len(upstream.requests)
        for context, session in sessions:
            assert entered(gateway, context, session) == "SSLV3_ALERT_CERTIFICATE_REVOKED"
        assert len(upstream.requests) == before


def test_ca_dropped_since(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        sessions = save_all(gateway, clients)
        own_site.replace("ca.pem", Authority.create().certificate_pem)
        gateway.reloaded()
        before = len(upstream.requests)
        for context, session in sessions:
            assert entered(gateway, context, session) == "TLSV1_ALERT_UNKNOWN_CA"
        assert len(upstream.requests) == before


def test_role_lost_since(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    config = own_site.write_config(upstream.url)
    with Gateway(config) as gateway:
        sessions = save_all(gateway, clients)
        own_site.edit_config(config, identities=CONFIG["identities"][:2])
        gateway.reloaded()
        for context, session in sessions:
            assert entered(gateway, context, session) == "403"


def test_server_certificate_replaced_since(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        sessions = save_all(gateway, clients)
        issued = own_site.authority.issue(dns=["localhost"], server=True)
        own_site.replace("server.key", issued.key_pem)
        own_site.replace("server.pem", issued.chain_pem)
        gateway.reloaded()
        for context, session in sessions:
            with connected(gateway, context, session) as sock:
                shown = sock.getpeercert()
                assert shown is not None
                assert int(str(shown["serialNumber"]), 16) == issued.serial
                assert not sock.session_reused
                assert ask(sock).status == 200


def test_nothing_but_a_signal_since(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    """Even where all files are the same, a generation does not know the sessions of the one before."""
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        sessions = save_all(gateway, clients)
        gateway.hang_up()
        gateway.reloaded(reason="sighup")
        assert [entered(gateway, context, session) for context, session in sessions] == ["200", "200"]


def test_within_a_generation(own_site: Site, upstream: ScriptedUpstream, clients: Clients) -> None:
    """An old session would skip what a handshake checks now: an intermediate, or a CRL, may have run out since."""
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        sessions = save_all(gateway, clients)
        assert [entered(gateway, context, session) for context, session in sessions] == ["200", "200"]
