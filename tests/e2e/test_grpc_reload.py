"""What changes while gRPC clients are connected counts from their next call on, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from support.gateway import Gateway
from support.grpc_channels import Answered, call, channel
from support.grpc_traffic import LIST
from support.grpc_upstream import GrpcUpstream, never
from support.site import CLIENTS, CONFIG, Site
from support.upstream import ScriptedUpstream

from tlsproxy.tls.pki import Authority

CREATE = "/qdrant.Collections/Create"
OK = Answered(grpc.StatusCode.OK)


def denied(text: str) -> Answered:
    return Answered(grpc.StatusCode.PERMISSION_DENIED, f"Forbidden: {text}")


@pytest.fixture
def config(own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream) -> Path:
    return own_site.write_config(upstream.url, grpc=grpc_upstream.url)


@pytest.fixture
def gateway(config: Path) -> Iterator[Gateway]:
    with Gateway(config) as running:
        yield running


def test_a_role_that_was_narrowed(own_site: Site, config: Path, gateway: Gateway, grpc_upstream: GrpcUpstream) -> None:
    with channel(gateway, own_site) as admin, channel(gateway, own_site, "ingest") as other:
        assert call(admin, CREATE) == call(other, LIST) == OK
        own_site.edit_config(config, roles={"admin": {"access": "r"}})
        gateway.reloaded()
        assert call(admin, CREATE) == denied("Global manage access is required")
        assert gateway.audited(grpc_status=7)["reason"] == "needs_manage"
        assert call(admin, LIST) == call(other, LIST) == OK
    assert [one.method for one in grpc_upstream.calls] == [CREATE, LIST, LIST, LIST]


def test_a_rule_that_was_removed_and_one_that_was_added(own_site: Site, config: Path, gateway: Gateway) -> None:
    with channel(gateway, own_site) as admin, channel(gateway, own_site, "stranger") as stranger:
        assert call(admin, LIST) == OK
        assert call(stranger, LIST).code is grpc.StatusCode.PERMISSION_DENIED
        rule = {"name": "nobodies", "match": {"cn": "nobody"}, "role": "search"}
        own_site.edit_config(config, identities=[*CONFIG["identities"][1:], rule])
        gateway.reloaded()
        assert call(admin, LIST).text.startswith('Forbidden: no role for certificate "CN=alice,OU=platform"')
        assert call(stranger, LIST) == OK


def test_a_change_that_the_upstream_has_whole_may_still_be_answered(
    own_site: Site, config: Path, gateway: Gateway, grpc_upstream: GrpcUpstream
) -> None:
    """For `limits.expel_after`: what it has begun to do cannot be taken back."""
    grpc_upstream.answer = never
    with channel(gateway, own_site) as admin:
        waiting = admin.unary_unary(CREATE).future(b"")
        (begun,) = grpc_upstream.wait()
        own_site.edit_config(config, roles={"admin": {"access": "r"}})
        gateway.reloaded()
        assert call(admin, CREATE).code is grpc.StatusCode.PERMISSION_DENIED
        assert not begun.ended.is_set()
        assert waiting.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_certificate_that_was_revoked(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    lost = own_site.issue("lost", client=True, **CLIENTS["admin"])
    own_site.write("ca.crl", own_site.authority.crl_pem())
    config = own_site.write_config(upstream.url, grpc=grpc_upstream.url, tls={"crl": ["ca.crl"]})
    with Gateway(config) as gateway, channel(gateway, own_site) as other, channel(gateway, own_site, "lost") as library:
        assert call(other, LIST) == call(library, LIST) == OK
        own_site.write("ca.crl", own_site.authority.crl_pem([lost], number=2))
        gateway.reloaded()
        refused_from_here_on(library, "the client certificate, or one above it, was revoked")
        assert gateway.audited(event="handshake")["reason"] == "certificate_revoked"
        assert call(other, LIST) == OK
    assert len(grpc_upstream.calls) == 3


def refused_from_here_on(library: grpc.Channel, text: str) -> None:
    """The connection ends in the same moment: the next call is refused on it, or finds none, and gets no other."""
    answered = call(library, LIST)
    if answered.code is not grpc.StatusCode.UNAVAILABLE:
        assert answered == denied(text)
    assert call(library, LIST).code is grpc.StatusCode.UNAVAILABLE, "it is not let in again"


def test_an_authority_that_was_removed(own_site: Site, gateway: Gateway) -> None:
    with channel(gateway, own_site) as admin:
        assert call(admin, LIST) == OK
        own_site.replace("ca.pem", Authority.create().certificate_pem)
        gateway.reloaded()
        refused_from_here_on(admin, "the client certificate's issuer is not trusted any more")
        assert gateway.audited(event="handshake")["reason"] == "unknown_ca"


def test_a_mistake_leaves_everything_as_it_was(own_site: Site, config: Path, gateway: Gateway) -> None:
    with channel(gateway, own_site) as admin:
        own_site.edit_config(config, rolls={})
        gateway.reloaded("failed")
        assert call(admin, LIST) == OK
