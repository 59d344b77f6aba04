"""Jumps of the wall clock: one that is taken back ends nothing, and one that stays ends only what has run out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from support.gateway import Gateway
from support.gateway_clock import WallClock
from support.grpc_upstream import GrpcUpstream, never
from support.h2_raw_client import SEARCH, fields, h2
from support.raw_connection import GET, RawClient
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import at_each, status

from tlsproxy.authz.tokens import mint

KEY = "a key that is long enough to sign with"
HOUR, DAY = 3600.0, 86400.0


@contextmanager
def running(
    site: Site, upstream: ScriptedUpstream, grpc: GrpcUpstream, workers: int
) -> Iterator[tuple[Gateway, WallClock]]:
    wall = WallClock(site.directory)
    config = site.write_config(
        upstream.url,
        grpc=grpc.url,
        workers=workers,
        service={"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True},
        limits={"max_connection_age": HOUR},
        listeners=[{"port": 0, "mode": "tcp", "upstream": upstream.url.removeprefix("http://"), "allow": ["admin"]}],
    )
    with Gateway(config, **wall.environ) as gateway:
        yield gateway, wall


def jumps(gateway: Gateway) -> tuple[int, float, float]:
    """How often the status and the metrics say that it jumped, and how far the last one went."""
    told = status(gateway)["clock"]
    lines = gateway.ask_admin("/metrics")[1].splitlines()
    counted = sum(float(line.split()[-1]) for line in lines if line.startswith("tlsproxy_clock_jumps_total"))
    return told["jumps"], counted, round(told["last_jump"]["seconds"])


@pytest.mark.parametrize(
    ("workers", "last", "reason"),
    [(1, -400 * DAY, "certificate_not_yet_valid"), (2, 400 * DAY, "certificate_expired")],
    ids=["back", "forward, two workers"],
)
def test_it_jumps(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream, workers: int, last: float, reason: str
) -> None:
    grpc_upstream.answer = never
    with running(own_site, upstream, grpc_upstream, workers) as (gateway, wall), ExitStack() as stack:
        kept = [client for _, client in at_each(gateway, own_site, stack, workers).values()]
        calls = stack.enter_context(h2(gateway, own_site))
        token = ("api-key", mint(KEY, {"access": "m", "exp": int(time.time() + HOUR)}))
        search = calls.call(b"", fields(SEARCH, token))
        sock = stack.enter_context(gateway.connect(own_site.client(), port=gateway.ports["TCP"][0]))
        tunnel = RawClient(sock)
        assert served(tunnel)
        grpc_upstream.wait()

        wall.ahead = last  # for the blink of an eye: no certificate seems to be valid
        assert served(*kept)
        wall.ahead = 0.0
        assert served(*kept)

        wall.ahead = 2 * HOUR  # for good: nothing of it is too old, but for the token
        gateway.log.wait(lambda line: "forward by 7200.0 s" in line)
        assert calls.status(search) == 7
        assert gateway.audited(grpc_status=7)["reason"] == "token_expired"
        calls.lives()
        assert served(*kept)
        assert all(one["age"] < HOUR for one in status(gateway)["connections"]["live"])
        assert jumps(gateway)[2] == 2 * HOUR
        assert served(tunnel)

        wall.ahead = last
        assert all(client.ended() for client in kept)
        assert calls.ended()
        assert tunnel.ended()
        assert gateway.audited(event="connection")["reason"] == reason
        told, counted, _ = jumps(gateway)
    assert told == counted == len([line for line in gateway.log.seen if "the wall clock has jumped" in line])


def digest(site: Site) -> str:
    """SHA-256 of the server's certificate, as it stands in its file."""
    return x509.load_pem_x509_certificate((site.directory / "server.pem").read_bytes()).fingerprint(SHA256()).hex()


def served(*clients: RawClient) -> bool:
    for client in clients:
        client.send(GET)
    return all(client.response().status == 200 for client in clients)


def test_a_file_that_came_while_it_was_wrong(own_site: Site, upstream: ScriptedUpstream) -> None:
    """It is judged anew once the clock has been set right, though nobody touches it."""
    wall = WallClock(own_site.directory)
    with Gateway(own_site.write_config(upstream.url), **wall.environ) as gateway:
        wall.ahead = 400 * DAY
        gateway.log.wait(lambda line: "dates are judged by the wall clock as it is now" in line)
        own_site.issue("server", common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True)
        while "expired" not in gateway.reloaded("failed")["error"]:  # of its halves, perhaps, before that
            pass
        wall.ahead = 0.0
        assert gateway.reloaded()["new_certificate_sha256"] == digest(own_site)
