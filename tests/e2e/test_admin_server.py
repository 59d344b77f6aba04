"""What operators and their orchestrators ask a running gateway."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

from support.gateway import Gateway
from support.raw_connection import GET, connected
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.wire import http2


def asked(gateway: Gateway, path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
    status, body = gateway.ask_admin(path, method)
    return status, json.loads(body)


def test_alive_and_ready(gateway: Gateway) -> None:
    assert asked(gateway, "/livez") == (200, {"alive": True})
    status, ready = asked(gateway, "/readyz")
    assert status == 200
    names = ("listeners", "upstream_rest", "server_certificate", "crl", "audit", "descriptors", "reload")
    assert ready == {"ready": True, "state": "serving", "headline": "serving", "parts": dict.fromkeys(names, "ok")}


def test_not_ready_without_the_upstream_but_alive(site: Site) -> None:
    with ScriptedUpstream() as gone:
        url = gone.url
    with Gateway(site.write_config(url)) as gateway:
        status, ready = asked(gateway, "/readyz")
        assert (status, ready["ready"]) == (503, False)
        assert "Connection refused" in ready["parts"]["upstream_rest"]
        assert ready["parts"]["listeners"] == "ok"
        assert asked(gateway, "/livez")[0] == 200


def test_not_ready_while_it_drains(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client()) as client:
        client.send(GET, GET[:-1])  # a head under way keeps the gateway from its end
        assert client.response().status == 200
        gateway.process.send_signal(signal.SIGTERM)
        while (ready := asked(gateway, "/readyz"))[1]["parts"]["listeners"] == "ok":
            pass
        assert (ready[0], ready[1]["parts"]["listeners"]) == (503, "draining")
        client.send(GET[-1:])
        assert client.response().status == 200


SECRET = "s3cret-" * 5


def test_status_tells_what_is_served_and_no_secret(site: Site, upstream: ScriptedUpstream) -> None:
    path = site.write_config(upstream.url, service={"host": "127.0.0.1", "http_port": 0, "api_key": SECRET})
    with Gateway(path) as gateway, connected(gateway, site.client()) as client:
        client.send(b"GET /collections HTTP/1.1\r\nhost: h\r\napi-key: %b\r\n\r\n" % SECRET.encode())
        assert client.response().status == 200
        gateway.audited(method="list_collections")
        status, body = gateway.ask_admin("/status")
        told = json.loads(body)
        assert status == 200
        assert told["generation"]["number"] == 1
        (live,) = told["connections"].pop("live")
        assert (live["identity"], live["role"], live["requests"]) == ("CN=alice,OU=platform", "admin", 1)
        assert live["key"] == "api_key"
        assert told["connections"] == {"open": 1, "draining": False}
        assert told["upstream"] == {"rest": upstream.url, "idle": 1, "busy": 0}
        assert told["listeners"] == [{"address": f"127.0.0.1:{gateway.port}", "protocols": ["rest"]}]
        assert "localhost" in json.dumps(told["certificate"])
        for secret in ("s3cret", "PRIVATE"):
            assert secret not in body


def test_metrics_count_what_happened(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client("search")) as client:
        client.send(GET, b"DELETE /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n")
        assert [client.response().status, client.response().status] == [200, 403]
        text = gateway.ask_admin("/metrics")[1]
    lines = [line for line in text.splitlines() if line.startswith("tlsproxy_requests_total")]
    assert len(lines) == 2
    assert any('operation="list_collections"' in line and 'outcome="allowed"' in line for line in lines)
    assert any('operation="delete_collection"' in line and 'outcome="denied"' in line for line in lines)
    assert 'role="search"' in lines[0]


def test_reload_on_demand(own_site: Site, upstream: ScriptedUpstream) -> None:
    context = own_site.client()
    with Gateway(own_site.write_config(upstream.url)) as gateway:
        assert asked(gateway, "/reload", "POST")[1]["result"] == "unchanged"
        digest = asked(gateway, "/status")[1]["generation"]["digest"]
        own_site.write("ca.pem", b"")
        status, verdict = asked(gateway, "/reload", "POST")
        assert (status, verdict["result"]) == (409, "failed")
        assert "ca.pem" in verdict["error"]
        with connected(gateway, context) as client:
            client.send(GET)
            assert client.response().status == 200, "the set that was good stays"
        assert asked(gateway, "/status")[1]["generation"]["digest"] == digest


def test_a_stray_client_is_no_error_of_ours(gateway: Gateway) -> None:
    """Bytes that are no HTTP/1.1, such as a gRPC probe's of a port that was another program's, are no ERROR in the log,
    which the fixture would not let pass.
    """
    host, _, port = gateway.admin.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + http2.PREFACE + http2.settings({}))
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert b" 400 Bad Request" in received
