"""A directory with a configuration and everything it names, for the tests of `tlsproxy.tls`."""

from __future__ import annotations

import contextlib
import ssl
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import yaml

from tlsproxy.errors import MaterialError
from tlsproxy.snapshot.files import Inputs, read_inputs
from tlsproxy.snapshot.generation import Generation, Proposal, propose
from tlsproxy.snapshot.name_resolution import NameResolver, names_of
from tlsproxy.snapshot.validation import InputReading
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.verification import Judge, shake_hands

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tlsproxy.tls.pki import Issued

ROOT = Authority.create("test root")
OTHER = Authority.create("other root")
SERVER = ROOT.issue(dns=["localhost"], ips=["127.0.0.1"], server=True)
CLIENT = ROOT.issue(common_name="alice", organizational_unit="platform", client=True)


def config_text(**changes: Mapping[str, Any] | list[Any]) -> str:
    """A section that is given is merged into the usual one, a list replaces it."""
    sections: dict[str, Any] = {
        "service": {"host": "127.0.0.1", "http_port": 0, "enable_tls": True, "verify_https_client_certificate": True},
        "tls": {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem"},
        "upstream": {"rest": "http://127.0.0.1:16333"},
        "roles": {"admin": {"access": "m"}},
        "identities": [{"name": "platform", "match": {"ou": "platform"}, "role": "admin"}],
    }
    for section, values in changes.items():
        sections[section] = values if isinstance(values, list) else {**sections.get(section, {}), **values}
    if "nodes" in sections["upstream"]:
        del sections["upstream"]["rest"]
    return yaml.dump(sections, Dumper=yaml.CSafeDumper)


@dataclass
class SnapshotSite:
    directory: Path
    environ: dict[str, str] = field(default_factory=dict)
    read: Inputs | None = None

    @property
    def config(self) -> Path:
        return self.directory / "tlsproxy.yaml"

    def configure(self, **changes: Mapping[str, Any] | list[Any]) -> None:
        self.config.write_text(config_text(**changes))

    def write(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    def serve(self, issued: Issued) -> None:
        self.write("server.pem", issued.chain_pem)
        self.write("server.key", issued.key_pem)

    def build(self, previous: Generation | None = None, **more: Any) -> Generation:
        """Of what the files hold, all of which must be good."""
        proposal = self.propose(previous, **more)
        for fault in proposal.faults.values():
            raise MaterialError("", fault.text)
        assert proposal.generation is not None
        return proposal.generation

    def propose(
        self, previous: Generation | None = None, *, inputs: Inputs | None = None, now: float | None = None, **more: Any
    ) -> Proposal:
        inputs = inputs or read_inputs(self.config, self.environ, earlier=self.read)
        self.read = inputs
        config = inputs.loaded.config
        started = previous.started if previous is not None else config
        resolved = NameResolver().resolve(names_of(config, started), 5)
        reading = InputReading(self.config, self.environ, inputs, resolved, {}, started)
        return propose(reading, previous, time.time() if now is None else now, **more)

    def digest(self) -> str:
        return read_inputs(self.config, self.environ).digest


def site(directory: Path, **changes: Mapping[str, Any] | list[Any]) -> SnapshotSite:
    made = SnapshotSite(directory)
    made.configure(**changes)
    made.serve(SERVER)
    made.write("ca.pem", ROOT.certificate_pem)
    return made


def client_context(issued: Issued | None, directory: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=ROOT.certificate_pem.decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if issued is not None:
        path = directory / f"client-{issued.serial:x}.pem"
        path.write_bytes(issued.chain_pem + issued.key_pem)
        context.load_cert_chain(path)
    return context


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None, judge: Judge | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """(server's side, client's side), both finished, and the client has read what came after. Raises ssl.SSLError."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    answerer = server.wrap_bio(upward, downward, server_side=True)
    caller = client.wrap_bio(downward, upward, session=session)
    waiting = [caller, answerer]
    for turn in range(10):
        side = (caller, answerer)[turn % 2]
        if side in waiting:
            try:
                if side is answerer and judge is not None:
                    shake_hands(side, judge)
                else:
                    side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    with contextlib.suppress(ssl.SSLWantReadError):
        caller.read(1)  # tickets, had there been any
    return answerer, caller


def hour(hours: float) -> timedelta:
    return timedelta(hours=hours)
