"""However much one client sends at once, others have their turns in between."""

from __future__ import annotations

from collections import Counter

import pytest
from support.gateway import Gateway
from support.raw import RawClient, connected
from support.site import Site
from support.upstream import ScriptedUpstream

UNKNOWN = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
INFO = b"GET /collections/docs HTTP/1.1\r\nhost: h\r\n\r\n"
MANY = 1000


@pytest.fixture(scope="module")
def gateway(shared_gateway: Gateway, shared_upstream: ScriptedUpstream) -> Gateway:
    del shared_upstream
    return shared_gateway


def test_what_is_refused_by_the_thousand_is_answered_in_order(site: Site, gateway: Gateway) -> None:
    with connected(gateway, site.client("stranger")) as client:
        client.send(UNKNOWN * MANY)
        assert Counter(client.response().status for _ in range(MANY)) == {403: MANY}
    assert Counter(gateway.audited(status=403)["status"] for _ in range(MANY)) == {403: MANY}


def test_another_is_answered_before_it(site: Site, gateway: Gateway) -> None:
    """Whose requests came first; both sit on the same loop."""
    with connected(gateway, site.client("stranger")) as hostile, connected(gateway, site.client()) as other:
        ask(other)  # its upstream connection stands
        hostile.send(UNKNOWN * MANY)
        ask(other)
        answered = 0
        hostile.sock.settimeout(0)
        try:
            while hostile.buffer.count(b"\r\n\r\n") < MANY:
                hostile._more()
        except OSError:
            answered = hostile.buffer.count(b"HTTP/1.1 403")
        assert answered < MANY


def ask(client: RawClient) -> None:
    client.send(INFO)
    assert client.response().status == 200
