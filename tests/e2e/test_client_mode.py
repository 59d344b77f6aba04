"""`tlsproxy connect`: plaintext clients of this machine, TLS servers that are verified, a client certificate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.connecting import Connecting, said, tls_serving
from support.site import Site
from support.tls_server import server_context

PLAIN = "127.0.0.1:0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("site"))
    made.issue("client", common_name="web-1", client=True)
    return made


@pytest.fixture(scope="module")
def connecting(site: Site) -> Iterator[Connecting]:
    with ExitStack() as stack:
        issued = site.authority.issue(ips=["127.0.0.1"], server=True)
        good = stack.enter_context(tls_serving(server_context(site.directory, issued, site.authority)))
        yield stack.enter_context(Connecting(site.directory, [{"listen": PLAIN, "targets": [good]}]))


def test_bytes_go_through_and_come_back(connecting: Connecting) -> None:
    data = bytes(range(256)) * 20_000
    assert said(connecting.connect(PLAIN), data) == data
    status, body = connecting.ask("/readyz")
    assert status == 200, body
