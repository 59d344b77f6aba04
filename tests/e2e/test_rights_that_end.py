"""Who loses the right to a connection is off it within two seconds, whatever they do there; nobody else notices."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hyperframe.frame import DataFrame
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, never
from support.h2_raw_client import SEARCH, fields, h2, message
from support.kept_connection import Caller
from support.raw_connection import UPSERT, RawClient, Truncated, connected
from support.site import CONFIG, Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

from tlsproxy.authz.tokens import mint

KEY = "a key that is long enough to sign with"
PERMISSION_DENIED = 7
SOON = 2.5
"""Seconds: one for what runs, a tick of the connection manager, and a slow machine."""


@contextmanager
def within() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SOON


def unmapped(site: Site, gateway: Gateway) -> None:
    site.edit_config(gateway.config, identities=CONFIG["identities"][1:])


def revoked(site: Site, gateway: Gateway) -> None:
    del gateway
    site.write("ca.crl", site.authority.crl_pem([site.serial("admin")], number=2))


def cut(site: Site, gateway: Gateway) -> None:
    del site
    live = json.loads(gateway.ask_admin("/status")[1])["connections"]["live"]
    for one in live:
        if one["role"] == "admin":
            assert gateway.ask_admin(f"/connections/{one['number']}/cut", "POST")[0] == 200


LOSSES: dict[str, Callable[[Site, Gateway], None]] = {
    "no_role": unmapped,
    "certificate_revoked": revoked,
    "cut_by_operator": cut,
}


@pytest.fixture
def served(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Iterator[Gateway]:
    own_site.write("ca.crl", own_site.authority.crl_pem([]))
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        tls={"crl": ["ca.crl"]},
        service={"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True},
    )
    with Gateway(config) as running, Caller(running, own_site.client("search")) as other:
        yield running
        assert other.ask().status == 200


@pytest.mark.parametrize("reason", LOSSES)
def test_idle(own_site: Site, served: Gateway, reason: str) -> None:
    with connected(served, own_site.client()) as client, h2(served, own_site) as calls:
        assert calls.status(calls.call()) == 0
        with within():
            LOSSES[reason](own_site, served)
            assert client.ended()
            assert calls.ended()
    record = served.audited(event="connection")
    assert (record["reason"], record["certificate_subject"]) == (reason, "CN=alice,OU=platform")
    assert f'connections_ended_total{{reason="{reason}"}} 2.0' in served.ask_admin("/metrics")[1]


@pytest.mark.parametrize("reason", LOSSES)
def test_in_the_middle_of_an_upload(own_site: Site, served: Gateway, upstream: ScriptedUpstream, reason: str) -> None:
    begun = threading.Event()

    def answer(connection: Connection, request: Received) -> None:
        begun.set()
        connection.read_body(request)

    upstream.answer = answer
    with connected(served, own_site.client()) as client:
        client.send(UPSERT, b"content-length: 1000000\r\n\r\n", bytes(1000))
        assert begun.wait(20)
        with within():
            LOSSES[reason](own_site, served)
            _sends_until_refused(client)
    upstream.answer = plain()
    record = served.audited(method="upsert_points")
    assert record["reason"] == reason


def _sends_until_refused(client: RawClient) -> None:
    """Goes on sending, as an upload does, until there is an answer."""
    with suppress(Truncated, ConnectionError):  # what was sent too late may have met a reset
        while not select.select([client.sock], [], [], 0.02)[0]:
            client.send(b"more")
        assert client.response().status == 403
        assert client.ended()


@pytest.mark.parametrize("reason", LOSSES)
def test_in_a_grpc_call(own_site: Site, served: Gateway, grpc_upstream: GrpcUpstream, reason: str) -> None:
    grpc_upstream.answer = never
    with h2(served, own_site) as client:
        waiting, uploading = client.call(), client.open()
        client.send(DataFrame(uploading, message(b"0123456789")[:7]))
        grpc_upstream.wait(2)
        with within():
            LOSSES[reason](own_site, served)
            assert client.status(waiting) == PERMISSION_DENIED
            assert client.ended()
    assert served.audited(grpc_status=PERMISSION_DENIED)["reason"] == reason


def test_a_token_that_runs_out(own_site: Site, served: Gateway, grpc_upstream: GrpcUpstream) -> None:
    """Its call ends; the connection is the certificate's, and stays."""
    grpc_upstream.answer = never
    token = mint(KEY, {"access": "m", "exp": int(time.time()) - 27})
    with h2(served, own_site) as client:
        stream = client.call(b"", fields(SEARCH, ("api-key", token)))
        grpc_upstream.wait()
        assert client.status(stream) == PERMISSION_DENIED
        client.lives()
    assert served.audited(grpc_status=PERMISSION_DENIED)["reason"] == "token_expired"


def test_a_key_that_is_taken_back(own_site: Site, served: Gateway, grpc_upstream: GrpcUpstream) -> None:
    grpc_upstream.answer = never
    with h2(served, own_site) as client:
        stream = client.call(b"", fields(SEARCH, ("api-key", KEY)))
        grpc_upstream.wait()
        with within():
            own_site.edit_config(served.config, service={"api_key": "another key that is long enough"})
            assert client.status(stream) == PERMISSION_DENIED
            client.lives()
    assert served.audited(grpc_status=PERMISSION_DENIED)["reason"] == "invalid_key"


def test_a_connection_grows_too_old(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    """It is told so politely, and ends with what it is doing."""
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, limits={"max_connection_age": 0.5})
    with Gateway(config) as gateway, connected(gateway, own_site.client()) as idle, h2(gateway, own_site) as calls:
        assert calls.status(calls.call()) == 0
        with within():
            assert idle.ended()
            assert calls.goaway() == 0
            assert calls.ended()
        with Caller(gateway, own_site.client()) as again:
            assert again.ask().status == 200
