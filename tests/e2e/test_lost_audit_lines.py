"""Audit lines of a process that ends are written by it at the last moment, or told by number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.gateway import DEADLINE, Gateway
from support.raw_connection import GET
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import at_each, workers

NEVER = 3600.0
"""Seconds between two flushes: what is written earlier was written for another reason."""


def ended(gateway: Gateway, number: int) -> None:
    gateway.log.wait(lambda line: f"worker {number} has ended" in line)


def asked(gateway: Gateway, site: Site, count: int) -> None:
    """So many requests of each of two workers are answered."""
    with ExitStack() as stack:
        for _, client in at_each(gateway, site, stack).values():
            for _ in range(count):
                client.send(GET)
                assert client.response().status == 200


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_worker_that_is_told_of_its_end_writes_down_what_it_has_and_of_another_the_number_is_told(
    site: Site, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    config = site.write_config(upstream.url, workers=2, audit={"flush_interval": NEVER})
    with Gateway(config) as gateway:
        asked(gateway, site, 20)
        os.kill(workers(gateway)[1]["pid"], number)
        ended(gateway, 1)
        metrics = gateway.ask_admin("/metrics")[1]
        records = gateway.stop()
    due = sum(request.line.startswith("GET /collections ") for request in upstream.requests)  # health checks have none
    lost = due - sum("request_id" in one for one in records)
    told = [(one["result"], one["reason"], one["lost"]) for one in records if one.get("event") == "audit"]
    if number is signal.SIGABRT:
        assert (lost, told) == (0, [])
    else:
        assert lost >= 20
        assert told == [("failed", "worker_ended", lost)]
    assert f"tlsproxy_audit_dropped_total {float(lost)}" in metrics


BUSY = """
import asyncio, signal, sys
from tlsproxy.config.model import AuditConfig
from tlsproxy.service.abort import write_out_and_end
from tlsproxy.audit.log import AuditLog
from tlsproxy.service.runtime import loop_factory

log = AuditLog(AuditConfig.model_validate({"dir": sys.argv[1], "flush_interval": 3600}))
log.start()
write_out_and_end(log)

def busy():
    for number in range(1000):
        log.write(f"{number}\\n")
    print("busy", flush=True)
    while True:
        pass

async def main():
    asyncio.get_running_loop().call_soon(busy)
    await asyncio.sleep(60)

with asyncio.Runner(loop_factory=loop_factory) as runner:
    runner.run(main())
"""


def test_even_while_its_loop_is_busy_in_one_callback(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGABRT)
        assert process.wait(DEADLINE) == 128 + signal.SIGABRT
    (file,) = tmp_path.iterdir()
    assert file.read_text().split() == [str(number) for number in range(1000)]
