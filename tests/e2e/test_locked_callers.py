"""`tlsproxy lock`: a caller is refused and cut off within two seconds, by a file, until it is unlocked or over."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from support.gateway import Gateway
from support.grpc_upstream import GrpcUpstream, never
from support.h2_raw_client import SEARCH, fields, h2
from support.kept_connection import Caller
from support.operator_tools import operator
from support.raw_connection import connected
from support.site import Site
from support.sockets import serving
from support.token_issuer import key_set
from support.upstream import ScriptedUpstream
from support.workers import at_each

from tlsproxy.authz.tokens import mint
from tlsproxy.cli import main
from tlsproxy.config.locks import lock_path

KEY = "a key that is long enough to sign with"
ALICE = "CN=alice,OU=platform"
PERMISSION_DENIED = 7
SOON = 2.5


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


@pytest.fixture(scope="module")
def served(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[tuple[Gateway, GrpcUpstream]]:
    """One gateway for the file. It polls its other files once in a minute."""
    (site.directory / "login.json").write_bytes(key_set(k1=ec.generate_private_key(ec.SECP256R1())))
    login = {"name": "login", "issuer": "https://login.example", "audience": "qdrant", "algorithm": "ES256"}
    with GrpcUpstream() as grpc, serving(echo) as echoing:
        config = site.write_config(
            shared_upstream.url,
            grpc=grpc.url,
            tls={"poll_interval": 60},
            service={"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True},
            listeners=[{"port": 0, "mode": "tcp", "upstream": echoing, "allow": ["admin"]}],
            limits={"mass_cut": {"number": 1}},
            jwt_issuers=[login | {"jwks": "login.json"}],
        )
        with Gateway(config) as running:
            yield running, grpc


@pytest.fixture
def gateway(served: tuple[Gateway, GrpcUpstream]) -> Iterator[Gateway]:
    yield served[0]
    if status(served[0])["entries"] or status(served[0])["error"]:
        assert tell(served[0], "unlock", "--all")[0] == 0


def tell(gateway: Gateway, *words: str) -> tuple[int, str, str]:
    return operator(gateway, *words, "--config", str(gateway.config))


def alone(config: Path, *words: str, **environ: str) -> tuple[int, str, str]:
    """The command where no gateway answers."""
    done = CliRunner().invoke(main, [*words, "--config", str(config)], env=environ)
    return done.exit_code, done.stdout, done.stderr


def status(gateway: Gateway) -> dict[str, Any]:
    return dict(json.loads(gateway.ask_admin("/status")[1])["locks"])


def test_every_live_connection(served: tuple[Gateway, GrpcUpstream], gateway: Gateway, site: Site) -> None:
    """REST, a gRPC call under way and a tunnel; nobody else notices. Then everything is as before."""
    served[1].answer = never
    with (
        connected(gateway, site.client()) as rest,
        h2(gateway, site) as calls,
        gateway.connect(site.client(), port=gateway.ports["TCP"][0]) as tunnel,
        Caller(gateway, site.client("search")) as other,
    ):
        waiting = calls.call()
        served[1].wait()
        tunnel.sendall(b"x")
        assert (tunnel.recv(1), other.ask().status) == (b"x", 200)
        began = time.monotonic()
        code, said, _ = tell(gateway, "lock", "CN=alice", "--for", "1h", "--reason", "laptop stolen")
        assert rest.ended()
        assert calls.status(waiting) == PERMISSION_DENIED
        assert calls.ended()
        assert tunnel.recv(1) == b""
        assert time.monotonic() - began < SOON
        assert (code, "in force: 3 connections cut" in said, "60 minutes left" in said) == (0, True, True)
        assert other.ask().status == 200
    record = gateway.audited(event="lock")
    assert record["lock"] == "subject CN=alice"
    assert (record["reason"], record["text"], record["connections"]) == ("operator", "laptop stolen", 3)
    assert record["by"]
    assert record["until"].endswith("Z")
    assert gateway.audited(event="connection", reason="locked")["certificate_subject"] == ALICE
    assert 'tlsproxy_locks{kind="subject"} 1.0' in gateway.ask_admin("/metrics")[1]
    with gateway.connect(site.client(), port=gateway.ports["TCP"][0]) as tunnel:
        assert tunnel.recv(1) == b""
    with Caller(gateway, site.client()) as again:
        refused = again.ask()
        assert (refused.status, "laptop" in refused.body) == (403, False)
        assert gateway.audited(method="list_collections", certificate_subject=ALICE)["reason"] == "locked"
        assert tell(gateway, "unlock", "alice", "--reason", "found")[0] == 0
        assert again.ask().status == 200, "the same connection"
    record = gateway.audited(event="unlock")
    assert (record["reason"], record["text"], bool(record["by"])) == ("operator", "found", True)


def test_it_ends_at_its_moment(gateway: Gateway, site: Site) -> None:
    with Caller(gateway, site.client()) as caller:
        assert tell(gateway, "lock", "alice", "--for", "2s")[0] == 0
    with Caller(gateway, site.client()) as caller:
        assert caller.ask().status == 403
        assert gateway.audited(event="unlock", reason="expired")["lock"] == "subject alice"
        assert caller.ask().status == 200
        assert status(gateway)["entries"] == []


@pytest.mark.parametrize(
    "lock", [("--key", "api_key"), ("--jti", "t-1"), ("carol",), ("user-7",)], ids=["key", "jti", "subject", "sub"]
)
def test_tokens(served: tuple[Gateway, GrpcUpstream], gateway: Gateway, site: Site, lock: tuple[str, ...]) -> None:
    """Also one that was remembered as allowed, and one in a call under way. Its connection is another's, and stays."""
    token = mint(KEY, {"access": "m", "sub": "user-7", "subject": "carol", "jti": "t-1"})
    served[1].answer = never
    with Caller(gateway, site.client()) as caller, h2(gateway, site) as calls:
        assert caller.ask(api_key=token).status == 200
        waiting = calls.call(b"", fields(SEARCH, ("api-key", token)))
        served[1].wait()
        assert tell(gateway, "lock", *lock)[0] == 0
        assert calls.status(waiting) == PERMISSION_DENIED
        calls.lives()
        answer = caller.ask(api_key=token)
        assert (answer.status, "locked" in answer.body) == (403, True)
        assert caller.ask().status == 200
        if lock == ("--key", "api_key"):
            assert caller.ask(api_key=KEY).status == 403
        if lock == ("--jti", "t-1"):
            (secret := site.directory / "token").write_text(token)
            certificate = str(site.directory / "admin.pem")
            code, said, _ = alone(gateway.config, "explain", certificate, "GET", "/", "--token", str(secret))
            assert (code, "locked     jti t-1, by " in said) == (0, True), said
        assert tell(gateway, "unlock", *lock)[0] == 0
        assert caller.ask(api_key=token).status == 200


def test_a_file_that_is_broken_gone_or_lost_an_entry_lifts_nothing(gateway: Gateway, site: Site) -> None:
    path = lock_path(gateway.config)
    assert tell(gateway, "lock", "--sha256", fingerprint(site))[0] == 0
    for harm in (lambda: path.write_text("{"), path.unlink, lambda: path.write_text('{"locks": []}')):
        harm()
        line = gateway.reloaded("failed", reason="locks")
        assert str(path) in line["error"]
        with Caller(gateway, site.client()) as caller:
            assert caller.ask().status == 403
    code, _, said = tell(gateway, "lock", "bob")
    assert (code, status(gateway)["error"] != "") == (0, True), said
    assert len(status(gateway)["entries"]) == 2
    assert tell(gateway, "unlock", "--sha256", fingerprint(site))[0] == 0
    with Caller(gateway, site.client()) as caller:
        assert caller.ask().status == 200
    path.write_text("{")
    assert gateway.reloaded("failed", reason="locks")
    assert tell(gateway, "lock", "carol")[0] == 2, "what it holds is unknown"


def fingerprint(site: Site, name: str = "admin") -> str:
    return x509.load_pem_x509_certificate((site.directory / f"{name}.pem").read_bytes()).fingerprint(SHA256()).hex(":")


def test_nobody_of_that_name(gateway: Gateway, site: Site) -> None:
    with Caller(gateway, site.client()) as caller:
        assert caller.ask().status == 200
        code, _, said = tell(gateway, "lock", "CN=alicia")
        assert (code, f"connected are: {ALICE}" in said, "if it is of tokens" in said) == (0, True, True)
        code, _, said = tell(gateway, "lock", "--key", "nightly")
        assert (code, "keys and token issuers: api_key, login" in said) == (0, True)
        assert "warning" not in tell(gateway, "lock", "--key", "login")[2], "an issuer, whose tokens are refused now"


def test_a_broken_configuration_and_no_admin_server(gateway: Gateway, site: Site) -> None:
    good = gateway.config.read_bytes()
    gateway.config.write_bytes(b"tls: [")
    try:
        code, said, err = alone(gateway.config, "lock", "--serial", f"0x{site.serial('admin'):X}", "--for", "1h")
        assert (code, "locked: serial" in said, "within two seconds" in err) == (0, True, True)
        gateway.audited(event="lock", lock=f"serial 0x{site.serial('admin'):X}")
        with Caller(gateway, site.client()) as caller:
            assert caller.ask().status == 403
        code, said, _ = alone(gateway.config, "locks")
        assert (code, "59 minutes left" in said) == (0, True)
    finally:
        gateway.config.write_bytes(good)


def test_revoked_in_the_configuration(gateway: Gateway, site: Site) -> None:
    site.edit_config(gateway.config, revoked=[{"subject": "CN=ingest-7", "reason": "left"}])
    try:
        assert json.loads(gateway.ask_admin("/reload", "POST")[1])["result"] in {"ok", "unchanged"}
        with Caller(gateway, site.client("ingest")) as caller:
            assert caller.ask().status == 403
        code, said, _ = tell(gateway, "locks")
        assert (code, "[revoked in the configuration]" in said) == (0, True)
        assert tell(gateway, "unlock", "ingest-7")[0] == 1
        code, said, _ = alone(gateway.config, "explain", str(site.directory / "ingest.pem"), "GET", "/collections")
        assert (code, "locked" in said) == (1, True)
    finally:
        site.edit_config(gateway.config, revoked=[])
        gateway.ask_admin("/reload", "POST")


def test_two_workers(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, workers=2, tls={"poll_interval": 60})
    with Gateway(config) as gateway, ExitStack() as stack:
        there = at_each(gateway, own_site, stack)
        assert tell(gateway, "lock", "alice")[0] == 0
        for _, client in there.values():
            assert client.ended()


def test_start_without_knowing_the_locks(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Whoever was locked before could enter: so there is no start, and `check` says it before."""
    config = own_site.write_config(upstream.url)
    lock_path(config).write_text('{"locks": [{"sha256": "ab"}]}')
    code, _, said = alone(config, "check")
    assert (code, "entry 1: sha256: is not a SHA-256 fingerprint" in said, "unlock --all" in said) == (2, True, True)
    assert alone(config, "unlock", "--all")[0] == 0
    assert alone(config, "lock", "alice", SUDO_USER="")[0] == 0
    assert yaml.safe_load(lock_path(config).read_text())["locks"][0]["subject"] == "alice"
    with Gateway(config) as gateway:
        assert gateway.audited(event="lock")["reason"] == "start"
