"""Connections to real TLS servers: Python's, and `openssl s_server`. What the handler is told is compared."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.tls_server import authority_of, own, server_context, serving

from tlsproxy.admin.upstream_probe import Target, is_ready
from tlsproxy.config.pins import pin_of
from tlsproxy.proxy.transport.deadlines import Deadlines
from tlsproxy.proxy.transport.dial import Address, dial, dial_failure, is_trusted
from tlsproxy.snapshot.nodes import Upstream
from tlsproxy.tls.client_context import ClientTls, ExpectedServer, ServerRefused, client_tls, spki_sha256
from tlsproxy.tls.pki import Authority, Issued

WAIT = 10.0
CA = Authority.create("upstream CA")
OTHER = Authority.create("other CA")
SPIFFE = "spiffe://example.org/qdrant"
SERVER = CA.issue(dns=["qdrant.internal"], ips=["127.0.0.1"], uris=[SPIFFE], server=True)
BEFORE = datetime.now(UTC) - timedelta(days=9)
STALE = CA.issue(dns=["qdrant.internal"], server=True, not_before=BEFORE, lifetime=timedelta(days=1))
TWO_IDS = CA.issue(uris=[SPIFFE, f"{SPIFFE}2"], server=True)
FOR_CLIENTS = CA.issue(dns=["qdrant.internal"], client=True)
CLIENT = own(CA.issue(common_name="gateway", client=True))
STRANGER = own(OTHER.issue(common_name="gateway", client=True))
NAMED = ExpectedServer(name="qdrant.internal")


def pin(issued: Issued) -> bytes:
    return spki_sha256(x509.load_pem_x509_certificate(issued.certificate_pem))


def tls_for(expected: ExpectedServer = NAMED, authority: Authority = CA, **more: Any) -> ClientTls:
    return client_tls([authority_of(authority)], server_name="qdrant.internal", expected=expected, **more)


class Owner:
    def __init__(self) -> None:
        self.data = bytearray()
        self.came = asyncio.Event()
        self.established = asyncio.Event()
        self.ended = asyncio.Event()
        self.paused = 0
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connected(self) -> None:
        self.established.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.came.set()

    def pause_writing(self) -> None:
        self.paused += 1

    def resume_writing(self) -> None:
        self.paused -= 1

    def deadline_passed(self) -> None:
        raise AssertionError

    def rearm(self) -> None:
        pass

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)

    async def has(self, size: int) -> bytes:
        while len(self.data) < size:
            self.came.clear()
            await asyncio.wait_for(self.came.wait(), WAIT)
        return bytes(self.data)


async def lost(address: Address, tls: ClientTls, ask: bytes = b"ask") -> Exception | None:
    """How a connection to this server ends that sends something."""
    loop = asyncio.get_running_loop()
    with contextlib.closing(Deadlines(loop)) as deadlines:
        owner = Owner()
        dial(loop, [address], owner, deadlines, lambda: (WAIT, 1024), tls).write(ask)
        return await asyncio.wait_for(owner.lost, WAIT)


EXPECTED = [
    ExpectedServer(name="qdrant.internal"),
    ExpectedServer(name="127.0.0.1"),
    ExpectedServer(spiffe_id=SPIFFE),
    ExpectedServer(pins=frozenset({pin(OTHER.issue(server=True)), pin(SERVER)})),
    ExpectedServer(name="qdrant.internal", spiffe_id=SPIFFE, pins=frozenset({pin(SERVER)})),
]


@pytest.mark.parametrize("expected", EXPECTED, ids=["name", "address", "spiffe_id", "pins", "all"])
def test_the_expected_server_gets_what_was_written_before_the_handshake(
    runner: asyncio.Runner, tmp_path: Path, expected: ExpectedServer
) -> None:
    early, data = b"early", bytes(range(256)) * 4096

    async def talk(address: Address) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.closing(Deadlines(loop)) as deadlines:
            owner = Owner()
            stream = dial(
                loop, [address], owner, deadlines, lambda: (WAIT, 1024), tls_for(expected, certificate=CLIENT)
            )
            stream.write(early)
            assert not stream.established
            stream.write(data)
            assert owner.paused == 1  # more than its queue may hold
            assert await owner.has(len(early + data)) == early + data
            assert stream.established
            assert owner.established.is_set()
            assert owner.paused == 0
            stream.when_ended = owner.ended.set
            stream.shut()  # the server reads the end, and ends
            await asyncio.wait_for(owner.ended.wait(), WAIT)
            stream.abort()
            assert await asyncio.wait_for(owner.lost, WAIT) is None

    with serving(server_context(tmp_path, SERVER, CA)) as address:
        runner.run(talk(address))


REFUSED = [
    ("name_mismatch", SERVER, {"expected": ExpectedServer(name="other.internal")}),
    ("name_mismatch", SERVER, {"expected": ExpectedServer(name="127.0.0.2")}),
    ("name_mismatch", SERVER, {"expected": ExpectedServer(name="other.internal", spiffe_id=SPIFFE)}),
    ("spiffe_mismatch", SERVER, {"expected": ExpectedServer(spiffe_id=f"{SPIFFE}2")}),
    ("spiffe_mismatch", CA.issue(dns=["qdrant.internal"], server=True), {"expected": EXPECTED[-1]}),
    (
        "spiffe_mismatch",
        CA.issue(uris=[SPIFFE, f"{SPIFFE}2"], server=True),
        {"expected": ExpectedServer(spiffe_id=SPIFFE)},
    ),
    ("pin_mismatch", SERVER, {"expected": ExpectedServer(pins=frozenset({bytes(32)}))}),
    ("unknown_ca", SERVER, {"authority": OTHER}),
    ("expired", STALE, {}),
    ("certificate_purpose", FOR_CLIENTS, {}),
]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_another_server_than_expected_gets_neither_a_byte_nor_our_certificate(
    runner: asyncio.Runner, tmp_path: Path, version: str
) -> None:
    for reason, issued, more in REFUSED:
        context = server_context(tmp_path, issued, CA)
        context.maximum_version = context.minimum_version = getattr(ssl.TLSVersion, f"TLSv1_{version[-1]}")
        served: list[ssl.SSLSocket] = []
        with serving(context, served.append) as address:
            error = runner.run(lost(address, tls_for(certificate=CLIENT, **more)))
        assert isinstance(error, ServerRefused), (reason, error)
        assert (error.reason, served) == (reason, [])
        assert dial_failure(error).reason == "upstream_tls"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_server_that_refuses_us_is_told_from_one_that_broke(
    runner: asyncio.Runner, tmp_path: Path, version: str
) -> None:
    wants = server_context(tmp_path, SERVER, CA)
    h1 = server_context(tmp_path, SERVER, alpn=("http/1.1",))
    none = server_context(tmp_path, SERVER)
    for context in (wants, h1, none):
        context.maximum_version = getattr(ssl.TLSVersion, f"TLSv1_{version[-1]}")
    wanted = "certificate_required" if version == "1.3" else "handshake_failure"
    rows: list[tuple[str, ssl.SSLContext, dict[str, Any]]] = [
        (wanted, wants, {}),
        ("certificate_refused", wants, {"certificate": STRANGER}),
        ("no_application_protocol", none, {"alpn": "h2"}),
        ("no_application_protocol", h1, {"alpn": "h2"}),
    ]
    if version == "1.2":
        rows.append(("protocol_version", none, {"min_version": "1.3"}))
    for reason, context, more in rows:
        with serving(context) as address:
            error = runner.run(lost(address, tls_for(**more)))
        assert isinstance(error, ServerRefused), (reason, error)
        assert error.reason == reason, str(error)


def test_a_server_is_trusted_as_long_as_its_ca_is() -> None:
    der = [authority_of(each).public_bytes(Encoding.DER) for each in (CA, OTHER)]
    made = [
        client_tls([authority_of(each) for each in authorities], server_name="q", expected=expected, trust=(expected,))
        for authorities, expected in (
            ((CA,), NAMED),
            ((CA,), NAMED),
            ((CA, OTHER), NAMED),
            ((OTHER,), NAMED),
            ((CA,), ExpectedServer(name="other.internal")),
        )
    ]
    for anchor, expected in ((der[0], [1, 1, 1, 0, 0]), (der[1], [1, 1, 1, 1, 0]), (b"", [1, 1, 0, 0, 0])):
        stream: Any = SimpleNamespace(tls=made[0], anchor=anchor)
        assert [is_trusted(stream, tls) for tls in made] == list(map(bool, expected))
        assert not is_trusted(stream, None)
    plain: Any = SimpleNamespace(tls=None, anchor=b"")
    assert is_trusted(plain, None)
    assert not is_trusted(plain, made[0])


def test_a_check_of_a_node_says_why_tls_fails(runner: asyncio.Runner, tmp_path: Path) -> None:
    refusals = {
        "name_mismatch": (server_context(tmp_path, SERVER), ExpectedServer(name="other.internal")),
        "certificate_required": (server_context(tmp_path, SERVER, CA), NAMED),
    }
    for reason, (context, expected) in refusals.items():
        with serving(context) as address:
            target = Target("rest", Upstream("https://q:1", b"q:1", (address,), tls_for(expected)), None)
            with pytest.raises(ServerRefused) as refused:
                runner.run(is_ready(target, WAIT))
        assert refused.value.reason == reason


def test_plaintext_and_silence_are_no_tls(runner: asyncio.Runner) -> None:
    with serving(None) as address:
        error = runner.run(lost(address, tls_for()))
    assert isinstance(error, ServerRefused)
    assert error.reason == "closed"

    async def plaintext() -> Exception | None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            return await lost((socket.AF_INET, server.sockets[0].getsockname()), tls_for())

    error = runner.run(plaintext())
    assert isinstance(error, ServerRefused)
    assert error.reason == "not_tls"


def test_a_connection_that_is_cut_ends_with_an_error(runner: asyncio.Runner, tmp_path: Path) -> None:
    """Else a response without a length would pass for whole."""

    def cut(sock: ssl.SSLSocket) -> None:
        sock.sendall(sock.recv(100))
        socket.socket(fileno=sock.detach()).close()

    def whole(sock: ssl.SSLSocket) -> None:
        sock.sendall(sock.recv(100))
        with contextlib.suppress(ssl.SSLError):
            sock.unwrap()

    context = server_context(tmp_path, SERVER)
    with serving(context, cut) as address:
        assert isinstance(runner.run(lost(address, tls_for())), ConnectionAbortedError)
    with serving(context, whole) as address:
        assert runner.run(lost(address, tls_for())) is None


def test_openssl_s_server_is_spoken_to(runner: asyncio.Runner, tmp_path: Path) -> None:
    """Another implementation of the other side, which wants a client certificate and HTTP/2."""
    (tmp_path / "server.pem").write_bytes(SERVER.chain_pem + SERVER.key_pem)
    (tmp_path / "ca.pem").write_bytes(CA.certificate_pem)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", "server.pem", "-CAfile", "ca.pem"]
    command += ["-Verify", "2", "-verify_return_error", "-alpn", "h2", "-rev", "-naccept", "1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        while b"ACCEPT" not in server.stdout.readline():
            assert server.poll() is None

        async def talk() -> None:
            loop = asyncio.get_running_loop()
            with contextlib.closing(Deadlines(loop)) as deadlines:
                owner, address = Owner(), (socket.AF_INET, ("127.0.0.1", port))
                stream = dial(
                    loop, [address], owner, deadlines, lambda: (WAIT, 1024), tls_for(certificate=CLIENT, alpn="h2")
                )
                stream.write(b"drawer\n")
                assert await owner.has(7) == b"reward\n"
                stream.close(WAIT)
                assert await asyncio.wait_for(owner.lost, WAIT) is None

        runner.run(talk())
        assert server.wait(WAIT) == 0


def test_a_pin_is_hex_or_base64() -> None:
    digest = bytes(range(32))
    assert pin_of(digest.hex()) == pin_of(digest.hex().upper()) == digest
    assert pin_of("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == digest
    for wrong in ("", "00" * 31, "AAEC", "g" * 64, digest.hex() + "00", "ÿ" * 44):
        with pytest.raises(ValueError, match="SHA-256 of a public key"):
            pin_of(wrong)


def test_a_server_of_which_nothing_is_expected_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="anybody"):
        ExpectedServer()
