"""Nodes die and come back under load, with several workers: no read fails, and only writes that were on their way."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

from support.gateway import DEADLINE, Gateway
from support.load import CLIENTS, Load
from support.raw_request import Client
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream, plain

READ, WRITE = ("POST", "/collections/docs/points/query", b'{"limit":1}'), ("PUT", "/collections/docs/points", b"{}")
OK, LOST = "POST 200", "PUT 502"
DEATHS: Final = 4


def ask(client: Client, method: str, target: str, body: bytes) -> str:
    return f"{method} {client.ask(method, target, (), body).status}"


class Node:
    """``serves`` is set at its next request."""

    def __init__(self, stack: ExitStack) -> None:
        self.serves = threading.Event()
        self.life = stack.enter_context(ExitStack())
        self.upstream = self.life.enter_context(ScriptedUpstream(answer=self.answer))
        self.port = self.upstream.bound_port

    def answer(self, connection: Connection, request: Received) -> None:
        plain()(connection, request)
        self.serves.set()

    @property
    def entry(self) -> dict[str, Any]:
        return {"name": f"n{self.port}", "rest": f"http://127.0.0.1:{self.port}"}

    def die(self) -> None:
        self.life.close()

    def come_back(self) -> None:
        self.serves.clear()
        self.life.enter_context(ScriptedUpstream(answer=self.answer, port=self.port))
        assert self.serves.wait(DEADLINE)


def test_nodes_die_and_come_back(own_site: Site) -> None:
    load = Load()
    with ExitStack() as stack:
        first, second, third = (Node(stack) for _ in range(3))
        config = own_site.write_config([first.entry, second.entry], upstream={"check_interval": 0.1}, workers=2)
        gateway = stack.enter_context(Gateway(config))
        stack.callback(load.stop)
        clients = [stack.enter_context(Client(gateway, own_site.client())) for _ in range(CLIENTS)]
        load.start(partial(ask, one, *(WRITE if number == 0 else READ)) for number, one in enumerate(clients))
        for node in (first, second):
            load.until(OK)
            node.die()
            load.until(OK)
            node.come_back()
        own_site.edit_config(config, upstream={"nodes": [second.entry, third.entry]})
        assert third.serves.wait(DEADLINE)
        gateway.reloaded()
        first.die()
        load.until(OK)
        second.die()
        load.until(OK)
        load.stop()
    assert load.seen.keys() <= {OK, "PUT 200", LOST}, "no read failed"
    assert load.seen[LOST] <= DEATHS, "of one client that writes"
