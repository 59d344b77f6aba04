"""Who fails to say who it is, again and again, is not heard for a while, and for longer each time; then it is."""

from __future__ import annotations

import ssl
import time
from contextlib import suppress

import grpc
import pytest
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.grpc_traffic import LIST
from support.grpc_upstream import GrpcUpstream
from support.limit_answers import named_key, wait_as_told
from support.raw_request import Client, alert
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint

GOOD, BAD = ("api-key", "k-one"), ("api-key", "k-wrong")
KEYS = [named_key("k-one")]
TWO = {"per_address": {"failed_authentications": 2}}


def test_handshakes_without_a_good_certificate(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, limits=TWO)
    with Gateway(config) as gateway, Client(gateway, own_site.client()) as connected:
        assert connected.ask().status == 200
        for _ in range(3):
            assert "CERTIFICATE_REQUIRED" in alert(gateway, own_site.client(None))
        with pytest.raises((OSError, EOFError)), Client(gateway, own_site.client()) as client:
            client.ask()
        assert connected.ask().status == 200, "who is connected is served"
        admitted, deadline = False, time.monotonic() + DEADLINE
        while not admitted and time.monotonic() < deadline:
            with suppress(OSError, EOFError, ssl.SSLError), Client(gateway, own_site.client()) as client:
                admitted = client.ask().status == 200
        assert admitted
        assert gateway.audited(event="handshake")["reason"] == "no_certificate"
        record = gateway.audited(event="connection", reason="too_many_failures")
        assert (record["result"], record["remote"]) == ("denied", "127.0.0.1")


def test_wrong_keys_beside_a_good_certificate_are_that_identitys(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, limits=TWO, keys=KEYS)
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client("search")) as guessing,
        Client(gateway, own_site.client("search")) as again,
        Client(gateway, own_site.client("admin")) as neighbour,
    ):
        ask = ("GET", "/collections")
        assert [client.ask(*ask, [GOOD]).status for client in (guessing, again, neighbour)] == [200] * 3
        assert [guessing.ask(*ask, [BAD]).status for _ in range(4)] == [401, 401, 401, 429]
        refused = guessing.ask(*ask, [GOOD])
        assert refused.status == 429, "whether it is good is not told meanwhile"
        assert refused.json["status"]["error"] == (
            "Rate limiting exceeded: too many failed authentications. Retry after 1s"
        )
        assert again.ask(*ask, [GOOD]).status == 429, "another connection makes no difference"
        assert guessing.ask().status == 200, "its certificate alone is as good as ever"
        assert neighbour.ask(*ask, [GOOD]).status == 200
        record = gateway.audited(status=429, key="ci")
        assert (record["result"], record["reason"]) == ("denied", "too_many_failures")
        wait_as_told(refused)
        assert guessing.ask(*ask, [GOOD]).status == 200
        assert guessing.ask(*ask, [BAD]).status == 401
        refused = guessing.ask(*ask, [BAD])
        assert (refused.status, refused.fields["retry-after"]) == (429, "2"), "and longer each time"


def test_forged_and_expired_tokens_which_qdrant_answers_with_403(own_site: Site, upstream: ScriptedUpstream) -> None:
    service = {"api_key": "k-one", "jwt_rbac": True}
    config = own_site.write_config(upstream.url, service=service, limits=TWO)
    expired = mint("k-one", {"access": "r", "exp": int(time.time()) - 60})
    with Gateway(config) as gateway, Client(gateway, own_site.client("search")) as client:
        for _ in range(3):  # what the rights do not allow is no failure to say who one is
            assert (
                client.ask("DELETE", "/collections/docs", [("api-key", mint("k-one", {"access": "m"}))]).status == 403
            )
        tokens = [mint("k-wrong", {"access": "r"}), expired, expired, mint("k-one", {"access": "r"})]
        asked = [client.ask("GET", "/collections", [("api-key", token)]).status for token in tokens]
        assert asked == [403, 403, 403, 429]


def test_nothing_at_all_without_a_certificate_is_the_addresss(own_site: Site, upstream: ScriptedUpstream) -> None:
    optional = {"verify_https_client_certificate": False}
    config = own_site.write_config(upstream.url, service=optional, limits=TWO, keys=KEYS)
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as client:
        assert [client.ask().status for _ in range(4)] == [401, 401, 401, 429]
        with pytest.raises((OSError, EOFError)), Client(gateway, own_site.client()) as other:
            other.ask()
        refused = client.ask("GET", "/collections", [GOOD])
        assert refused.status == 429
        for target in ("/healthz", "/"):
            assert client.ask("GET", target).status == 200
        wait_as_told(refused)
        assert client.ask("GET", "/collections", [GOOD]).status == 200


def test_over_grpc_too(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> None:
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, limits=TWO, keys=KEYS)
    with (
        Gateway(config) as gateway,
        channel(gateway, own_site, "search") as opened,
        Client(gateway, own_site.client("search")) as client,
    ):
        assert client.ask().status == 200
        codes = [call(opened, LIST, b"", BAD).code for _ in range(4)]
        assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 3 + [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert "too many failed authentications" in call(opened, LIST, b"", GOOD).text
        refused = client.ask("GET", "/collections", [GOOD])
        assert refused.status == 429
        assert call(opened, LIST).code is grpc.StatusCode.OK
        wait_as_told(refused)
        assert call(opened, LIST, b"", GOOD).code is grpc.StatusCode.OK
