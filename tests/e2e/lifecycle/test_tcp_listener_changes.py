"""`allow` and `upstream` of a TCP listener count at once, on open connections too; what is bound needs a restart."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from support.gateway import Gateway
from support.operator_tools import operator
from support.polling import until
from support.raw_connection import RawClient
from support.site import Site
from support.sockets import deaf, serving
from support.upstream import ScriptedUpstream


def echo(name: bytes) -> AbstractContextManager[str]:
    """An upstream that says its name before each piece: its ``host:port``."""

    def serve(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            sock.sendall(name + data)

    return serving(serve)


class Through:
    """A gateway with a TCP listener in front of ``old``, which ``new`` takes over from."""

    def __init__(self, site: Site, rest: str, stack: ExitStack, **sections: Any) -> None:
        self.site = site
        self.old, self.new = stack.enter_context(echo(b"old:")), stack.enter_context(echo(b"new:"))
        self.listener = {"port": 0, "mode": "tcp", "upstream": self.old, "allow": ["admin", "search"]}
        self.config = site.write_config(rest, listeners=[self.listener], **sections)
        self.gateway = stack.enter_context(Gateway(self.config))
        self.clients = stack.enter_context(ExitStack())

    def connect(self, client: str = "admin") -> ssl.SSLSocket:
        port = self.gateway.ports["TCP"][0]
        return self.clients.enter_context(self.gateway.connect(self.site.client(client), port=port))

    def edit(self, listener: dict[str, Any], **sections: Any) -> dict[str, Any]:
        """The verdict of the reload."""
        self.site.edit_config(self.config, listeners=[self.listener | listener], **sections)
        self.gateway.reloaded()
        return dict(json.loads(self.gateway.ask_admin("/status")[1]))

    def told(self, reason: str) -> list[str]:
        """The events that its audit log has of this reason, after its end."""
        self.clients.close()
        return sorted(one["event"] for one in self.gateway.stop() if one.get("reason") == reason)


def said(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(b"x")
    return sock.recv(100)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.mark.parametrize("workers", [1, 2])
def test_another_upstream_drains_the_former(
    own_site: Site, upstream: ScriptedUpstream, stack: ExitStack, workers: int
) -> None:
    """Those that are silent after an answer end at once."""
    through = Through(own_site, upstream.url, stack, workers=workers, limits={"drain_grace": 0, "drain_timeout": 600})
    silent = [through.connect() for _ in range(5)]
    assert [said(one) for one in silent] == [b"old:x"] * 5
    status = through.edit({"upstream": through.new})
    assert status["generation"]["restart_needed"] == []
    (change,) = status["last_reload"]["changes"]
    assert (change["what"], change["detail"]) == ("listener", f"upstream {through.old} → {through.new}")
    assert said(through.connect()) == b"new:x"
    assert all(RawClient(one).ended() for one in silent)
    until(lambda: not json.loads(through.gateway.ask_admin("/status")[1])["former_upstream"]["tcp"])
    assert through.told("upstream_changed") == ["tcp_close"] * 5


def test_what_waits_for_an_answer_has_until_the_end_of_the_drain(
    own_site: Site, upstream: ScriptedUpstream, stack: ExitStack
) -> None:
    through = Through(own_site, upstream.url, stack, limits={"drain_grace": 60, "drain_timeout": 600})
    client = through.connect()
    assert said(client) == b"old:x"
    assert through.edit({"upstream": through.new})["former_upstream"]["tcp"] == 1
    assert said(client) == b"old:x"
    through.edit({"upstream": through.new}, limits={"drain_timeout": 0.1})
    assert RawClient(client).ended()
    assert through.gateway.audited(event="tcp_close")["reason"] == "upstream_changed"


def test_kept_connections_stay_until_they_end(own_site: Site, upstream: ScriptedUpstream, stack: ExitStack) -> None:
    through = Through(
        own_site,
        upstream.url,
        stack,
        upstream={"rest": upstream.url, "on_change": "keep"},
        limits={"drain_grace": 0, "drain_timeout": 0.1},
    )
    client = through.connect()
    assert said(client) == b"old:x"
    assert through.edit({"upstream": through.new})["former_upstream"] == {"rest": 0, "grpc": 0, "tcp": 1}
    assert said(through.connect()) == b"new:x"
    through.edit({"upstream": through.new}, limits={"connections": 99})
    assert said(client) == b"old:x"
    assert through.edit({"upstream": through.old})["former_upstream"]["tcp"] == 1, "the other one, now"
    client.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_allow_counts_at_once(own_site: Site, upstream: ScriptedUpstream, stack: ExitStack, workers: int) -> None:
    through = Through(own_site, upstream.url, stack, workers=workers)
    admin, search = through.connect(), through.connect("search")
    assert said(admin) == said(search) == b"old:x"
    assert RawClient(through.connect("ingest")).ended()
    status = through.edit({"allow": ["admin", "ingest"]})
    assert status["generation"]["restart_needed"] == []
    (change,) = status["last_reload"]["changes"]
    assert (change["what"], change["detail"]) == ("listener", "allow ingest added, allow search removed")
    assert search.recv(1) == b""
    assert RawClient(through.connect("search")).ended()
    assert said(admin) == said(through.connect("ingest")) == b"old:x"
    assert through.told("role_not_allowed") == ["connection", "tcp_close", "tcp_open", "tcp_open"]


def test_what_is_bound_serves_on_until_the_restart(
    own_site: Site, upstream: ScriptedUpstream, stack: ExitStack
) -> None:
    """Whatever a changed configuration says of its place: another port, another host, or that there is none."""
    through = Through(own_site, upstream.url, stack)
    client = through.connect()
    assert said(client) == b"old:x"
    assert through.edit({"port": 1})["generation"]["restart_needed"] == ["listeners"]
    assert said(client) == said(through.connect()) == b"old:x"
    status = through.edit({"upstream": through.new}, service={"host": "127.0.0.2"})
    assert status["generation"]["restart_needed"] == ["service.host"]
    assert said(through.connect()) == b"new:x"
    own_site.edit_config(through.config, listeners=[])
    through.gateway.reloaded()
    status = json.loads(through.gateway.ask_admin("/status")[1])
    assert status["generation"]["restart_needed"] == ["service.host", "listeners"]
    assert said(through.connect()) == b"new:x"

    code, out, _ = operator(through.gateway, "reload", "--dry-run")
    assert (code, "restart needed: listeners has changed\n" in out) == (0, True)


def test_what_takes_a_restart_is_told_with_the_change(
    own_site: Site, upstream: ScriptedUpstream, stack: ExitStack
) -> None:
    through = Through(own_site, upstream.url, stack)

    def changed(*listeners: dict[str, Any]) -> list[tuple[str, str, str]]:
        own_site.edit_config(through.config, listeners=list(listeners))
        through.gateway.reloaded()
        told = json.loads(through.gateway.ask_admin("/status")[1])["last_reload"]["changes"]
        return [(one["name"], one["how"], one["detail"]) for one in told]

    assert changed() == [("127.0.0.1:0", "removed", "serves on until the next restart")]
    assert through.gateway.log.wait(
        lambda line: "listeners has changed, which takes effect at the next restart" in line
    )
    fields = f"mode tcp, upstream {through.old}, allow admin, search"
    assert changed(through.listener, through.listener | {"port": 1}) == [
        ("127.0.0.1:0", "added", f"port 0, {fields}"),
        ("127.0.0.1:1", "added", f"port 1, {fields}; from the next restart on"),
    ]
    assert changed(through.listener) == [("127.0.0.1:1", "removed", "")]


def test_a_connection_that_is_being_dialled_goes_to_the_new_one(
    own_site: Site, upstream: ScriptedUpstream, stack: ExitStack
) -> None:
    through = Through(own_site, upstream.url, stack, upstream={"rest": upstream.url, "connect_timeout": 600})
    through.edit({"upstream": stack.enter_context(deaf())})
    client = through.connect()
    client.sendall(b"x")
    until(lambda: bool(json.loads(through.gateway.ask_admin("/status")[1])["connections"]["live"]))
    through.edit({"upstream": through.new})
    assert client.recv(100) == b"new:x"
