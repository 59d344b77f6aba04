"""Qdrant is not there: a 502 in Qdrant's own form, an audit line that says why, and service as soon as it is back."""

from __future__ import annotations

import socket

import orjson
from support.gateway import Gateway
from support.raw_connection import GET, SEARCH, connected
from support.site import Site
from support.upstream import OK, ScriptedUpstream

BODY = b"content-length: 2\r\n\r\n{}"


def test_down_and_back(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with Gateway(site.write_config(f"http://127.0.0.1:{port}")) as gateway, connected(gateway, site.client()) as client:
        client.send(GET, SEARCH, BODY, GET)
        for _ in range(3):
            response = client.response()
            assert (response.status, response.fields["content-type"]) == (502, "application/json")
            answer = orjson.loads(response.body)
            assert answer["status"]["error"].startswith("The upstream cannot be reached")
            assert answer["time"] == 0
        record = gateway.audited(method="core_search_batch")
        assert (record["status"], record["reason"]) == (502, "upstream_unreachable")

        with socket.create_server(("127.0.0.1", port)) as back:
            client.send(GET)
            upstream, _ = back.accept()
            with upstream:
                assert upstream.recv(65536).startswith(b"GET /collections HTTP/1.1\r\n")
                upstream.sendall(OK)
                assert client.response().status == 200, "the same client connection, all along"


def test_the_first_of_its_addresses_is_down(site: Site, upstream: ScriptedUpstream) -> None:
    """`localhost` often means ::1 first, where Qdrant does not listen."""
    config = site.write_config(upstream.url.replace("127.0.0.1", "localhost"))
    with Gateway(config) as gateway, connected(gateway, site.client()) as client:
        client.send(GET)
        assert client.response().status == 200
