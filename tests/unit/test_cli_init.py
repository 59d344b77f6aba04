"""`tlsproxy init`: a first configuration, from nothing and from Qdrant's."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from snapshot_site import ROOT

from tlsproxy.cli import main
from tlsproxy.config.conversion import SECRETS, qdrants_own, take
from tlsproxy.config.model import AuditConfig, Service, Tls

KEY = "a-key-that-is-long-enough-for-anybody-1"
QDRANT = f"""\
log_level: INFO
storage: {{storage_path: ./storage}}
service:
  host: 127.0.0.1
  http_port: 6333
  grpc_port: null
  max_workers: 0
  max_request_size_mb: 64
  enable_tls: true
  verify_https_client_certificate: false
  api_key: {KEY}
  read_only_api_key: ""
  jwt_rbac: true
  typing_error: 1
cluster: {{enabled: false}}
telemetry_disabled: true
tls: {{cert: ./tls/cert.pem, key: ./tls/key.pem, ca_cert: ./tls/cacert.pem, cert_ttl: null}}
audit: {{enabled: false, dir: ./audit, rotation: weekly, max_log_files: 3}}
logger: {{format: json}}
roles: {{}}
"""


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture
def qdrant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Qdrant's directory as in its distribution: its paths are relative to the parent of `config/`."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("QDRANT__"):
            monkeypatch.delenv(name)
    (tmp_path / "tls").mkdir()
    (tmp_path / "config").mkdir()
    server = ROOT.issue(common_name="q", dns=["localhost"], server=True)
    for name, data in (("cert", server.chain_pem), ("key", server.key_pem), ("clients", ROOT.certificate_pem)):
        (tmp_path / f"tls/{name}.pem").write_bytes(data)
    (tmp_path / "config/config.yaml").write_text(QDRANT)
    return tmp_path


def test_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init").output == "wrote tlsproxy.yaml\nnext: tlsproxy check --config tlsproxy.yaml\n"
    for command in (
        ("certs", "init"),
        ("certs", "issue", "--name", "server", "--server", "--dns", "localhost"),
        ("certs", "issue", "--name", "alice", "--client", "--ou", "platform"),
        ("check", "--config", "tlsproxy.yaml"),
        ("explain", "--config", "tlsproxy.yaml", "certs/alice.pem", "PUT", "/collections/docs"),
    ):
        done = call(*command)
        assert done.exit_code == 0, done.output
    before = Path("tlsproxy.yaml").read_text()
    assert "--force overwrites it" in call("init", "--admin", "127.0.0.1:1").stderr
    assert Path("tlsproxy.yaml").read_text() == before
    assert stat.S_IMODE(Path("tlsproxy.yaml").stat().st_mode) == 0o644


def test_from_qdrants_it_says_what_becomes_of_each_key_and_check_accepts_it(qdrant: Path) -> None:
    done = call("init", "--from", "config/config.yaml", "--out", "tlsproxy.yaml", "--ca-cert", "tls/clients.pem")
    assert done.exit_code == 0, done.output
    made = yaml.safe_load((qdrant / "tlsproxy.yaml").read_text())
    assert made == {
        "service": {
            "host": "127.0.0.1", "http_port": 6333, "grpc_port": None, "max_request_size_mb": 64, "api_key": KEY,
            "jwt_rbac": True,
        },
        "tls": {
            "cert": str(qdrant / "tls/cert.pem"), "key": str(qdrant / "tls/key.pem"), "ca_cert": "tls/clients.pem",
            "cert_ttl": None,
        },
        "upstream": {"rest": "http://127.0.0.1:16333", "grpc": "http://127.0.0.1:16334"},
        "audit": {"dir": "./audit", "max_log_files": 3},
        "admin": {"listen": "127.0.0.1:9333"},
        "log_level": "INFO",
        "logger": {"format": "json"},
    }  # fmt: skip
    assert stat.S_IMODE((qdrant / "tlsproxy.yaml").stat().st_mode) == 0o600
    assert KEY not in done.output
    left = dict(line.split(": ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("left out: "))
    assert left.keys() == {
        "storage", "cluster", "telemetry_disabled", "roles", "service.max_workers", "service.enable_tls",
        "service.verify_https_client_certificate", "service.typing_error", "tls.ca_cert", "audit.enabled", "audit.dir",
        "audit.rotation",
    }  # fmt: skip
    assert left["audit.rotation"] == "must be 'daily' or 'hourly'"
    assert left["tls.ca_cert"] == "there is no such file"
    told = done.stdout.partition("Qdrant's own file must have, from then on:\n")[2].partition("next:")[0]
    assert yaml.safe_load(told) == {
        "service": {"host": "127.0.0.1", "http_port": 16333, "grpc_port": None, "enable_tls": False}
    }
    assert "# remove: api_key, jwt_rbac\n" in told
    checked = call("check", "--config", "tlsproxy.yaml")
    assert checked.exit_code == 0, checked.output


def test_questions_are_answered_by_options(qdrant: Path) -> None:
    (qdrant / "upstream.key").write_text("k" * 40)
    done = call(
        "init", "--from", "config/config.yaml", "--ca-cert", "tls/clients.pem", "--optional-certificates",
        "--rest", "http://10.0.0.5:6333", "--grpc", "http://10.0.0.5:6334", "--upstream-key-file", "upstream.key",
        "--role", "ingest=docs:rw,logs.*:r", "--rule", "uri=spiffe://a/b:ingest", "--audit-dir", "log",
        "--admin", "unix:/run/x.sock",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    made = yaml.safe_load((qdrant / "tlsproxy.yaml").read_text())
    assert made["service"]["verify_https_client_certificate"] is False
    assert made["upstream"] == {
        "rest": "http://10.0.0.5:6333", "grpc": "http://10.0.0.5:6334", "api_key_file": "upstream.key"
    }  # fmt: skip
    grants = [{"collection": "docs", "access": "rw"}, {"collection": "logs.*", "access": "r"}]
    assert made["roles"] == {"ingest": {"access": grants}}
    assert made["identities"] == [{"name": "ingest-1", "match": {"uri": "spiffe://a/b"}, "role": "ingest"}]
    assert (made["audit"]["dir"], made["admin"]["listen"]) == ("log", "unix:/run/x.sock")
    assert "host: ADDRESS   # one that only the gateway reaches" in done.stdout
    assert "api_key: KEY   # that of upstream.key" in done.stdout
    assert call("check", "--config", "tlsproxy.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--from", "missing.yaml"), "missing.yaml: does not exist"),
        (("--from", "tls/cert.pem"), "tls/cert.pem:1:1"),
        (("--cert", "a.pem"), "--cert and --key belong together"),
        (("--role", "admin"), "NAME=ACCESS is expected"),
        (("--role", "x=docs:all"), "roles.x.access[0].access: must be 'r', 'rw', 'prw', 'pr' or 'm'"),
        (("--rule", "ou=platform"), "FIELD=GLOB:ROLE is expected"),
        (("--role", "a=m", "--rule", "ou=x:b"), "no role is called 'b'"),
        (("--rest", "https://127.0.0.1:1"), "upstream.rest"),
    ],
)
def test_what_makes_no_configuration(qdrant: Path, arguments: tuple[str, ...], says: str) -> None:
    done = call("init", *arguments)
    assert (done.exit_code, says in done.stderr) == (2, True), done.stderr
    assert not (qdrant / "tlsproxy.yaml").exists()


_value = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
_known = [*Service.model_fields, *Tls.model_fields, *AuditConfig.model_fields, "storage", "max_workers", "nothing"]
_section: Any = _value | st.dictionaries(st.sampled_from(_known), _value, max_size=5)


@given(st.dictionaries(st.sampled_from(["service", "tls", "audit", "logger", "log_level", "cluster", "x"]), _section))
def test_each_key_is_taken_or_left_out_and_no_secret_is_told(tree: dict[str, Any]) -> None:
    taken = take(tree, {"a": "/a"}.get)
    told = {name for name, _ in taken.left}
    assert not told & set(taken.names)
    for section, value in tree.items():
        for key in value if isinstance(value, dict) and section in {"service", "tls", "audit", "logger"} else ():
            assert f"{section}.{key}" in told | set(taken.names) or value[key] in (None, "")
    lines = "\n".join(qdrants_own(tree, "http://127.0.0.1:1", "http://127.0.0.1:2", None))
    service = tree.get("service")
    secrets = [service[key] for key in SECRETS if service.get(key)] if isinstance(service, dict) else []
    assert not any(isinstance(secret, str) and len(secret) > 4 and secret in lines for secret in secrets)
