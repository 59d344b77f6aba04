"""A worker that is stuck holds up no publication: the others serve it at once, and it never serves what was before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from support import hung_calls
from support.gateway import DEADLINE, Gateway
from support.raw_connection import GET, RawClient, Truncated
from support.raw_request import alert
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import all_serve, at_each, workers


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Those that are still there are continued in the end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def revoke(site: Site, name: str, number: int) -> None:
    site.replace("ca.crl", site.authority.crl_pem([site.serial(name)], number=number))


def answered(client: RawClient) -> bool:
    try:
        return client.response().status == 200
    except Truncated:
        return False


def test_the_others_publish_at_once_and_they_serve_nothing_more(
    own_site: Site, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """One that is stopped, and one whose loop hangs."""
    own_site.write("ca.crl", own_site.authority.crl_pem(number=1))
    config = own_site.write_config(upstream.url, workers=3, tls={"crl": ["ca.crl"]})
    with Gateway(config, **hung_calls.loops(tmp_path / "hung").environ) as gateway, ExitStack() as stack:
        clients = at_each(gateway, own_site, stack, 3)
        pids = {number: worker["pid"] for number, worker in workers(gateway).items()}
        asked = len(upstream.requests)
        os.kill(pids[3], signal.SIGUSR2)
        with stopped(pids[2]):
            clients[2][1].send(GET)
            clients[3][1].send(GET)
            revoke(own_site, "admin", 2)
            assert clients[1][1].ended()
            assert "worker 2 is stopped by a signal" in gateway.log.wait(lambda line: "left behind" in line)
            assert "worker 3 is still asked after 3 s" in gateway.log.wait(lambda line: "left behind" in line)
            assert gateway.reloaded()["generation"] == 2
            now = {number: worker["pid"] for number, worker in workers(gateway).items()}
            assert (now[1], now[2] != pids[2], now[3] != pids[3]) == (pids[1], True, True), "told once they have ended"
        assert not answered(clients[2][1])
        assert not answered(clients[3][1])
        assert len(upstream.requests) == asked
        assert all_serve(gateway) == 2
        for _ in range(8):
            assert alert(gateway, own_site.client()) == "SSLV3_ALERT_CERTIFICATE_REVOKED"


def test_all_of_them(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Nobody has built it, so nothing is published. It is tried again, and their successors have it."""
    own_site.write("ca.crl", own_site.authority.crl_pem(number=1))
    config = own_site.write_config(upstream.url, workers=2, tls={"crl": ["ca.crl"]}, limits={"drain_timeout": 120})
    with Gateway(config) as gateway, ExitStack() as stack:
        clients = at_each(gateway, own_site, stack)
        with stopped(*(worker["pid"] for worker in workers(gateway).values())):
            revoke(own_site, "admin", 2)
            failed = gateway.reloaded("failed")
        assert "no worker has lived through" in failed["error"]
        assert not any(answered(client) for _, client in clients.values())
        assert gateway.reloaded(reason="retry")["generation"] == all_serve(gateway) == 2
        for _ in range(8):
            assert alert(gateway, own_site.client()) == "SSLV3_ALERT_CERTIFICATE_REVOKED"

        with stopped(workers(gateway)[1]["pid"]):  # nor does the end wait
            gateway.process.send_signal(signal.SIGTERM)
            gateway.log.wait(lambda line: "worker 1 does not answer and is ended" in line)
            assert gateway.process.wait(DEADLINE) == 0
