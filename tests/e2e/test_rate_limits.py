"""How many requests a role, an identity and a key may make: too many are a 429, and nothing of them goes upstream."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from support.gateway import Gateway
from support.grpc_channels import certificates, channel
from support.grpc_traffic import LIST
from support.grpc_upstream import GrpcUpstream
from support.limit_answers import SLOW, named_key, role, wait_as_told
from support.raw_connection import GET, connected
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEYS = [named_key("k-one"), named_key("k-two", name="cd")]
WITHOUT_CERTIFICATE = {"verify_https_client_certificate": False}


def statuses(client: Client, count: int, *fields: tuple[str, str], target: str = "/collections") -> list[int]:
    return [client.ask("GET", target, fields).status for _ in range(count)]


def test_a_role_is_one_account_for_all_its_holders(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.issue("search2", client=True, uris=["spiffe://example.org/search/api"])
    config = own_site.write_config(upstream.url, roles={"search": role(**SLOW, burst=3)})
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client("search")) as one,
        Client(gateway, own_site.client("search2")) as other,
        Client(gateway, own_site.client("admin")) as admin,
    ):
        assert statuses(one, 2) == [200, 200]
        assert statuses(other, 2) == [200, 429]
        refused = one.ask()
        assert refused.status == 429
        assert refused.json["status"]["error"].startswith('Rate limiting exceeded: role "search" has 0.01 requests')
        assert refused.json["time"] == 0.0
        assert 90 <= int(refused.fields["retry-after"]) <= 100
        assert not refused.closing
        assert statuses(admin, 5) == [200] * 5, "another role has another account"
        assert len(upstream.requests) == 8
        record = gateway.audited(status=429)
        assert (record["result"], record["reason"], record["role"]) == ("denied", "rate_limited", "search")
        assert (record["method"], record["api"]) == ("list_collections", "/collections")
        assert record["error"].startswith("Rate limiting exceeded: ")
        assert 'tlsproxy_decisions_total{reason="rate_limited"} 2.0' in gateway.ask_admin("/metrics")[1]


def test_each_identity_has_its_own_account_whichever_certificate_it_shows(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    own_site.issue("renewed", client=True, uris=["spiffe://example.org/search/web"])
    own_site.issue("search2", client=True, uris=["spiffe://example.org/search/api"])
    roles = {"admin": role("m", per_identity={}), "ingest": role("m", per_identity={**SLOW, "burst": 4})}
    config = own_site.write_config(upstream.url, roles=roles, limits={"per_identity": {**SLOW, "burst": 2}})
    with Gateway(config) as gateway:

        def asked(name: str, count: int) -> list[int]:
            with Client(gateway, own_site.client(name)) as client:
                return statuses(client, count)

        assert asked("search", 1) == [200]
        assert asked("renewed", 2) == [200, 429]
        assert asked("search2", 3) == [200, 200, 429]
        assert asked("ingest", 5) == [200, 200, 200, 200, 429], "what its role says of each counts instead"
        assert asked("admin", 5) == [200] * 5
        # Nobody asks for free: what the rights refuse counts as well.
        assert asked("stranger", 3) == [403, 403, 429]


def test_each_key_has_its_own_account_wherever_it_is_sent_from(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(
        upstream.url, service=WITHOUT_CERTIFICATE, keys=KEYS, limits={"per_key": {**SLOW, "burst": 2}}
    )
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client(None)) as anybody,
        Client(gateway, own_site.client("search")) as search,
    ):
        assert statuses(anybody, 1, ("api-key", "k-one")) == [200]
        assert statuses(search, 2, ("authorization", "Bearer k-one")) == [200, 429]
        assert statuses(anybody, 3, ("api-key", "k-two")) == [200, 200, 429]
        record = gateway.audited(status=429, key="cd")
        assert (record["auth_type"], record["reason"]) == ("ApiKey", "rate_limited")
        assert statuses(search, 3) == [200] * 3, "its certificate alone has no account"


def test_each_subject_of_a_signers_tokens_has_its_own_account(own_site: Site, upstream: ScriptedUpstream) -> None:
    service = WITHOUT_CERTIFICATE | {"api_key": "manage-k3y", "jwt_rbac": True}
    config = own_site.write_config(upstream.url, service=service, limits={"per_key": {**SLOW, "burst": 2}})

    def token(subject: str, **claims: object) -> tuple[str, str]:
        return "api-key", mint("manage-k3y", {"access": "r", "subject": subject, **claims})

    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as client:
        assert statuses(client, 1, token("alice", exp=int(time.time()) + 600)) == [200]
        assert statuses(client, 2, token("alice", exp=int(time.time()) + 900)) == [200, 429], "one account"
        assert statuses(client, 3, token("bob")) == [200, 200, 429]
        assert statuses(client, 3, ("api-key", "manage-k3y")) == [200, 200, 429]
        assert statuses(client, 1, ("api-key", "wrong")) == [401]


def test_a_request_that_is_decided_by_its_body_counts_once_whatever_is_decided(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    config = own_site.write_config(upstream.url, limits={"per_identity": {**SLOW, "burst": 3}})
    good, bad = (b'{"query": 1, "lookup_from": {"collection": "%b"}}' % name for name in (b"docs", b"other"))
    query = ("POST", "/collections/docs/points/query")
    with Gateway(config) as gateway, Client(gateway, own_site.client("ingest")) as client:
        asked = [client.ask(*query, body=body).status for body in (good, bad, good, good)]
        assert asked == [200, 403, 200, 429]
        assert len(upstream.requests) == 2


def test_the_roles_of_certificate_and_key_count_both_and_a_refusal_counts_for_neither(
    own_site: Site, upstream: ScriptedUpstream
) -> None:
    roles = {"search": role(**SLOW, burst=4), "ingest": role("r", **SLOW, burst=1)}
    config = own_site.write_config(upstream.url, roles=roles, keys=[named_key("k-one", "ingest")])
    with Gateway(config) as gateway, Client(gateway, own_site.client("search")) as client:
        assert statuses(client, 4, ("api-key", "k-one")) == [200, 429, 429, 429]
        assert statuses(client, 4) == [200, 200, 200, 429]


def test_who_waits_as_told_is_admitted(own_site: Site, upstream: ScriptedUpstream) -> None:
    rate = {"requests_per_second": 1.5, "burst": 2}
    config = own_site.write_config(upstream.url, roles={"search": role(**rate)})
    with Gateway(config) as gateway, Client(gateway, own_site.client("search")) as client:
        for _ in range(2):
            while (answer := client.ask()).status == 200:
                pass
            assert answer.fields["retry-after"] == "1"
            wait_as_told(answer)
            assert client.ask().status == 200


def test_health_and_version_are_no_account_of_the_callers(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, limits={"per_identity": SLOW})
    with Gateway(config) as gateway, Client(gateway, own_site.client()) as client:
        assert statuses(client, 2) == [200, 429]
        for target in ("/healthz", "/readyz", "/livez", "/"):
            assert statuses(client, 2, target=target) == [200, 200]


def test_a_refused_upload_keeps_its_connection_where_it_is_small(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, limits={"per_identity": SLOW})
    with Gateway(config) as gateway, Client(gateway, own_site.client()) as client:
        assert client.ask().status == 200
        for size, closing in ((60_000, False), (60_000, False), (1 << 20, True)):
            refused = client.ask("PUT", "/collections/docs/points", body=b" " * size)
            assert (refused.status, refused.closing) == (429, closing)
        assert len(upstream.requests) == 1
        assert upstream.connections == 1


def test_who_does_not_wait_is_made_to(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Requests that are sent all the same are answered, ten a second; other connections are none the worse for it."""
    config = own_site.write_config(upstream.url, limits={"per_identity": SLOW})
    with (
        Gateway(config) as gateway,
        connected(gateway, own_site.client()) as hasty,
        Client(gateway, own_site.client("search")) as other,
    ):
        begun = time.monotonic()
        hasty.send(GET * 8)
        assert [hasty.response().status for _ in range(2)] == [200, 429]
        assert other.ask().status == 200
        assert [hasty.response().status for _ in range(6)] == [429] * 6
        assert time.monotonic() - begun >= 0.6
        hasty.send(GET * 5_000)  # more than is read ahead
        assert hasty.response().status == 429
        hasty.sock.close()
        assert gateway.ask_admin("/readyz")[0] == 200


def test_limits_are_edited_while_it_runs(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url)

    def edit(limits: dict[str, Any]) -> None:
        own_site.edit_config(config, limits={"per_identity": limits})
        gateway.reloaded()

    with Gateway(config) as gateway, Client(gateway, own_site.client()) as client:
        assert statuses(client, 5) == [200] * 5
        edit({**SLOW, "burst": 3})
        assert statuses(client, 4) == [200, 200, 200, 429]
        edit({**SLOW, "burst": 5})
        assert statuses(client, 3) == [200, 200, 429], "what was used stays used"
        edit({"requests_per_second": 1000})
        while client.ask().status == 429:  # a burst at most is owed, at the new rate
            pass
        edit({})
        assert statuses(client, 3) == [200] * 3


def test_the_rate_is_one_for_rest_and_grpc(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    config = own_site.write_config(
        upstream.url, grpc=grpc_upstream.url, roles={"search": role(**SLOW, burst=4)}, keys=[named_key("k-one")]
    )
    with (
        Gateway(config) as gateway,
        Client(gateway, own_site.client("search")) as client,
        channel(gateway, own_site, "search") as opened,
    ):
        method = opened.unary_unary(LIST)
        assert method(b"", timeout=20) == b""
        assert statuses(client, 2) == [200, 200]
        assert method(b"", timeout=20) == b""
        with pytest.raises(grpc.RpcError) as caught:
            method(b"", timeout=20)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error.details().startswith('Rate limiting exceeded: role "search"')
        metadata = dict(error.trailing_metadata())
        assert 90 <= int(metadata["retry-after"]) <= 100
        record = gateway.audited(grpc_status=8)
        assert (record["result"], record["reason"], record["role"]) == ("denied", "rate_limited", "search")
        assert record["api"] == LIST
        assert statuses(client, 1) == [429]
        health = opened.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=20) == b"", "the connection goes on"
        assert len(grpc_upstream.calls) == 3


@pytest.mark.parametrize("prefer_grpc", [False, True], ids=["REST", "gRPC"])
def test_qdrants_own_client_understands(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, *, prefer_grpc: bool
) -> None:
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, limits={"per_identity": SLOW})
    with Gateway(config) as gateway, Client(gateway, own_site.client()) as client:
        assert client.ask().status == 200
        qdrant = QdrantClient(
            url=gateway.url(""),
            grpc_port=gateway.grpc_port,
            prefer_grpc=prefer_grpc,
            grpc_options=certificates(own_site),
            verify=own_site.client(),
            check_compatibility=False,
        )
        with pytest.raises(ResourceExhaustedResponse) as caught:
            qdrant.get_collections()
        qdrant.close()
        assert 90 <= caught.value.retry_after_s <= 100
        assert "each client certificate has 0.01 requests per second" in str(caught.value)


def test_one_account_is_not_two_after_a_restart_of_the_connection(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, limits={"per_identity": {**SLOW, "burst": 2}})
    with Gateway(config) as gateway:
        answers = []
        for _ in range(3):
            with Client(gateway, own_site.client()) as client:
                answers += statuses(client, 1)
        assert answers == [200, 200, 429]
