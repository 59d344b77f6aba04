"""The watchdog is fed by answers of our own listeners and by nothing else, and nobody is told of its questions."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.gateway import DEADLINE, Gateway
from support.notify_socket import Systemd, listening
from support.raw_request import alert, ask
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.service.systemd.notify import Notifier
from tlsproxy.service.systemd.watchdog import HandshakeQuestion, Watchdog

OFTEN = "600000"
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with listening(str(tmp_path / "notify")) as one:
        yield one


def fed(systemd: Systemd, times: int = 3) -> None:
    while times:
        times -= systemd.next() == {"WATCHDOG": "1"}


def counted(gateway: Gateway, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", gateway.ask_admin("/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_every_kind_of_listener_is_asked(site: Site, upstream: ScriptedUpstream, systemd: Systemd) -> None:
    """REST, gRPC, both, TCP, with balancers; on loopback, any address, passed and unix sockets. Nobody hears of it."""
    with ExitStack() as stack:
        held = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listeners = [
            {"port": 0, "host": "0.0.0.0", "protocols": ["grpc", "rest"]},  # noqa: S104 - as Qdrant's default
            {"port": held.getsockname()[1], "mode": "tcp", "upstream": upstream.url[7:], "allow": ["admin"]},
        ]
        limits = {"connections": 1, "connections_per_address": 1}
        listeners.append({"port": 0, "protocols": ["rest"], "proxy_protocol": {"from": ["192.0.2.1"]}})
        listeners += (
            {"unix": f"{name}-watched", "protocols": ["rest"]} for name in (systemd.address, f"@{os.getpid()}")
        )
        config = site.write_config(upstream.url, grpc=NOWHERE, listeners=listeners, limits=limits)
        told = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": OFTEN}
        gateway = stack.enter_context(Gateway(config, inherit=[("tcp", held)], **told))
        with gateway.connect(site.client()) as only:
            fed(systemd)
            assert ask(only).status == 200
            assert counted(gateway, 'tlsproxy_connections_total{outcome="accepted"}') == 1
            assert counted(gateway, "tlsproxy_connections") == 1
            assert counted(gateway, 'tlsproxy_handshakes_total{outcome="ok"}') == 1
            assert counted(gateway, 'tlsproxy_handshakes_total{outcome="no_certificate"}') == 0
        while counted(gateway, "tlsproxy_connections"):
            pass
        assert alert(gateway, site.client(None)) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        assert gateway.audited(event="handshake")["reason"] == "no_certificate", "a stranger is told of as ever"
        fed(systemd)
        events = [line["event"] for line in gateway.stop() if "event" in line]
        assert events == ["start", "handshake", "stop"]


def test_where_certificates_are_optional(site: Site, systemd: Systemd) -> None:
    config = site.write_config(NOWHERE, service={"verify_https_client_certificate": False})
    with Gateway(config, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC=OFTEN) as gateway:
        fed(systemd)
        assert [line["event"] for line in gateway.stop()] == ["start", "stop"]


# What is no answer


async def probed(sock: socket.socket, *, required: bool = True, patience: float = 10.0) -> bool:
    async def announce(address: tuple[str, int] | None) -> None:
        pass

    notifier = Notifier("/nowhere", 3 * patience)
    return await Watchdog(notifier, [sock], HandshakeQuestion(lambda: required).ask, announce).probe()


def served(context: ssl.SSLContext, *, required: bool) -> bool:
    """Probes a TLS server with this context. (Of a blocking socket: asyncio's own TLS sends no alert.)"""

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        try:
            with context.wrap_socket(sock, server_side=True) as tls:
                tls.unwrap()
        except ssl.SSLError:
            sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        answer = asyncio.run(probed(listener, required=required))
        thread.join(DEADLINE)
    return answer


def server_context(site: Site, *, required: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=site.directory / "ca.pem")
    context.load_cert_chain(site.directory / "server.pem", site.directory / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


@pytest.mark.parametrize(("required", "says"), [(True, "accepted"), (False, "refused")])
def test_a_server_that_does_not_do_what_it_should_is_no_answer(
    site: Site, caplog: pytest.LogCaptureFixture, *, required: bool, says: str
) -> None:
    assert served(server_context(site, required=required), required=required)
    assert not caplog.messages
    assert not served(server_context(site, required=not required), required=required)
    (message,) = caplog.messages
    assert re.fullmatch(rf"the watchdog is not fed: 127.0.0.1:\d+ {says} a client without a certificate", message)


def test_silence_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """As of an event loop that is stuck: the kernel accepts, and nothing comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not asyncio.run(probed(silent, patience=0.2))
    assert caplog.record_tuples[0][1] == logging.ERROR
    assert caplog.messages[0].endswith(": no answer in time")


def test_a_closed_port_and_plaintext_are_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def plaintext() -> bool:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            return await probed(SimpleNamespace(family=socket.AF_INET, getsockname=server.sockets[0].getsockname))  # type: ignore[arg-type]

    assert not asyncio.run(plaintext())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not asyncio.run(probed(closed))
    assert "WRONG_VERSION_NUMBER" in caplog.messages[0]
    assert "[Errno 111]" in caplog.messages[1]
