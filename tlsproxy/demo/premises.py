"""The demo's directory: a development CA, certificates, configuration, logs and audit files.

It replaces only a directory that has the marker file of an earlier demo, and refuses any other that is not empty. Keys
are readable by their owner alone.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlsproxy.errors import MaterialError
from tlsproxy.tls.pki import Authority

if TYPE_CHECKING:
    from pathlib import Path

    from tlsproxy.demo.upstream import Ports
    from tlsproxy.tls.pki import Issued

COLLECTION = "docs"

_MARKER = ".tlsproxy-demo"
_MADE = ("certs", "audit", "logs")
_CONFIG = """\
# Written by `tlsproxy demo`; it is a complete configuration of the gateway. Paths are relative to this file.
service:
  host: 127.0.0.1
  http_port: 0          # 0: any free port; the gateway logs the one it got
  grpc_port: 0
  enable_tls: true
  verify_https_client_certificate: true
tls:
  cert: certs/server/current/server.pem
  key: certs/server/current/server.key
  ca_cert: certs/ca.pem
  crl: [certs/ca.crl]
  poll_interval: 1
upstream:
  rest: http://127.0.0.1:{rest}
  grpc: http://127.0.0.1:{grpc}
roles:
  admin: {{access: m}}
  ingest: {{access: [{{collection: {collection}, access: rw}}]}}
  search: {{access: r}}
identities:
  - {{name: platform, match: {{ou: platform}}, role: admin}}
  - {{name: ingest-jobs, match: {{cn: "ingest-*"}}, role: ingest}}
  - {{name: search-svc, match: {{uri: "spiffe://example.org/search/*"}}, role: search}}
audit: {{enabled: true, dir: audit, rotation: daily, max_log_files: 7}}
admin: {{listen: "127.0.0.1:0"}}
"""


@dataclass(frozen=True, slots=True)
class Premises:
    """Paths of the demo, all below the absolute ``root``."""

    root: Path
    authority: Authority

    @property
    def ca(self) -> Path:
        return self.root / "certs" / "ca.pem"

    @property
    def config(self) -> Path:
        return self.root / "tlsproxy.yaml"

    @property
    def ready_file(self) -> Path:
        return self.root / "ready.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def certificate(self, client: str) -> Path:
        return self.root / "certs" / f"{client}.pem"

    def key(self, client: str) -> Path:
        return self.root / "certs" / f"{client}.key"

    def write_config(self, upstream: Ports) -> None:
        text = _CONFIG.format(rest=upstream.rest, grpc=upstream.grpc, collection=COLLECTION)
        self.config.write_text(text, encoding="utf-8")

    def rotate_server_certificate(self) -> int:
        """Replace server certificate and key together. Returns the new serial number.

        Both are in a new directory, and one rename swaps the link to it, as with certbot and Kubernetes.
        """
        issued = self.authority.issue(
            common_name="localhost", organization="tlsproxy demo", dns=("localhost",), ips=("127.0.0.1",), server=True
        )
        versions = self.root / "certs" / "server"
        version = versions / f"{issued.serial:x}"
        version.mkdir(parents=True)
        _write_pair(issued, version / "server.pem", version / "server.key")
        link = versions / ".next"
        link.symlink_to(version.name)
        link.replace(versions / "current")
        return issued.serial


def prepare(directory: Path) -> Premises:
    """A fresh directory, in place of an earlier demo's. Raises MaterialError if it is another program's."""
    root = directory.resolve()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    marker = root / _MARKER
    if not marker.exists() and any(root.iterdir()):
        raise MaterialError(str(root), "is not empty and was not made by `tlsproxy demo`: choose another --dir")
    marker.write_text("Made by `tlsproxy demo`, which replaces all beside this file.\n", encoding="utf-8")
    for name in _MADE:
        if (root / name).exists():
            shutil.rmtree(root / name)
        (root / name).mkdir()
    premises = Premises(root, Authority.create("tlsproxy demo CA"))
    premises.ready_file.unlink(missing_ok=True)
    premises.ca.write_bytes(premises.authority.certificate_pem)
    (root / "certs" / "ca.crl").write_bytes(premises.authority.crl_pem())
    for client, issued in _clients(premises.authority).items():
        _write_pair(issued, premises.certificate(client), premises.key(client))
    premises.rotate_server_certificate()
    return premises


def _clients(authority: Authority) -> dict[str, Issued]:
    """A client for each rule of the configuration, and one that no rule matches."""
    return {
        "admin": authority.issue(common_name="alice", organizational_unit="platform", client=True),
        "ingest": authority.issue(common_name="ingest-nightly", client=True),
        "search": authority.issue(uris=("spiffe://example.org/search/web",), client=True),
        "stranger": authority.issue(common_name="stranger", client=True),
    }


def _write_pair(issued: Issued, certificate: Path, key: Path) -> None:
    certificate.write_bytes(issued.chain_pem)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(issued.key_pem)
