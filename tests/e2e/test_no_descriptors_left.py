"""Out of descriptors: it stays up, serves whom it has, says so, and is itself again when some are free."""

from __future__ import annotations

import http.client
import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import grpc
from support.gateway import DEADLINE, Gateway
from support.grpc_channels import call, channel
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import ScriptedUpstream


@contextmanager
def exhausted(gateway: Gateway, limit: int) -> Iterator[None]:
    """At most ``limit`` descriptors, and more clients than that; over when it is left."""
    pid, kind = gateway.process.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, kind)
    with ExitStack() as stack:
        resource.prlimit(pid, kind, (limit, before[1]))
        for _ in range(limit + 5):
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        gateway.log.wait(lambda line: f"cannot accept connections on 127.0.0.1:{gateway.port}" in line)
        resource.prlimit(pid, kind, (limit // 2, before[1]))  # a file that is closed leaves none free
        yield
    resource.prlimit(pid, kind, before)


class Operator:
    """A connection to the admin server that was there before: a new one would need a descriptor."""

    def __init__(self, gateway: Gateway) -> None:
        self._connection = http.client.HTTPConnection(gateway.admin, timeout=DEADLINE)

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        self._connection.request(method, path)
        answer = self._connection.getresponse()
        return answer.status, answer.read().decode()

    def metric(self, name: str) -> float:
        return next(float(line.split()[-1]) for line in self.ask("/metrics")[1].splitlines() if line.startswith(name))

    def close(self) -> None:
        self._connection.close()


def test_who_is_connected_is_served(own_site: Site, upstream: ScriptedUpstream) -> None:
    config = own_site.write_config(upstream.url, audit={"dir": "audit"})
    with Gateway(config) as gateway, closing(Operator(gateway)) as operator:
        assert operator.ask("/readyz")[0] == 200
        with connected(gateway, own_site.client()) as client:
            client.send(GET)
            assert client.response().status == 200  # it leaves an upstream connection, and an open audit file
            with exhausted(gateway, 60):
                client.send(GET)
                assert client.response().status == 200
                while operator.metric("tlsproxy_accept_errors_total") < 3:
                    pass
                while (told := operator.ask("/readyz"))[0] == 200:  # what a probe of before found is told for a second
                    pass
                assert told[0] == 503
                assert "Too many open files" in told[1]
                status, verdict = operator.ask("/reload", "POST")
                assert status != 200
                assert "Too many open files" in verdict
                client.send(GET)
                assert client.response().status == 200, "a failed reload changes nothing"
            gateway.log.wait(lambda line: "ready again: descriptors" in line)
            assert operator.ask("/readyz")[0] == 200
            assert json.loads(operator.ask("/reload", "POST")[1])["result"] in {"ok", "unchanged"}
            with connected(gateway, own_site.client()) as another:
                another.send(GET)
                assert another.response().status == 200
        gateway.stop()
    assert len([line for line in gateway.log.seen if "cannot accept" in line]) == 1, (
        "said once, not five times a second"
    )
    (file,) = (own_site.directory / "audit").glob("audit.*.log")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["status"] for one in records if "method" in one] == [200] * 4


def test_a_request_that_needs_one_is_told(site: Site, upstream: ScriptedUpstream) -> None:
    """There is no upstream connection yet, and no descriptor for one; nor does a look at the files give one back."""
    config = site.write_config(upstream.url, tls={"poll_interval": 3600})
    with Gateway(config) as gateway, connected(gateway, site.client()) as client:
        with exhausted(gateway, 60):
            client.send(GET)
            response = client.response()
            assert response.status == 503
            assert response.fields["retry-after"] == "1"
            assert gateway.audited(status=503)["reason"] == "out_of_descriptors"
            assert upstream.connections == 0
        gateway.log.wait(lambda line: "ready again: descriptors" in line)
        client.send(GET)
        assert client.response().status == 200


def test_a_grpc_client_with_none_for_its_upstream_is_told(site: Site, grpc_gateway: Gateway) -> None:
    """Each has an upstream connection of its own, which its first call asks for."""
    with channel(grpc_gateway, site) as opened:
        grpc.channel_ready_future(opened).result(DEADLINE)
        with exhausted(grpc_gateway, 60):
            told = call(opened, "/qdrant.Collections/List")
    assert told.code is grpc.StatusCode.UNAVAILABLE
    assert "too many open files" in told.text
    assert grpc_gateway.audited(grpc_status=14)["reason"] == "out_of_descriptors"
    with channel(grpc_gateway, site) as opened:
        assert call(opened, "/qdrant.Collections/List").code is grpc.StatusCode.OK
