"""Our commands on broken set-ups say what is wrong and what to do: tests/data/golden has what they say.

One gateway runs while its files are broken and mended in turn. `make golden` writes the files anew.
"""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from support.certificates import certified
from support.gateway import DEADLINE, Gateway
from support.grpc_upstream import GrpcUpstream, failing, replying
from support.kept_connection import Caller
from support.polling import until
from support.site import CONFIG, Site
from support.tls_front import TlsFront
from support.tls_server import server_context
from support.transcript import GOLDEN, Transcript, kind_of, output_of
from support.upstream import QDRANT, ScriptedUpstream, plain

from tlsproxy.authz.tokens import mint
from tlsproxy.cli import terminal
from tlsproxy.cli.admin_client import AdminClient
from tlsproxy.tls.pki import Authority

CHECK = "check --config tlsproxy.yaml"
CONNECT = "check --config tlsproxy.yaml --connect"
RELOAD = "reload --config tlsproxy.yaml"
DRY_RUN = "reload --config tlsproxy.yaml --dry-run"
STATUS = "status --config tlsproxy.yaml"
ALICE = "explain --config tlsproxy.yaml alice.pem GET /collections"
CRL = {"crl": ["ca.crl"]}
SERVER = {"common_name": "localhost", "dns": ["localhost"], "ips": ["127.0.0.1"], "server": True}
PERSON = {"common_name": "alice", "organizational_unit": "platform", "client": True}
DAY = timedelta(days=1)
MISSING = "Must provide an API key or an Authorization bearer token"
WRONG = "Invalid API key or JWT"


def unauthorized(text: str) -> bytes:
    return f"HTTP/1.1 401 Unauthorized\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


@dataclass
class Bench:
    """A gateway and its files, which set-ups break. ``closing`` ends with the set-up."""

    site: Site
    gateway: Gateway
    rest: ScriptedUpstream
    grpc: GrpcUpstream
    sound: dict[str, bytes] = field(default_factory=dict)
    usual: dict[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admin = AdminClient(f"unix:{self.directory / 'admin.sock'}")
        self.sound = {path.name: path.read_bytes() for path in self.directory.iterdir() if path.is_file()}

    @property
    def directory(self) -> Path:
        return self.site.directory

    def begin(self, title: str, *, whole: bool) -> None:
        self.closing = ExitStack()
        if not whole:
            for command in (STATUS, DRY_RUN, *(() if self.usual else (CHECK,))):
                self.usual[kind_of(command)] = frozenset(output_of(command, self.directory)[1])
        self.transcript = Transcript(title, self.directory, {} if whole else self.usual)

    def run(self, *commands: str) -> None:
        for command in commands:
            self.transcript.run(command)

    def configure(self, **sections: object) -> None:
        self.site.edit_config(self.directory / "tlsproxy.yaml", **sections)  # type: ignore[arg-type]

    def wait(self, beginning: str, *parts: str) -> None:
        """Until the headline begins so, and names the parts."""

        def told() -> bool:
            headline = str(self.admin.status()["readiness"]["headline"])
            return headline.startswith(beginning) and all(part in headline for part in parts)

        until(told)

    def mend(self) -> None:
        self.closing.close()
        for path in self.directory.iterdir():
            if path.is_file() and path.name not in self.sound:
                path.unlink()
        for name, data in self.sound.items():
            self.site.replace(name, data)
        self.rest.probe, self.grpc.probe = plain(), replying(b"")
        self.admin.reload("?force=1")
        self.wait("serving")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with TemporaryDirectory(prefix="tlsproxy-") as directory:  # beside pytest's, which others may not enter
        yield from running(Path(directory))


def running(directory: Path) -> Iterator[Bench]:
    directory.chmod(0o755)
    site = Site(directory)
    site.issue("alice", **PERSON)
    with ScriptedUpstream(probe=plain(QDRANT)) as rest, GrpcUpstream() as calls:
        written = site.write_config(
            rest.url, grpc=calls.url, admin={"listen": f"unix:{site.directory / 'admin.sock'}"},
            tls={"poll_interval": 3600, "cert_ttl": None},
        )  # fmt: skip
        config = written.rename(site.directory / "tlsproxy.yaml")
        # Reloads are asked for: one that the gateway makes by itself would come before.
        late = {"WATCHFILES_FORCE_POLLING": "1", "WATCHFILES_POLL_DELAY_MS": "3600000"}
        with Gateway(config, **late) as gateway:
            yield Bench(site, gateway, rest, calls)


Setup = Callable[[Bench], None]
SETUPS: dict[str, tuple[str, Setup]] = {}
"""By the name of the golden file: its first line, and what breaks and asks."""


def setup(title: str) -> Callable[[Setup], Setup]:
    def entered(function: Setup) -> Setup:
        SETUPS[f"{len(SETUPS):02}-{function.__name__.replace('_', '-')}"] = title, function
        return function

    return entered


@setup("A sound set-up. The other files leave out (…) what these commands say here.")
def sound(bench: Bench) -> None:
    bench.run(CHECK, CONNECT, ALICE, RELOAD, DRY_RUN, STATUS)


# Certificates of clients


@setup("Alice's certificate is from a CA that tls.ca_cert does not have.")
def client_of_another_ca(bench: Bench) -> None:
    bench.site.issue("alice", authority=Authority.create("Other CA"), **PERSON)
    with suppress(ssl.SSLError, ConnectionError, EOFError), Caller(bench.gateway, bench.site.client("alice")) as caller:
        caller.ask()
    bench.gateway.audited(event="handshake", reason="unknown_ca")
    bench.run(ALICE, STATUS)


@setup("Alice's certificate has expired.")
def client_certificate_expired(bench: Bench) -> None:
    bench.site.issue("alice", not_before=datetime.now(UTC) - 3 * DAY, lifetime=DAY, **PERSON)
    bench.run(ALICE)


@setup("Alice's certificate begins tomorrow.")
def client_certificate_not_yet_valid(bench: Bench) -> None:
    bench.site.issue("alice", not_before=datetime.now(UTC) + DAY, lifetime=DAY, **PERSON)
    bench.run(ALICE)


@setup("Alice is connected, and a CRL is added that revokes her certificate.")
def client_certificate_revoked(bench: Bench) -> None:
    bench.configure(tls=CRL)
    bench.site.write("ca.crl", bench.site.authority.crl_pem([bench.site.serial("alice")]))
    with Caller(bench.gateway, bench.site.client("alice")) as caller:
        assert caller.ask().status == 200
        bench.run(CHECK, DRY_RUN, RELOAD, ALICE)


@setup("Alice shows the certificate of a server.")
def server_certificate_used_by_a_client(bench: Bench) -> None:
    bench.run(ALICE.replace("alice", "server"))


@setup("No rule of identities matches the certificate.")
def client_without_a_role(bench: Bench) -> None:
    bench.run(ALICE.replace("alice", "stranger"))


# The server's certificate and key


@setup("The new server certificate has expired already.")
def server_certificate_expired(bench: Bench) -> None:
    bench.site.issue("server", not_before=datetime.now(UTC) - 3 * DAY, lifetime=DAY, **SERVER)
    bench.run(CHECK, f"{CHECK} --reload", DRY_RUN, RELOAD, STATUS)


@setup("The renewed key is 0600 root:root, as certbot writes it, and the service is another user.")
def key_of_root(bench: Bench) -> None:
    for name in ("tlsproxy.yaml", "ca.pem", "server.pem"):
        (bench.directory / name).chmod(0o644)
    bench.run(f"{CHECK} --as-user nobody", f"{CHECK} --as-user nobody --reload")


@setup("The server certificate is renewed, and the key is still the former one.")
def half_replaced_pair(bench: Bench) -> None:
    bench.site.replace("server.pem", bench.site.authority.issue(**SERVER).chain_pem)  # type: ignore[arg-type]
    bench.run(CHECK, DRY_RUN, RELOAD, STATUS)


@setup("The server's file has its certificate without the intermediate that signed it.")
def chain_without_its_intermediate(bench: Bench) -> None:
    issued = Authority.create("Public Root").intermediate("Public Intermediate").issue(**SERVER)  # type: ignore[arg-type]
    bench.site.replace("server.pem", issued.certificate_pem)
    bench.site.replace("server.key", issued.key_pem)
    bench.run(CHECK, RELOAD, STATUS)


# CAs and CRLs


@setup("A CA of tls.ca_cert may not sign certificates: its key usage lacks keyCertSign.")
def ca_without_key_cert_sign(bench: Bench) -> None:
    authority = bench.site.authority
    old = authority._certificate()
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number)
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(old.not_valid_after_utc)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(
        x509.KeyUsage(True, False, False, False, False, False, True, False, False), critical=True
    )
    made = builder.sign(authority._key(), hashes.SHA256())
    bench.site.replace("ca.pem", made.public_bytes(serialization.Encoding.PEM))
    bench.run(CHECK, RELOAD, ALICE, STATUS)


@setup("The CRL is past its next update.")
def crl_past_its_next_update(bench: Bench) -> None:
    now = datetime.now(UTC)
    crl = bench.site.authority.crl_pem(this_update=now - 9 * DAY, next_update=now - 2 * DAY)
    bench.site.write("ca.crl", crl)
    bench.configure(tls=CRL)
    bench.run(CHECK, DRY_RUN, RELOAD, STATUS, ALICE)


@setup("The CRL is another CA's.")
def crl_of_another_ca(bench: Bench) -> None:
    bench.site.write("ca.crl", Authority.create("Other CA").crl_pem())
    bench.configure(tls=CRL)
    bench.run(CHECK, RELOAD, STATUS, ALICE)


# The upstream


@setup("Qdrant is down.")
def qdrant_down(bench: Bench) -> None:
    bench.configure(upstream={"rest": "http://127.0.0.1:1", "grpc": "http://127.0.0.1:1"})
    bench.run(CONNECT, RELOAD)
    bench.wait("NOT READY", "upstream_rest", "upstream_grpc")
    bench.run(STATUS)


@setup("Qdrant has service.api_key, and the gateway has no key for it.")
def qdrant_wants_a_key(bench: Bench) -> None:
    bench.rest.probe = plain(unauthorized(MISSING))
    bench.grpc.probe = failing(grpc.StatusCode.UNAUTHENTICATED, MISSING)
    bench.wait("NOT READY", "upstream_rest", "upstream_grpc")
    bench.run(CONNECT, STATUS)


@setup("The gateway's key for Qdrant is not Qdrant's.")
def qdrant_refuses_the_key(bench: Bench) -> None:
    bench.rest.probe = plain(unauthorized(WRONG))
    bench.grpc.probe = failing(grpc.StatusCode.UNAUTHENTICATED, WRONG)
    bench.site.write("qdrant.key", b"a-key-of-forty-characters-or-so-of-yesterday")
    bench.configure(upstream={"api_key_file": "qdrant.key"})
    bench.run(CONNECT, RELOAD)
    bench.wait("NOT READY", "upstream_rest", "upstream_grpc")
    bench.run(STATUS)


@setup("upstream.rest and upstream.grpc are swapped.")
def rest_and_grpc_swapped(bench: Bench) -> None:
    bench.configure(upstream={"rest": bench.grpc.url, "grpc": bench.rest.url})
    bench.run(CONNECT, RELOAD)
    bench.wait("NOT READY", "upstream_rest", "upstream_grpc")
    bench.run(STATUS)


@setup("Qdrant has service.enable_tls, and upstream.rest speaks plain HTTP to it.")
def qdrant_speaks_tls(bench: Bench) -> None:
    url = bench.closing.enter_context(tls_server(bench.directory))
    bench.configure(upstream={"rest": url})
    bench.run(CONNECT, RELOAD)
    bench.wait("NOT READY")
    bench.run(STATUS)


@contextmanager
def tls_server(directory: Path) -> Iterator[str]:
    """Ends each connection after its handshake, or without one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, suppress(OSError):
                        sock.settimeout(DEADLINE)
                        context.wrap_socket(sock, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)


@setup("The name in upstream.rest does not resolve.")
def upstream_name_unknown(bench: Bench) -> None:
    bench.configure(upstream={"rest": "http://qdrant.invalid:6333"})
    bench.run(CONNECT, RELOAD)
    bench.wait("NOT READY")
    bench.run(STATUS)


# Addresses and places


@setup("Listeners: one on a unix socket, one on an address that another machine has, two on one port.")
def addresses_that_cannot_be(bench: Bench) -> None:
    bench.configure(service={"host": "unix:/run/tlsproxy/rest.sock"})
    bench.run(CHECK)
    bench.configure(service={"host": "192.0.2.1", "http_port": 6333, "grpc_port": 6333})
    bench.run(CHECK)
    bench.configure(service={"grpc_port": None})
    bench.run(CHECK)


@setup("The directory of the audit log is a file.")
def audit_directory_not_writable(bench: Bench) -> None:
    bench.site.write("audit", b"")
    bench.configure(audit={"dir": str(bench.directory / "audit")})
    bench.run(CHECK, RELOAD)


# The configuration


def rules(**changes: object) -> list[dict[str, object]]:
    """The usual rules, with a change of the first."""
    first, *others = CONFIG["identities"]
    return [first | changes, *others]


@setup("A rule gives a role that is not configured, and a key is misspelt.")
def mistakes_in_the_configuration(bench: Bench) -> None:
    bench.configure(identities=rules(role="amdin"), limits={"conections": 100})
    bench.run(CHECK, DRY_RUN, RELOAD, STATUS)


@setup("An API key of five characters.")
def api_key_too_short(bench: Bench) -> None:
    bench.configure(service={"api_key": "short"})
    bench.run(CHECK)


@setup("The port of REST is another one now.")
def port_changed(bench: Bench) -> None:
    bench.configure(service={"http_port": 6443})
    bench.run(CHECK, DRY_RUN, RELOAD, STATUS)


@setup("A changed rule would cut all connected clients, and limits.mass_cut allows none.")
def mass_cut_held_back(bench: Bench) -> None:
    with Caller(bench.gateway, bench.site.client("alice")) as caller:
        assert caller.ask().status == 200
        bench.configure(limits={"mass_cut": {"number": 0}})
        bench.admin.reload()
        bench.configure(identities=rules(match={"ou": "plattform"}))
        bench.run(DRY_RUN, RELOAD, STATUS)


# Warnings of check


@setup("The chain of the server ends with an expired cross-signed certificate that nobody needs.")
def chain_with_a_needless_end(bench: Bench) -> None:
    root = Authority.create("Root")
    middle = root.intermediate("Intermediate")
    old = certified(root, Authority.create("Old Root"), not_after=datetime.now(UTC) - timedelta(seconds=20))
    issued = middle.issue(**SERVER)  # type: ignore[arg-type]
    bench.site.replace("server.pem", issued.certificate_pem + middle.certificate_pem + old.certificate_pem)
    bench.site.replace("server.key", issued.key_pem)
    bench.run(CHECK)


@setup("CAs beside a good one that can vouch for no client: by key usage, purpose, key and signature; and 30 more.")
def cas_that_vouch_for_nobody(bench: Bench) -> None:
    key = rsa.generate_private_key(65537, 2048)
    made = [
        ca("No Signatures", key, x509.KeyUsage(True, False, False, False, False, False, True, False, False)),
        ca("Servers Only", key, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
        ca("Short Key", rsa.generate_private_key(65537, 1024)),  # noqa: S505 - it is to be refused
        *(Authority.create(f"Public CA {number}").certificate_pem for number in range(30)),
    ]
    bench.site.replace("ca.pem", b"".join([bench.site.authority.certificate_pem, *made]))
    bench.transcript.keep("error", "warning")
    bench.run(CHECK)


def ca(name: str, key: rsa.RSAPrivateKey, *extensions: x509.ExtensionType) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + 900 * DAY)
    for extension in (x509.BasicConstraints(ca=True, path_length=0), *extensions):
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@setup("The port of REST is another one now, and a socket unit still holds the former one.")
def port_of_a_socket_unit(bench: Bench) -> None:
    units = bench.directory / "units"
    units.mkdir()
    bench.closing.callback(shutil.rmtree, units)
    config = bench.directory / "tlsproxy.yaml"
    (units / "tlsproxy.service").write_text(f"[Service]\nExecStart=/opt/bin/tlsproxy run --config {config}\n")
    (units / "tlsproxy.socket").write_text("[Socket]\nListenStream=127.0.0.1:6333\nFileDescriptorName=rest\n")
    (units / "sockets.target.wants").mkdir()
    (units / "sockets.target.wants" / "tlsproxy.socket").symlink_to(units / "tlsproxy.socket")
    bench.configure(service={"http_port": 6443})
    bench.run(CHECK.replace("tlsproxy.yaml", str(config)))


# Questions to explain, and tokens


@setup("Questions that were typed in haste.")
def explain_in_haste(bench: Bench) -> None:
    bench.run(
        ALICE.replace("alice", "missing"),
        ALICE.replace("alice.pem", "none"),
        ALICE.replace("alice.pem GET /collections", "ingest.pem put /collections/docs/points"),
        ALICE.replace("alice.pem GET /collections", "CN=ingest-9 grpc qdrant.Points/Upsert"),
        ALICE.replace("alice.pem GET /collections", "ingest.pem GET /collections/other"),
    )


@setup("A token whose exp is in milliseconds.")
def token_in_milliseconds(bench: Bench) -> None:
    token = mint("a-key-for-tokens-of-forty-characters-here", {"access": "r", "exp": 1 << 42})
    bench.site.write("token", token.encode())
    bench.run("token show token")


# Certificates towards Qdrant


def over_tls(bench: Bench, clients: Authority | None = None, alpn: tuple[str, ...] = ("h2",)) -> Authority:
    """Has both APIs speak TLS, with certificates of the CA that is returned, in `up-ca.pem`.

    ``clients`` issues the certificates that they ask for. gRPC then says by an end alone that it wants another one.
    """
    authority = Authority.create("Qdrant CA")
    bench.site.write("up-ca.pem", authority.certificate_pem)
    issued = authority.issue(ips=["127.0.0.1"], uris=["spiffe://example.org/qdrant"], server=True)
    rest = ScriptedUpstream(probe=plain(QDRANT), tls=server_context(bench.directory, issued, clients))
    calls = TlsFront(server_context(bench.directory, issued, clients, alpn), bench.grpc.port)
    for each in (rest, calls):
        bench.closing.enter_context(each)
    bench.configure(upstream={"rest": rest.url, "grpc": calls.url, "tls": {"ca_cert": "up-ca.pem"}})
    bench.transcript.keep("error", "warning", "upstream.", "published", "failed", "  setting", "tlsproxy")
    return authority


@setup("Qdrant is reached over TLS, and is another server than upstream.tls says.")
def qdrant_is_another_server(bench: Bench) -> None:
    over_tls(bench, alpn=("http/1.1",))
    for tls in (
        {"ca_cert": "up-ca.pem"},
        {"ca_cert": "ca.pem"},
        {"ca_cert": "up-ca.pem", "server_name": "qdrant.internal"},
        {"ca_cert": "up-ca.pem", "spiffe_id": "spiffe://example.org/other"},
        {"ca_cert": "up-ca.pem", "spki_sha256": ["00" * 32]},
    ):
        bench.configure(upstream={"tls": tls})
        bench.run(CONNECT)


@setup("upstream.rest and upstream.grpc begin with https://, and Qdrant speaks no TLS.")
def qdrant_speaks_no_tls(bench: Bench) -> None:
    secret = {"rest": bench.rest.url.replace("http", "https"), "grpc": bench.grpc.url.replace("http", "https")}
    bench.configure(upstream=secret)
    bench.run(CHECK)
    bench.configure(upstream={"tls": {"ca_cert": "ca.pem"}})
    bench.run(CONNECT)


@setup("Qdrant wants a client certificate: the gateway has none, then one of another CA, then one that has expired.")
def qdrant_wants_a_certificate(bench: Bench) -> None:
    authority = over_tls(bench, Authority.create("Clients"))
    bench.run(CONNECT, RELOAD)
    bench.wait("NOT READY", "upstream_rest", "upstream_grpc")
    bench.run(STATUS)
    bench.configure(upstream={"tls": {"ca_cert": "up-ca.pem", "cert": "up.pem", "key": "up.key"}})
    bench.run(CHECK)
    for more in ({}, {"not_before": datetime.now(UTC) - 3 * DAY, "lifetime": DAY}):
        issued = authority.issue(common_name="gateway", client=True, **more)  # type: ignore[arg-type]
        bench.site.write("up.pem", issued.chain_pem)
        bench.site.write("up.key", issued.key_pem)
        bench.run(CONNECT)
    bench.site.write("up.key", authority.issue(client=True).key_pem)
    bench.run(CHECK, RELOAD)


# Before a cluster, behind a balancer


@setup("Pieces of the configuration: missing, of no directory, not YAML, set twice, naming others; none at all.")
def pieces_of_the_configuration(bench: Bench) -> None:
    pieces = bench.directory / "conf.d"
    bench.transcript.keep("error", "warning", "includes", "tlsproxy")
    bench.configure(include=["limits.yaml"])
    bench.run(CHECK)
    bench.configure(include=["conf.d/*.yaml"])
    bench.run(CHECK)
    pieces.mkdir()
    bench.closing.callback(shutil.rmtree, pieces)
    bench.run(CHECK)
    (pieces / "10-limits.yaml").write_text("limits:\n  connections: 100\n")
    (pieces / "20-again.yaml").write_text("limits:\n  connections: 200\n")
    (pieces / "30-others.yaml").write_text("include: ../tlsproxy.yaml\n")
    (pieces / "40-misspelt.yaml").write_text("limits:\n  conections: 1\n")
    bench.run(CHECK)
    (pieces / "50-broken.yaml").write_text("limits: [\n")
    bench.run(CHECK)
    bench.configure(include=["*.yaml"])
    bench.run(CHECK)


def upstream_of(bench: Bench, **upstream: object) -> None:
    """In place of the section, which sections are merged into otherwise."""
    config = yaml.safe_load((bench.directory / "tlsproxy.yaml").read_text())
    bench.site.replace("tlsproxy.yaml", yaml.safe_dump(config | {"upstream": upstream}).encode())


@setup("Nodes: beside rest and grpc, with one name or one address, all drained, with bad URLs; one is down.")
def nodes(bench: Bench) -> None:
    first = {"name": "a", "rest": bench.rest.url, "grpc": bench.grpc.url}
    second = {"name": "b", "rest": "http://127.0.0.1:1", "grpc": "http://127.0.0.1:2"}
    bench.transcript.keep("error", "warning", "upstream", "tlsproxy")
    bench.configure(upstream={"nodes": [first, second]})
    bench.run(CHECK)
    for given in (
        [first, second | {"name": "a"}],
        [first, first | {"name": "b"}],
        [first | {"drain": True}, second | {"drain": True}],
        [first, {"name": "b", "rest": "10.0.0.7:6333", "grpc": "http://10.0.0.7"}],
        [first, {"name": "b", "rest": "http://127.0.0.1:1"}],
    ):
        upstream_of(bench, nodes=given)
        bench.run(CHECK)
    upstream_of(bench, nodes=[first, second])
    bench.run(CONNECT)


class WrongPassword(socketserver.StreamRequestHandler):
    """A store that lets nobody in."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")


@setup("The store of several gateways: a URL of another kind, no CA, no library, not there, and with another password.")
def store_of_several_gateways(bench: Bench) -> None:
    bench.transcript.keep("error", "warning", "shares", "tlsproxy")
    for shared in (
        {"url": "http://127.0.0.1:6379"},
        {"url": "rediss://127.0.0.1:6379"},
        {"url": "redis://127.0.0.1:6379", "ca_cert": "ca.pem"},
        {"url": "redis://127.0.0.1:6379", "ca_cert": None, "user": "gateway"},
    ):
        bench.configure(shared=shared)
        bench.run(CHECK)
    bench.site.write("store-password", b"not-the-stores-password")
    bench.configure(shared={"password_file": "store-password"})
    with patch.dict(sys.modules, redis=None):
        bench.run(CHECK)
    bench.configure(shared={"url": "redis://127.0.0.1:1"})
    bench.run(CONNECT)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WrongPassword) as store:
        threading.Thread(target=store.serve_forever).start()
        bench.configure(shared={"url": f"redis://127.0.0.1:{store.server_address[1]}"})
        bench.run(CONNECT)
        store.shutdown()


@setup(
    "Balancers of proxy_protocol: no list, none, no networks; then one that is not listed, and one without a header."
)
def balancers(bench: Bench) -> None:
    bench.transcript.keep("")
    for given, checks in (
        ("10.0.0.0/8", []),
        (["10.0.0.7/8", "balancer", "unix", "::ffff:10.0.0.0/104"], ["10.0.0.7"]),
        (["0.0.0.0/0"], ["10.0.0.7"]),
    ):
        health = {"listen": "127.0.0.1:0", "proxy_protocol": {"from": checks}}
        bench.configure(service={"proxy_protocol": {"from": given}}, health=health)
        bench.run(CHECK)
    bench.configure(health={"listen": None, "proxy_protocol": None})
    for known, reason in (("10.0.0.0/8", "proxy_protocol_untrusted"), ("127.0.0.1", "proxy_protocol_missing")):
        bench.configure(service={"proxy_protocol": {"from": [known]}})
        bench.admin.reload("?force=1")
        with (
            suppress(ssl.SSLError, ConnectionError, EOFError),
            Caller(bench.gateway, bench.site.client("alice")) as caller,
        ):
            caller.ask()
        bench.gateway.audited(reason=reason)
        bench.run(STATUS)


@setup(
    "Unix sockets of listeners: beside a port, relative, too long, with another mode, in no directory, where a file is."
)
def unix_sockets(bench: Bench) -> None:
    bench.transcript.keep("error", "warning", "listens", "tlsproxy")
    path = str(bench.directory / "rest.sock")
    Path(path).write_text("no socket")
    wrong = (
        {"unix": path, "port": 6333},
        {"unix": "rest.sock"},
        {"unix": f"/run/{'x' * 103}"},
        {"unix": "@tlsproxy", "unix_mode": "0600"},
    )
    bench.configure(listeners=[{"protocols": ["rest"], **one} for one in wrong])
    bench.run(CHECK)
    bench.configure(
        listeners=[{"unix": name, "protocols": ["rest"]} for name in ("/run/missing/rest.sock", path)],
        health={"listen": "unix:/run/missing/health.sock"},
    )
    bench.run(CHECK)


@pytest.mark.parametrize("name", SETUPS)
def test_the_commands_say_what_is_wrong(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    title, broken = SETUPS[name]
    if "key-of-root" in name and os.geteuid():
        pytest.skip("needs root, to be somebody else")
    monkeypatch.chdir(bench.directory)
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", str(bench.directory / "units"))
    monkeypatch.setattr(terminal, "WIDTH", 1000)  # where lines break depends on the lengths of paths and ports
    bench.begin(title, whole=broken is sound)
    try:
        broken(bench)
        bench.transcript.compare(name)
    finally:
        bench.mend()


def test_each_golden_file_has_its_setup() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SETUPS)
