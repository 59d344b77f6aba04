"""`tlsproxy connect`: plaintext clients of this machine, TLS servers that are verified, a client certificate."""

from __future__ import annotations

import json
import os
import queue
import re
import resource
import select
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.connecting import TLS, Connecting, echo, said, tls_serving
from support.gateway import DEADLINE
from support.names import Names
from support.site import Site
from support.sockets import deaf, serving
from support.tls_server import server_context

from tlsproxy.tls.client_context import spki_sha256
from tlsproxy.tls.pki import Authority

PLAIN = "127.0.0.1:0"
SPIFFE = "spiffe://example.org/gateway"
RESET = struct.pack("ii", 1, 0)


HELD = "127.0.0.2:0"


def unix(name: str) -> str:
    return f"unix:@tlsproxy-test-{os.getpid()}-{name}"


class Bench:
    """Servers, good and bad, each behind listeners of one `tlsproxy connect`."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.site = Site(directory)
        self.site.issue("client", common_name="web-1", client=True)
        self.handled: queue.SimpleQueue[tuple[ssl.SSLSocket, threading.Event]] = queue.SimpleQueue()
        dns = ["gw.test", "halved.test"]
        issued = self.site.authority.issue(ips=["127.0.0.1"], dns=dns, uris=[SPIFFE], server=True)
        self.pin = spki_sha256(x509.load_pem_x509_certificate(issued.chain_pem)).hex()
        self.context = server_context(directory, issued, self.site.authority)
        self.names = Names(directory)
        self.names.point("gw.test")
        self.names.point("gone.test")
        self.names.point("halved.test")
        self.good = stack.enter_context(tls_serving(self.context))
        self.held = stack.enter_context(tls_serving(self.context, self._hold))
        self.fickle = stack.enter_context(tls_serving(self.context, self._be_fickle))
        self.turned_away = threading.Event()
        self.bad = {
            "name_mismatch": self._bad(stack, dns=["other.example"]),
            "unknown_ca": self._bad(stack, Authority.create("another"), ips=["127.0.0.1"]),
            "expired": self._bad(
                stack, ips=["127.0.0.1"], not_before=datetime.now(UTC) - timedelta(2), lifetime=timedelta(1)
            ),
            "certificate_purpose": self._bad(stack, ips=["127.0.0.1"], server=False, client=True),
            "certificate_refused": stack.enter_context(
                tls_serving(server_context(directory, issued, Authority.create("of other clients")))
            ),
            "unreachable": stack.enter_context(tls_serving(self.context, lambda sock: sock.unwrap().close())),
            "not_tls": stack.enter_context(serving(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))),
            "closed": stack.enter_context(serving(lambda sock: sock.recv(1))),
            "timeout": stack.enter_context(deaf()),
            "refused": "127.0.0.1:1",
            "unresolved": "gone.test:6333",
        }
        self.listeners = [
            {"listen": PLAIN, "targets": [self.good]},
            {"listen": HELD, "targets": [self.held]},
            *({"listen": unix(reason), "targets": [target]} for reason, target in self.bad.items()),
            {"listen": unix("fickle"), "targets": [self.fickle, self.good]},
            {"listen": unix("halved"), "targets": [f"halved.test:{self.good.rpartition(':')[2]}"]},
            {"listen": unix("named"), "targets": [f"gw.test:{self.good.rpartition(':')[2]}"]},
            {"listen": unix("failover"), "targets": [*self.bad.values(), self.good]},
        ]
        self.limits = {"connect_timeout": 0.5, "handshake_timeout": 1.0}
        made = Connecting(
            directory, self.listeners, limits=self.limits, resolve_interval=1.0, environ=self.names.environ
        )
        self.connecting = stack.enter_context(made)

    def configure(self, **sections: Any) -> None:
        """Replaces sections of the configuration, and reloads."""
        self.connecting.write(self.listeners, **{"limits": self.limits, **sections})
        self.connecting.hang_up()

    def renew(self) -> int:
        """Replaces the client certificate, first the one file and then the other."""
        issued = self.site.authority.issue(common_name="web-1", client=True)
        self.site.replace("client.pem", issued.chain_pem)
        self.site.replace("client.key", issued.key_pem)
        self.renewed(issued.serial)
        return issued.serial

    def renewed(self, serial: int) -> None:
        """Until new connections use the certificate with this serial number."""
        self.connecting.log.wait(lambda line: f"serial {serial:x}" in line)

    def reload_part(self) -> str:
        """As readiness has it after a reload."""
        self.connecting.hang_up()
        part: str = json.loads(self.connecting.ask("/readyz")[1])["parts"]["reload"]
        return part

    def _bad(self, stack: ExitStack, authority: Authority | None = None, **names: object) -> str:
        issued = (authority or self.site.authority).issue(**{"server": True, **names})  # type: ignore[arg-type]
        return stack.enter_context(tls_serving(server_context(self.site.directory, issued, self.site.authority)))

    def serial(self) -> int:
        """Serial number of the client certificate that a new connection presents."""
        with ExitStack() as stack:
            _, server = self.pair(stack)
            return serial_of(server)

    def _be_fickle(self, sock: ssl.SSLSocket) -> None:
        """Good for a check, and ends each connection at once after that."""
        if self.turned_away.is_set():
            sock.unwrap().close()
        else:
            echo(sock)

    def _hold(self, sock: ssl.SSLSocket) -> None:
        """Leaves the connection to the test."""
        go_on = threading.Event()
        self.handled.put((sock, go_on))
        assert go_on.wait(DEADLINE)

    def pair(self, stack: ExitStack) -> tuple[socket.socket, ssl.SSLSocket]:
        """A client, and the server's end of its connection."""
        client = stack.enter_context(self.connecting.connect(HELD))
        client.sendall(b"x")
        while True:
            server, go_on = self.handled.get(timeout=DEADLINE)
            stack.callback(go_on.set)
            with suppress(OSError):
                if server.recv(1) == b"x":  # else it was a check
                    return client, server


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path_factory.mktemp("site"), stack)


def serial_of(server: ssl.SSLSocket) -> int:
    certificate = server.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def ends_in_a_cut(sock: socket.socket) -> bool:
    """Whether it ends by a reset; a unix socket has none, and ends."""
    with sock:
        try:
            return sock.recv(1) == b"" and sock.family == socket.AF_UNIX
        except ConnectionResetError:
            return True


def test_bytes_go_through_and_come_back(bench: Bench) -> None:
    data = bytes(range(256)) * 4_000
    before = bench.connecting.metric("connect_bytes_total", listener=PLAIN, direction="in")
    assert said(bench.connecting.connect(PLAIN), data) == data
    after = bench.connecting.metric("connect_bytes_total", listener=PLAIN, direction="in")
    assert after - before == len(data)
    agreed = (
        r'handshakes_negotiated_total\{cipher="TLS_AES_256_GCM_SHA384",group="\w*",side="target",version="TLSv1.3"\}'
    )
    assert re.search(agreed, bench.connecting.ask("/metrics")[1])


@pytest.mark.parametrize(
    "reason",
    [
        "name_mismatch",
        "unknown_ca",
        "expired",
        "certificate_purpose",
        "certificate_refused",
        "unreachable",
        "not_tls",
        "closed",
        "timeout",
        "refused",
        "unresolved",
    ],
)
def test_a_target_that_is_not_the_expected_server_gets_nothing(bench: Bench, reason: str) -> None:
    """The connection is cut, and the failure is told by target and reason."""
    assert ends_in_a_cut(bench.connecting.connect(unix(reason)))
    labels = {"listener": unix(reason), "target": bench.bad[reason]}
    assert bench.connecting.metric("connect_failures_total", reason=reason, **labels) > 0
    assert bench.connecting.metric("connect_target_up", **labels) == 0


def test_a_client_reaches_the_first_target_that_is_good(bench: Bench) -> None:
    for _ in range(3):
        assert said(bench.connecting.connect(unix("failover")), b"hello") == b"hello"
    assert bench.connecting.metric("connect_target_up", listener=unix("failover"), target=bench.good) == 1


def test_a_target_that_ends_before_a_byte_hands_on_to_the_next(bench: Bench) -> None:
    """As a gateway does whose upstream is away: the client has not noticed, as long as it has said nothing."""
    assert said(bench.connecting.connect(unix("fickle")), b"hello") == b"hello"
    bench.turned_away.set()
    with bench.connecting.connect(unix("fickle")) as client:
        bench.connecting.log.wait(
            lambda line: f"{bench.fickle} is down: the server ended the connection at once" in line
        )
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_a_name_is_looked_up_until_it_resolves_and_all_its_addresses_are_tried(bench: Bench) -> None:
    assert ends_in_a_cut(bench.connecting.connect(unix("named")))
    bench.names.point("gw.test", "127.0.0.9", "127.0.0.1")
    bench.connecting.log.wait(lambda line: f"{unix('named')}: gw.test:" in line and line.endswith(" is up"))
    assert said(bench.connecting.connect(unix("named")), b"hello") == b"hello"


def test_another_address_of_its_name_serves_for_one_that_ends_connections_at_once(bench: Bench) -> None:
    port, listen, ending = int(bench.good.rpartition(":")[2]), unix("halved"), threading.Event()

    def halved(sock: ssl.SSLSocket) -> None:
        if not ending.is_set():
            echo(sock)

    with tls_serving(bench.context, halved, ("127.0.0.8", port)):
        bench.names.point("halved.test", "127.0.0.8", "127.0.0.1")
        bench.connecting.log.wait(lambda line: f"{listen}: halved.test:" in line and line.endswith(" is up"))
        ending.set()
        with bench.connecting.connect(listen) as client:
            client.sendall(b"hello")
            bench.connecting.log.wait(lambda line: f"{listen}: halved.test:" in line and " is down: " in line)
        bench.connecting.log.wait(lambda line: f"{listen}: halved.test:" in line and line.endswith(" is up"))
        for _ in range(3):
            assert said(bench.connecting.connect(listen), b"hello") == b"hello"


def test_either_side_may_end_its_half_first(bench: Bench) -> None:
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"
        server.unwrap().close()
        assert client.recv(1) == b""
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        ending = threading.Thread(target=server.unwrap, daemon=True)  # it waits for the other half's end
        ending.start()
        assert client.recv(1) == b""
        client.shutdown(socket.SHUT_WR)
        ending.join(DEADLINE)
        assert not ending.is_alive()


def test_a_cut_is_passed_on_as_a_cut(bench: Bench) -> None:
    for linger in (True, False):  # a reset, and an end without close_notify
        with ExitStack() as stack:
            client, server = bench.pair(stack)
            server.sendall(b"half an ans")
            if linger:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            os.close(server.detach())
            with pytest.raises(ConnectionResetError):  # noqa: PT012 - after the bytes before it
                while client.recv(100):
                    pass
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            server.recv(1)


def test_a_side_that_does_not_read_holds_up_the_other_one(bench: Bench) -> None:
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        client.setblocking(False)
        piece, sent, full = bytes(1 << 16), 0, select.poll()
        full.register(client, select.POLLOUT)
        while full.poll(300):
            sent += client.send(piece)
        assert sent < 64 << 20
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        received = 0
        while data := server.recv(1 << 16):
            received += len(data)
        assert received == sent


def test_a_client_that_is_gone_during_the_dial_leaves_nothing(bench: Bench) -> None:
    """Nor do those beyond the limit wait: they are closed at once."""
    bench.configure(limits={**bench.limits, "max_connections": 2})
    for _ in range(2):
        with bench.connecting.connect(unix("timeout")):
            pass
    with bench.connecting.connect(PLAIN) as sock:
        assert sock.recv(1) == b""
    assert bench.connecting.metric("connect_connections_total", listener=PLAIN, result="full") == 1
    bench.connecting.log.wait(lambda line: "limits.max_connections (2) is reached" in line)
    bench.configure()


def test_a_quiet_connection_ends_after_the_idle_time(bench: Bench) -> None:
    bench.configure(limits={**bench.limits, "idle_timeout": 0.3})
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        assert ends_in_a_cut(client)
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            server.recv(1)
    bench.configure()


def test_a_renewed_certificate_is_used_by_new_connections_and_none_is_lost(bench: Bench) -> None:
    over, failed = threading.Event(), []

    def load() -> None:
        while not over.is_set():
            try:
                if said(bench.connecting.connect(PLAIN), b"hello") != b"hello":
                    failed.append("cut short")
            except OSError as error:
                failed.append(str(error))

    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        for _ in range(3):
            serial = bench.renew()
            assert bench.serial() == serial
        client.sendall(b"y")
        assert server.recv(1) == b"y", "an open connection stays"
    over.set()
    loading.join(DEADLINE)
    assert failed == []


def test_a_pair_that_is_broken_leaves_the_last_good_one_and_is_told(bench: Bench) -> None:
    serial, key = bench.site.serial("client"), (bench.site.directory / "client.key").read_bytes()
    bench.site.replace("client.key", b"no key")
    bench.connecting.log.wait(lambda line: "not in force" in line and "client.key" in line)
    assert bench.reload_part() == "degraded"
    assert bench.serial() == serial
    bench.site.replace("client.key", key)
    assert bench.reload_part() == "ok"
    # Half of a pair waits for the other one, and is no error before `settle_time` is over.
    issued = bench.site.authority.issue(common_name="web-1", client=True)
    bench.site.replace("client.pem", issued.chain_pem)
    assert bench.reload_part() == "ok"
    assert bench.serial() == serial
    bench.site.replace("client.key", issued.key_pem)
    bench.renewed(issued.serial)
    assert bench.serial() == issued.serial


def test_the_expected_server_is_a_matter_of_the_configuration_in_force(bench: Bench) -> None:
    """Connections to a server that would not be accepted any more end once they are quiet."""
    with ExitStack() as stack:
        client, server = bench.pair(stack)
        server.sendall(b"z")
        assert client.recv(1) == b"z"
        bench.configure(tls={**TLS, "spiffe_id": SPIFFE, "spki_sha256": [bench.pin]})
        ending = threading.Thread(target=server.unwrap, daemon=True)
        ending.start()
        assert client.recv(1) == b""
        client.close()
        ending.join(DEADLINE)
    assert said(bench.connecting.connect(PLAIN), b"hello") == b"hello"
    for tls, reason in (
        ({"spiffe_id": "spiffe://example.org/other"}, "spiffe_mismatch"),
        ({"spki_sha256": ["00" * 32]}, "pin_mismatch"),
        ({"server_name": "other.test"}, "name_mismatch"),
    ):
        bench.configure(tls={**TLS, **tls})
        assert ends_in_a_cut(bench.connecting.connect(PLAIN))
        assert bench.connecting.metric("connect_failures_total", listener=PLAIN, target=bench.good, reason=reason) > 0
    for name in ("gw.test", "GW.test."):
        bench.configure(tls={**TLS, "server_name": name})
        assert said(bench.connecting.connect(PLAIN), b"hello") == b"hello"
    bench.configure()


def test_a_configuration_that_is_refused_changes_nothing(bench: Bench) -> None:
    good = bench.connecting.config.read_bytes()
    bench.site.replace("client.yaml", good + b"\nnonsense: 1\n")
    bench.connecting.log.wait(lambda line: "not in force" in line and "nonsense: unknown key" in line)
    assert said(bench.connecting.connect(PLAIN), b"hello") == b"hello"
    listener = {"listen": unix("new"), "targets": [bench.good]}
    bench.connecting.write([*bench.listeners, listener], limits=bench.limits)
    bench.connecting.log.wait(lambda line: "listeners: a restart applies it" in line)
    assert said(bench.connecting.connect(PLAIN), b"hello") == b"hello"
    bench.site.replace("client.yaml", good)
    assert bench.reload_part() == "ok"


def test_out_of_descriptors_it_stays_up(bench: Bench) -> None:
    pid, kind = bench.connecting.process.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (3, before[1]))
    waiting = bench.connecting.connect(PLAIN)
    bench.connecting.log.wait(lambda line: "cannot accept connections on" in line)
    resource.prlimit(pid, kind, before)
    assert said(waiting, b"hello") == b"hello"
