from __future__ import annotations

import dataclasses
import gc
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cryptography import x509
from snapshot_site import CLIENT, OTHER, ROOT, SnapshotSite, client_context, handshake, hour, site

from tlsproxy.config.listeners import PROTOCOLS
from tlsproxy.config.problems import ConfigError
from tlsproxy.errors import MaterialError
from tlsproxy.snapshot import generation as generation_module
from tlsproxy.snapshot import name_resolution
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.lifetimes import lifetimes_of, warnings
from tlsproxy.snapshot.nodes import Node, Upstream
from tlsproxy.tls.chains import Chain
from tlsproxy.tls.peer import Peer, peer_of

if TYPE_CHECKING:
    from tlsproxy.snapshot.generation import Generation
    from tlsproxy.tls.pki import Issued


pytestmark = pytest.mark.usefixtures("hasty")


def peer_at(generation: Generation, issued: Issued, tmp_path: Path) -> Peer | None:
    return peer_of(handshake(generation.contexts["rest",], client_context(issued, tmp_path))[0])


def test_a_generation_serves_and_decides(made: SnapshotSite, tmp_path: Path) -> None:
    generation = made.build()
    assert generation.number == 1
    rest = Upstream("http://127.0.0.1:16333", b"127.0.0.1:16333", ((socket.AF_INET, ("127.0.0.1", 16333)),))
    grpc = Upstream("http://127.0.0.1:16334", b"127.0.0.1:16334", ((socket.AF_INET, ("127.0.0.1", 16334)),))
    assert generation.nodes == (Node("upstream", rest, grpc, drained=False, max_connections=None),)
    peer = peer_at(generation, CLIENT, tmp_path)
    assert generation.principal_of(peer).role == "admin"
    assert generation.verdict_of(peer, time.time()).refusal == ""


def test_a_principal_is_the_same_object_for_the_same_certificate(
    made: SnapshotSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "PRINCIPALS", 2)
    generation = made.build()
    peers = [peer_at(generation, CLIENT, tmp_path) for _ in range(2)]
    assert generation.principal_of(peers[0]) is generation.principal_of(peers[1])
    assert generation.principal_of(None) is generation.principal_of(None)
    assert generation.principal_of(None).role == ""
    for _ in range(3):
        generation.principal_of(peer_at(generation, ROOT.issue(common_name="x", client=True), tmp_path))
    assert len(generation._principals) == 2


def test_secrets_are_in_no_repr(made: SnapshotSite) -> None:
    made.configure(service={"api_key_file": "api"}, upstream={"api_key_file": "up"})
    made.write("api", b"cl13nt-k3y\n")
    made.write("up", b"upstr34m-k3y\n")
    generation = made.build()
    assert generation.upstream_api_key == "upstr34m-k3y"
    assert generation.policy.keys.find("cl13nt-k3y", None, 0.0) is not None
    assert "k3y" not in repr(generation)
    assert "PRIVATE" not in repr(generation)


def test_a_failed_build_names_the_file_and_leaves_the_old_one_serving(made: SnapshotSite, tmp_path: Path) -> None:
    first = made.build()
    made.write("server.key", CLIENT.key_pem)
    proposal = made.propose(first)
    assert proposal.generation is first
    assert [fault.text.split(": does not")[0][-10:] for fault in proposal.faults.values()] == ["server.key"]
    made.configure(service={"htpp_port": 1})
    proposal = made.propose(first)
    assert proposal.generation is first
    assert [which.kind for which in proposal.faults] == ["configuration", "certificate"]
    assert handshake(first.contexts["rest",], client_context(CLIENT, tmp_path))


def test_given_inputs_are_built_from_whatever_the_disk_says_now(made: SnapshotSite) -> None:
    inputs = read_inputs(made.config, {})
    made.write("ca.pem", b"")
    assert made.build(inputs=inputs).material.authorities


def test_the_environment_wins_as_in_qdrant(made: SnapshotSite) -> None:
    made.environ["QDRANT__SERVICE__HTTP_PORT"] = "7777"
    assert made.build().config.service.http_port == 7777


def test_an_older_crl_than_the_one_in_use_is_not_published(made: SnapshotSite) -> None:
    made.configure(tls={"crl": ["a.crl"]})
    made.write("a.crl", ROOT.crl_pem([1], number=2))
    first = made.build()
    made.write("a.crl", ROOT.crl_pem(number=1))
    with pytest.raises(MaterialError, match="older than the one in use"):
        made.build(first)
    made.configure()
    assert "there is no CRL of CN=test root any more" in made.build(first).warnings


def test_a_crl_without_a_ca_is_refused(made: SnapshotSite) -> None:
    made.configure(tls={"crl": ["a.crl"], "ca_cert": None}, service={"verify_https_client_certificate": False})
    made.write("a.crl", ROOT.crl_pem())
    with pytest.raises(ConfigError):
        made.build()


def test_clients_of_an_older_generation_answer_to_the_present(made: SnapshotSite, tmp_path: Path) -> None:
    middle = ROOT.intermediate("middle")
    alice = ROOT.issue(common_name="alice", client=True)
    bob = middle.issue(common_name="bob", client=True, lifetime=hour(1))
    first = made.build()
    peers = {name: peer_at(first, issued, tmp_path) for name, issued in (("alice", alice), ("bob", bob))}
    now = time.time()

    def refusals(generation: Generation, at: float = now) -> list[str]:
        return [generation.verdict_of(peers[name], at).refusal for name in ("alice", "bob")]

    assert refusals(first) == ["", ""]
    assert refusals(first, now + 2 * 3600) == ["", "certificate_expired"]
    made.configure(tls={"crl": ["a.crl"], "crl_policy": "where_present"})
    made.write("a.crl", ROOT.crl_pem([alice.serial]))
    assert refusals(made.build(first)) == ["certificate_revoked", ""]
    middle_serial = x509.load_pem_x509_certificate(middle.certificate_pem).serial_number
    made.write("a.crl", ROOT.crl_pem([middle_serial], number=2))
    assert refusals(made.build(first)) == ["", "certificate_revoked"]
    made.configure()
    made.write("ca.pem", OTHER.certificate_pem)
    assert refusals(made.build(first)) == ["issuer_not_trusted", "issuer_not_trusted"]
    made.write("ca.pem", OTHER.certificate_pem + middle.certificate_pem)
    assert refusals(made.build(first)) == ["issuer_not_trusted", ""]


def test_an_expired_ca_trusts_nobody_any_more(made: SnapshotSite, tmp_path: Path) -> None:
    generation = made.build()
    peer = peer_at(generation, ROOT.issue(common_name="x", client=True, lifetime=hour(24 * 5000)), tmp_path)
    assert (
        generation.verdict_of(peer, generation.material.authorities[0].not_after + 1).refusal == "certificate_expired"
    )


def test_a_chain_that_is_nothing_but_a_ca_has_no_issuer(made: SnapshotSite, tmp_path: Path) -> None:
    generation = made.build()
    peer = peer_at(generation, CLIENT, tmp_path)
    alone = dataclasses.replace(peer, chain=Chain(peer.chain.issuers))
    assert generation.verdict_of(alone, time.time()).refusal == "issuer_not_trusted"


def test_what_needs_a_restart_is_named_until_it_has_happened(made: SnapshotSite) -> None:
    first = made.build()
    assert first.restart_needed == ()
    made.configure(service={"http_port": 7000}, audit={"queue_size": 5})
    second = made.build(first)
    assert second.restart_needed == ("service.http_port", "audit.queue_size")
    made.configure(service={"http_port": 7000}, limits={"connections": 5})
    third = made.build(second)
    assert third.restart_needed == ("service.http_port",)
    made.configure()
    assert made.build(third).restart_needed == ()


def test_each_set_of_protocols_has_a_context_as_long_as_it_is_bound(made: SnapshotSite, tmp_path: Path) -> None:
    both = {"port": 0, "protocols": ["grpc", "rest"]}
    made.configure()
    with made.config.open("a") as file:
        yaml.safe_dump({"listeners": [both]}, file)
    first = made.build()
    made.configure(service={"grpc_port": None})
    second = made.build(first)
    assert second.restart_needed == ("service.grpc_port", "listeners")
    for generation in (first, second):
        assert generation.protocols == ("rest", "grpc")
        chosen = {}
        for protocols, context in generation.contexts.items():
            client = client_context(CLIENT, tmp_path)
            client.set_alpn_protocols(["http/1.1", "h2"])
            chosen[protocols] = handshake(context, client)[0].selected_alpn_protocol()
        assert chosen == {("rest",): "http/1.1", ("grpc",): "h2", ("rest", "grpc"): "http/1.1"}
    alone = made.build()
    assert alone.contexts.keys() == {("rest",)}
    assert alone.protocols == ("rest",)


def test_upstream_names_are_resolved_and_a_resolver_that_is_down_changes_nothing(
    made: SnapshotSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.configure(upstream={"rest": "http://[::1]:16333", "grpc": "http://[::1]:16334"})
    assert made.build().nodes[0].rest.addresses == ((socket.AF_INET6, ("::1", 16333, 0, 0)),)
    made.configure(upstream={"rest": "http://localhost:16333", "grpc": "http://localhost:16334"})
    first = made.build()
    assert (socket.AF_INET, ("127.0.0.1", 16333)) in first.nodes[0].rest.addresses
    assert (socket.AF_INET, ("127.0.0.1", 16334)) in first.nodes[0].api("grpc").addresses

    def down(*_args: object, **_more: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(name_resolution.socket, "getaddrinfo", down)
    proposal = made.propose(first)
    assert proposal.generation is first
    assert {which.name: fault.kept for which, fault in proposal.faults.items()} == {
        "upstream.rest": True,
        "upstream.grpc": True,
    }
    made.configure(upstream={"rest": "http://localhost:16333", "grpc": "http://elsewhere:16334"})
    proposal = made.propose(first)
    second = proposal.generation
    assert second is not None
    assert [second.nodes[0].api(name).addresses for name in PROTOCOLS] == [first.nodes[0].rest.addresses, ()]
    assert "upstream.grpc: elsewhere cannot be resolved" in str(proposal.faults)


def test_warnings_of_all_sources_are_gathered(made: SnapshotSite) -> None:
    (made.directory / "server.key").chmod(0o644)
    made.serve(ROOT.issue(dns=["x"], server=True, lifetime=hour(2), not_before=datetime.now(UTC) - hour(1)))
    (made.directory / "server.key").chmod(0o644)
    assert "is valid only until" not in "\n".join(warnings(lifetimes_of(made.build()), time.time()))
    later = "\n".join(warnings(lifetimes_of(made.build()), time.time() + 3400))
    assert "server.pem: " in later
    assert " is valid only until" in later
    assert "chmod 600" in str(made.read)


def test_a_constraint_must_name_a_ca_when_it_comes_and_keeps_none_from_going(tmp_path: Path) -> None:
    made = site(tmp_path, tls={"ca_constraints": [{"ca": "CN=other root", "dns": ["other.example"]}]})
    with pytest.raises(ConfigError, match=r"ca_constraints\[0\]\.ca: no CA of tls\.ca_cert is this one"):
        made.build()
    made.write("ca.pem", ROOT.certificate_pem + OTHER.certificate_pem)
    first = made.build()
    made.write("ca.pem", ROOT.certificate_pem)
    second = made.build(first)
    assert any("ca_constraints[0].ca" in warning for warning in second.warnings)
    assert made.build(second) is second


def test_generations_leave_no_descriptor_behind(made: SnapshotSite) -> None:
    generation = made.build()
    gc.collect()  # what earlier tests left must not go away in the middle of this one
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(6):
        made.serve(ROOT.issue(dns=["localhost"], server=True))
        generation = made.build(generation)
    assert generation.number == 7
    assert len(list(Path("/proc/self/fd").iterdir())) == before
