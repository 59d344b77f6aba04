"""A configuration that is wrong is refused whole, before anything listens: each mistake with its place."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import forked
from support.site import Site

from tlsproxy.cli import main

MISTAKES = """\
service:
  http_port: 70000
  verify_https_client_certificat: true
  api_key: S3CRET-in-the-file
tls: {cert: server.pem, key: server.key, ca_cert: ca.pem, cert_ttl: soon}
roles:
  admin: {access: w}
identities:
  - {name: jobs, match: {cn: x, onu: y}, role: admin}
  - {name: jobs, match: {}, role: nobody}
upstream: {rest: "ftp://localhost"}
lmits: {}
"""
EXPECTED = [
    (2, 3, "service.http_port"),
    (3, 3, "service.verify_https_client_certificat"),
    (5, 59, "tls.cert_ttl"),
    (7, 11, "roles.admin.access"),
    (9, 33, "identities[0].match.onu"),
    (11, 12, "upstream.rest"),
    (12, 1, "lmits"),
]


def tlsproxy(command: str, config: Path, **environ: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    done = forked.run(command, "--config", str(config), **environ)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["check", "run"])
def test_all_mistakes_at_once_with_their_places(own_site: Site, command: str) -> None:
    path = own_site.directory / "wrong.yaml"
    path.write_text(MISTAKES)
    code, out, err = tlsproxy(command, path)
    assert code == 2
    assert out == ""
    for line, column, key in EXPECTED:
        assert f"{path}:{line}:{column} {key}: " in err
    assert "did you mean 'verify_https_client_certificate'?" in err
    assert "did you mean 'limits'?" in err
    assert "Traceback" not in err
    assert "S3CRET" not in err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"service": {"enable_tls": False}}, "service.enable_tls"),
        ({"tls": {"key": "admin.key"}}, "admin.key"),
        ({"tls": {"cert": "none.pem"}}, "none.pem"),
        ({"tls": {"ca_cert": "server.pem"}}, "server.pem"),
        ({"tls": {"ca_cert": None}}, "ca_cert"),
        ({"tls": {"crl": ["ca.pem"]}}, "ca.pem"),
        ({"audit": {"trust_forwarded_headers": True}}, "audit.trust_forwarded_headers"),
        ({"admin": {"listen": "0.0.0.0:0"}}, "admin.listen"),
        ({"service": {"api_key_file": "none.key"}}, "none.key"),
        ({"upstream": {"idle_timeout": 6}}, "upstream.idle_timeout"),
        ({"identities": [{"name": "x", "match": {}, "role": "admin"}]}, "identities[0].match"),
        ({"identities": [{"name": "x", "match": {"cn": "x"}, "role": "amdin"}]}, "did you mean 'admin'?"),
        ({"roles": {"admin": {"access": "rw"}}}, "[{collection: docs, access: rw}]"),
        ({"roles": {"admin": {"access": {"docs": "rw"}}}}, "[{collection: docs, access: rw}]"),
        ({"roles": {"admin": {"collections": ["docs"], "access": "r"}}}, "collections stand under `access`"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_mistake_is_named(own_site: Site, changes: dict[str, dict[str, object]], said: str) -> None:
    config = own_site.write_config("http://127.0.0.1:1", **changes)
    result = CliRunner().invoke(main, ["check", "--config", str(config)])
    assert result.exit_code == 2, result.stderr
    assert said in result.stderr


def test_nobody_is_admitted_by_an_empty_ca_file(own_site: Site) -> None:
    """An empty file must not mean the system's CAs."""
    own_site.write("empty.pem", b"")
    for command in ("check", "run"):
        code, _, err = tlsproxy(command, own_site.write_config("http://127.0.0.1:1", tls={"ca_cert": "empty.pem"}))
        assert code == 2
        assert "empty.pem" in err


def test_a_key_that_others_may_read(own_site: Site) -> None:
    (own_site.directory / "server.key").chmod(0o644)
    result = CliRunner().invoke(main, ["check", "--config", str(own_site.write_config("http://127.0.0.1:1"))])
    assert "server.key" in result.stderr


def test_the_environment_is_named_where_it_is_wrong(own_site: Site) -> None:
    config = own_site.write_config("http://127.0.0.1:1")
    code, _, err = tlsproxy("check", config, QDRANT__SERVICE__HTTP_PORT="many", QDRANT__SERVICE__API_KEY="S3CRET")
    assert code == 2
    assert "QDRANT__SERVICE__HTTP_PORT" in err
    assert "S3CRET" not in err


def test_a_port_that_is_taken(own_site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = tlsproxy("run", own_site.write_config("http://127.0.0.1:1", service={"http_port": port}))
    assert code == 1
    assert "cannot serve: " in err
    assert f"127.0.0.1:{port}: Address already in use" in err
    assert "Traceback" not in err


def test_what_is_right_is_ok(own_site: Site) -> None:
    config = own_site.write_config("http://127.0.0.1:1")
    code, out, err = tlsproxy("check", config)
    assert (code, err) == (0, "")
    assert out.endswith(f"{config}: ok\n")
