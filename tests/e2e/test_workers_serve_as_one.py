"""`workers: 2`: two processes behind the same ports, told of, counted, audited and cut as one service."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_traffic import LIST
from support.grpc_upstream import GrpcUpstream
from support.kept_connection import Caller
from support.raw_connection import GET
from support.site import Site
from support.upstream import ScriptedUpstream
from support.workers import at_each, status, worker_of


@pytest.fixture(scope="module")
def calls() -> Iterator[GrpcUpstream]:
    with GrpcUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def served(site: Site, shared_upstream: ScriptedUpstream, calls: GrpcUpstream) -> Iterator[Gateway]:
    with Gateway(site.write_config(shared_upstream.url, grpc=calls.url, workers=2)) as running:
        yield running


def metrics(gateway: Gateway) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Raises where a series is there twice."""
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(gateway.ask_admin("/metrics")[1]):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return samples


def test_rest_and_grpc_are_served_and_connections_spread(site: Site, served: Gateway) -> None:
    context = site.client()
    with ExitStack() as stack:
        callers = [stack.enter_context(Caller(served, context)) for _ in range(40)]
        assert {caller.ask().status for caller in callers} == {200}
        live = status(served)["connections"]["live"]
        spread = Counter(worker_of(entry, 2) for entry in live if entry["requests"])
        # How evenly depends on what else the machine does; that none has nearly all does not.
        assert sum(spread.values()) == 40
        assert min(spread[1], spread[2]) >= 4, spread
    with channel(served, site) as opened:
        assert call(opened, LIST).code is grpc.StatusCode.OK


def test_the_status_is_that_of_one_service(site: Site, served: Gateway, shared_upstream: ScriptedUpstream) -> None:
    with Gateway(site.write_config(shared_upstream.url)) as single:
        alone = status(single)
    together = status(served)
    assert together.keys() - alone.keys() == {"workers"}
    for section in ("connections", "upstream", "audit", "generation"):
        assert alone[section].keys() - {"grpc"} == together[section].keys() - {"grpc"}
    assert [worker["number"] for worker in together["workers"]] == [1, 2]
    assert {worker["generation"] for worker in together["workers"]} == {1}
    assert len({worker["pid"] for worker in together["workers"]} | {served.process.pid}) == 3
    code, body = served.ask_admin("/readyz")
    assert (code, json.loads(body)["parts"]["listeners"]) == (200, "ok")


def test_a_connection_is_cut_by_its_number_wherever_it_is(site: Site, served: Gateway) -> None:
    with ExitStack() as stack:
        for number, client in at_each(served, site, stack).values():
            assert served.ask_admin(f"/connections/{number}/cut", "POST")[0] == 200
            assert client.ended()
            assert served.audited(event="connection")["reason"] == "cut_by_operator"
        assert served.ask_admin("/connections/999999/cut", "POST")[0] == 404


def test_metrics_are_sums_and_of_each_process_what_cannot_be_summed(site: Site, served: Gateway) -> None:
    count = ("tlsproxy_requests_total", (("operation", "collection_exists"), ("outcome", "allowed"), ("role", "admin")))
    with ExitStack() as stack:
        for _, client in at_each(served, site, stack).values():
            client.send(b"GET /collections/docs/exists HTTP/1.1\r\nhost: h\r\n\r\n")
            assert client.response().status == 200
        told = metrics(served)
    assert told[count] == 2
    assert told["tlsproxy_workers", ()] == 2
    assert told["tlsproxy_generation", ()] == 1
    assert {value for (name, _), value in told.items() if name == "tlsproxy_build_info"} == {1}
    processes = {labels for name, labels in told if name == "process_resident_memory_bytes"}
    assert processes == {(("process", name),) for name in ("supervisor", "worker 1", "worker 2")}


def test_every_request_has_one_whole_line_however_long_lines_are(site: Site, shared_upstream: ScriptedUpstream) -> None:
    """Both write to one pipe, which takes 4 KiB at once, and some lines have more."""
    with Gateway(site.write_config(shared_upstream.url, workers=2)) as gateway:

        def ask(client: int) -> None:
            with Caller(gateway, site.client()) as caller:
                for request in range(12):
                    length = 9000 if request % 3 == 0 else 10
                    assert caller.ask(f"/none/{client}-{request}/{chr(120) * length}").status == 404

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(12)))
        records = gateway.stop()
    assert Counter(record.get("status") for record in records)[404] == 144
    assert sum(len(json.dumps(record)) > 2 * 4096 for record in records) == 48
    assert [record["event"] for record in records if "event" in record] == ["start", "stop"]


def test_all_write_the_same_files_and_any_reads_them(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, workers=2, audit={"dir": "audit", "flush_interval": 0.002})
    with Gateway(config) as gateway:
        with ExitStack() as stack:
            clients = at_each(gateway, own_site, stack)
            for _, client in clients.values():
                client.send(GET, GET)
                assert [client.response().status, client.response().status] == [200, 200]
            query = json.dumps({"filters": {"method": "list_collections"}}).encode()
            for _, client in clients.values():
                assert len(_found(client, query, at_least=4)) == 4
        gateway.stop()
    (path,) = Path(own_site.directory / "audit").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert Counter(line.get("method") for line in lines)["list_collections"] == 4
    assert [line["event"] for line in lines if "event" in line] == ["start", "stop"]


def _found(client: Any, query: bytes, at_least: int) -> list[Any]:
    """Asks until so many are written."""
    while True:
        client.send(b"POST /audit/logs HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n")
        client.send(b"content-length: %d\r\n\r\n" % len(query), query)
        found = list(json.loads(client.response().body)["result"]["entries"])
        if len(found) >= at_least:
            return found


def test_limits_hold_for_all_together(site: Site, shared_upstream: ScriptedUpstream) -> None:
    limits = {"per_identity": {"requests_per_second": 0.01, "burst": 4}}
    config = site.write_config(shared_upstream.url, workers=2, limits=limits)
    with Gateway(config) as gateway, ExitStack() as stack:
        statuses: list[int] = []
        for _, client in at_each(gateway, site, stack).values():
            for _ in range(3):
                client.send(GET)
                statuses.append(client.response().status)
    assert statuses == [200, 200, 200, 200, 429, 429]
