"""A directory with a CA, certificates and a configuration, as an operator would have it."""

from __future__ import annotations

import copy
import itertools
import ssl
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from tlsproxy.tls.pki import Authority

CLIENTS: dict[str, dict[str, Any]] = {
    "admin": {"common_name": "alice", "organizational_unit": "platform"},
    "ingest": {"common_name": "ingest-7"},
    "search": {"uris": ["spiffe://example.org/search/web"]},
    "stranger": {"common_name": "nobody"},
}

CONFIG: dict[str, Any] = {
    "service": {"host": "127.0.0.1", "http_port": 0, "grpc_port": None},
    "tls": {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem", "poll_interval": 2},
    "roles": {
        "admin": {"access": "m"},
        "ingest": {"access": [{"collection": "docs", "access": "rw"}]},
        "search": {"access": "r"},
    },
    "identities": [
        {"name": "platform", "match": {"ou": "platform"}, "role": "admin"},
        {"name": "ingest-jobs", "match": {"cn": "ingest-*"}, "role": "ingest"},
        {"name": "search-svc", "match": {"uri": "spiffe://example.org/search/*"}, "role": "search"},
    ],
    "audit": {"dir": "-", "flush_interval": 0.002},
    "admin": {"listen": "127.0.0.1:0"},
    "limits": {"drain_grace": 0},
}


class Site:
    """``authority`` issued everything here. Each client of ``CLIENTS`` has NAME.pem and NAME.key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create()
        self._numbers = itertools.count()
        self.write("ca.pem", self.authority.certificate_pem)
        self.issue("server", common_name="localhost", dns=["localhost"], ips=["127.0.0.1"], server=True)
        for name, subject in CLIENTS.items():
            self.issue(name, client=True, **subject)

    def write(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

    def replace(self, name: str, data: bytes) -> None:
        """Rename-over: whoever reads it sees the old bytes or the new ones."""
        self.write(f".{name}.new", data).replace(self.directory / name)

    def issue(self, name: str, *, authority: Authority | None = None, **names: Any) -> int:
        """Writes NAME.pem and NAME.key; the serial number."""
        issued = (authority or self.authority).issue(**names)
        self.write(f"{name}.pem", issued.chain_pem)
        self.write(f"{name}.key", issued.key_pem)
        return issued.serial

    def serial(self, name: str) -> int:
        """Of NAME.pem as it is now."""
        return x509.load_pem_x509_certificate((self.directory / f"{name}.pem").read_bytes()).serial_number

    def write_config(
        self,
        upstream: str | list[dict[str, Any]],
        /,
        *,
        grpc: str | None = None,
        **sections: dict[str, Any] | list[Any] | int,
    ) -> Path:
        """A new file each time; a section that is given is merged into the usual one, a list replaces it.

        ``upstream`` is the URL of Qdrant's REST API, or the list of its nodes. ``grpc`` is the URL of an upstream's
        gRPC API: it is served then, on a port of its own.
        """
        config = copy.deepcopy(CONFIG)
        config["upstream"] = {"rest": upstream} if isinstance(upstream, str) else {"nodes": upstream}
        if grpc is not None:
            config["upstream"]["grpc"] = grpc
            config["service"]["grpc_port"] = 0
        for name, section in sections.items():
            config[name] = config.get(name, {}) | section if isinstance(section, dict) else section
        path = self.directory / f"tlsproxy-{next(self._numbers)}.yaml"
        path.write_text(yaml.dump(config, Dumper=yaml.CSafeDumper))
        return path

    def edit_config(self, path: Path, **sections: dict[str, Any] | list[Any]) -> None:
        """As an operator does while the gateway runs: sections are merged into those of the file, a list replaces."""
        config = yaml.safe_load(path.read_text())
        for name, section in sections.items():
            config[name] = config.get(name, {}) | section if isinstance(section, dict) else section
        self.replace(path.name, yaml.dump(config, Dumper=yaml.CSafeDumper).encode())

    def client(self, name: str | None = "admin") -> ssl.SSLContext:
        """A client context that trusts the CA and, unless ``name`` is None, has that client's certificate."""
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        if name is not None:
            context.load_cert_chain(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        return context
