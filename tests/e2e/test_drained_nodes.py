"""`tlsproxy node NAME drain|up`: a node gets nothing new, in all workers, while requests and calls run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream
from support.load import Load
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.cli import main

SEARCH = "/qdrant.Points/Search"
CLIENTS = 1
WORKERS = 2
ELSEWHERE = "127.0.0.2"
"""Address of dead nodes: nothing else takes their ports here."""
NAMED = (("upstream", "a"), ("other", "b"))
"""Nodes, one of which has the name that a single upstream has in logs."""


class Nodes:
    """Two nodes behind a gateway of two workers."""

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.stack = stack
        self.rest = {name: stack.enter_context(ScriptedUpstream()) for name in "ab"}
        self.grpc = {name: stack.enter_context(GrpcUpstream(address=f"{ELSEWHERE}:0")) for name in "ab"}
        entries = [{"name": name, "rest": self.rest[name].url, "grpc": self.grpc[name].url} for name in "ab"]
        self.path = site.write_config(
            entries,
            upstream={"check_interval": 0.1},
            service={"grpc_port": 0},
            workers=WORKERS,
            tls={"poll_interval": 60},
        )
        self.gateway = stack.enter_context(Gateway(self.path))

    @property
    def states(self) -> dict[str, str]:
        return {row["name"]: row["state"] for row in self.status["nodes"]}

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.gateway.ask_admin("/status")[1]))

    def told(self, text: str) -> None:
        """Each worker has said so."""
        for _ in range(WORKERS):
            self.gateway.log.wait(lambda line: text in line)

    def clear(self) -> None:
        for name in "ab":
            self.rest[name].requests.clear()
            self.grpc[name].calls.clear()

    def counts(self, name: str) -> tuple[int, int]:
        return len(self.rest[name].requests), len(self.grpc[name].calls)


def command(config: Path, gateway: Gateway | None, *words: str) -> tuple[int, str, str]:
    where = [] if gateway is None else ["--admin", gateway.admin]
    done = CliRunner().invoke(main, [*words, "--config", str(config), *where])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def nodes(site: Site) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(site, stack)


def read(client: Client) -> str:
    return f"REST {client.ask('POST', '/collections/docs/points/query', (), b'{}').status}"


def called(opened: grpc.Channel) -> str:
    return f"gRPC {call(opened, SEARCH).code.name}"


def loaded(nodes: Nodes, site: Site, stack: ExitStack) -> Load:
    load = Load()
    stack.callback(load.stop)
    rest = [stack.enter_context(Client(nodes.gateway, site.client())) for _ in range(CLIENTS)]
    channels = [stack.enter_context(channel(nodes.gateway, site)) for _ in range(CLIENTS)]
    load.start([*(partial(read, one) for one in rest), *(partial(called, one) for one in channels)])
    return load


def passed(load: Load) -> None:
    for outcome in ("REST 200", "gRPC OK"):
        load.until(outcome)


def test_a_node_is_drained_and_taken_back_under_load(nodes: Nodes, site: Site) -> None:
    with ExitStack() as stack:
        load = loaded(nodes, site, stack)
        passed(load)
        code, out, err = command(nodes.path, nodes.gateway, "node", "a", "drain", "--reason", "disk")
        assert (code, out, err) == (0, "a: drained\nin force\n", "")
        passed(load)
        nodes.clear()
        passed(load)
        assert nodes.counts("a") == (0, 0)
        assert min(nodes.counts("b")) > 0
        record = nodes.gateway.audited(event="node")
        assert (record["reason"], record["node"], record["text"]) == ("drained", "a", "disk")
        code, out, _ = command(nodes.path, nodes.gateway, "nodes")
        assert code == 0
        assert [line.split(",")[0] for line in out.splitlines()] == ["a: drained", "b: up"]
        assert command(nodes.path, nodes.gateway, "node", "b", "drain")[0] == 2
        assert nodes.states == {"a": "drained", "b": "up"}
        assert command(nodes.path, nodes.gateway, "node", "a", "up")[0] == 0
        assert nodes.gateway.audited(event="node")["reason"] == "up"
        while not nodes.counts("a")[0]:
            passed(load)
        load.stop()
    assert load.seen.keys() == {"REST 200", "gRPC OK"}, "nothing failed"


def test_a_node_that_dies_and_comes_back_under_load(nodes: Nodes, site: Site) -> None:
    """Only calls that were under way there fail."""
    with ExitStack() as stack:
        load = loaded(nodes, site, stack)
        passed(load)
        nodes.grpc["b"].stop()
        nodes.told("node b fails its checks")
        assert nodes.states == {"a": "up", "b": "down"}
        passed(load)
        while (readiness := nodes.status["readiness"])["parts"]["upstream_grpc"] != "degraded: node b is down":
            pass  # as of the last probe
        assert readiness["ready"]
        metrics = nodes.gateway.ask_admin("/metrics")[1]
        assert 'tlsproxy_node_serving{node="b"} 0.0' in metrics
        assert 'tlsproxy_node_serving{node="a"} 2.0' in metrics
        nodes.grpc["b"] = nodes.stack.enter_context(GrpcUpstream(address=f"{ELSEWHERE}:{nodes.grpc['b'].port}"))
        nodes.told("node b serves again")
        assert nodes.states == {"a": "up", "b": "up"}
        passed(load)
        load.stop()
    lost = load.seen.keys() - {"REST 200", "gRPC OK"}
    assert lost <= {"gRPC UNAVAILABLE", "gRPC CANCELLED"}, "the node cancels as it stops"
    assert sum(load.seen[outcome] for outcome in lost) <= CLIENTS


def test_the_page_has_a_row_for_each_node(nodes: Nodes) -> None:
    page = nodes.gateway.ask_admin("/")[1]
    for upstream in nodes.rest.values():
        assert upstream.url in page


def test_a_node_of_its_own_name_drains_no_single_upstream(nodes: Nodes, site: Site) -> None:
    """Last: it changes the gateway."""
    named = [{"name": name, "rest": nodes.rest[one].url, "grpc": nodes.grpc[one].url} for name, one in NAMED]
    site.edit_config(nodes.path, upstream={"nodes": named})
    nodes.gateway.reloaded()
    nodes.grpc["b"].stop()
    nodes.told("node other fails its checks")
    code, _, err = command(nodes.path, nodes.gateway, "node", "upstream", "drain")
    assert (code, err) == (0, "warning: no other node serves: other is down\n")
    single = {"nodes": [], "rest": nodes.rest["a"].url, "grpc": nodes.grpc["a"].url}
    site.edit_config(nodes.path, upstream=single)
    nodes.gateway.reloaded()
    with Client(nodes.gateway, site.client()) as client, channel(nodes.gateway, site) as opened:
        assert (read(client), called(opened)) == ("REST 200", "gRPC OK")
    assert command(nodes.path, nodes.gateway, "node", "upstream", "up")[0] == 0


def test_without_a_gateway(site: Site) -> None:
    entries = [{"name": name, "rest": f"http://127.0.0.1:{port}"} for name, port in (("a", 9), ("b", 10), ("c", 11))]
    entries[2]["drain"] = True
    config = site.write_config(entries)
    assert command(config, None, "node", "a", "drain")[:2] == (0, "a: drained\n")
    assert command(config, None, "nodes")[1] == "a: drained\nb: not asked\nc: drained\n"
    assert "no other node would be left" in command(config, None, "node", "b", "drain")[2]
    assert "did you mean" in command(config, None, "node", "aa", "up")[2]
    assert "`drain: true` in the configuration" in command(config, None, "node", "c", "up")[2]
    assert command(config, None, "unlock", "--all")[0] == 0
    assert command(config, None, "nodes")[1].startswith("a: drained"), "locks are lifted, no node is taken back"
    assert command(config, None, "node", "a", "up")[:2] == (0, "a: up\n")
    assert command(config, None, "nodes")[1].startswith("a: not asked")


def test_a_drained_node_that_is_removed(site: Site) -> None:
    entries = [{"name": name, "rest": f"http://127.0.0.1:{port}"} for name, port in (("a", 9), ("b", 10))]
    config = site.write_config(entries)
    assert command(config, None, "node", "a", "drain")[0] == 0
    assert "http://127.0.0.1:9 (drained), http://127.0.0.1:10," in command(config, None, "check")[1]
    site.edit_config(config, upstream={"nodes": entries[:1]})
    assert "every node is drained (a)" in command(config, None, "check")[2]
    site.edit_config(config, upstream={"nodes": entries[1:]})
    assert "every node" not in command(config, None, "check")[2]
    assert "no node of this name" in command(config, None, "node", "a", "drain")[2]
    assert command(config, None, "node", "a", "up")[:2] == (0, "a: up, once upstream.nodes has it again\n")
    assert "no node of this name" in command(config, None, "node", "a", "up")[2]
    site.edit_config(config, upstream={"nodes": entries})
    assert command(config, None, "nodes")[1].startswith("a: not asked")
