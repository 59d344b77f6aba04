"""TLSPROXY_SLOW_CALLBACK: supervisor and each worker name what holds their loops."""

from __future__ import annotations

import re

from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

NAMED = re.compile(r" WARNING tlsproxy\.service\.slow_callbacks\[(\d+)\]: \S+ \(tlsproxy/\S+:\d+\) held the loop for ")


def test_in_each_process(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, workers=2)
    with Gateway(config, TLSPROXY_SLOW_CALLBACK="0.001ms") as gateway, Caller(gateway, own_site.client()) as caller:
        assert caller.ask().status == 200
        gateway.ask_admin("/metrics")
        pids: set[str] = set()
        while len(pids) < 3:
            pids.add(NAMED.search(gateway.log.wait(lambda line: NAMED.search(line) is not None))[1])  # type: ignore[index]
        assert str(gateway.process.pid) in pids
    held = [line for line in gateway.log.seen if " held the loop " in line]
    assert all(" WARNING tlsproxy.service.slow_callbacks[" in line for line in held), "some came before the log"
