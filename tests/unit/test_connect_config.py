"""The configuration of client mode, `tlsproxy connect`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from tlsproxy.config.endpoints import listen_endpoint
from tlsproxy.config.problems import ConfigError
from tlsproxy.connector.model import ConnectConfig, parse
from tlsproxy.connector.reference import as_yaml
from tlsproxy.proxy.frontend import listener

REFERENCE = Path(__file__).parents[2] / "config" / "client.yaml"
PATH = Path("/etc/tlsproxy/client.yaml")
LISTENER = {"listen": "127.0.0.1:6333", "targets": ["gw.example.org:6333"]}
TLS = {"ca_cert": "ca.pem"}


def problems(environ: dict[str, str] | None = None, **sections: Any) -> list[str]:
    """Texts, each with its key."""
    tree = {"listeners": [LISTENER], "tls": TLS, **sections}
    try:
        parse(yaml.dump(tree).encode(), PATH, environ or {})
    except ConfigError as error:
        return [f"{problem.key}: {problem.text}" for problem in error.problems]
    return []


def listening(**keys: Any) -> list[str]:
    return problems(listeners=[{**LISTENER, **keys}])


def test_the_reference_is_that_of_the_model() -> None:
    """After a change of the model: `make reference`."""
    assert REFERENCE.read_text() == as_yaml()
    loaded = parse(REFERENCE.read_bytes(), REFERENCE, {})
    assert loaded.warnings == ()
    defaults = parse(yaml.dump({"listeners": [LISTENER], "tls": TLS}).encode(), PATH, {}).config
    for name in ConnectConfig.model_fields.keys() - {"listeners", "tls"}:
        assert getattr(loaded.config, name) == getattr(defaults, name)


@pytest.mark.parametrize(
    ("listen", "text"),
    [
        ("0.0.0.0:6333", "can be reached from the network"),
        ("[::]:6333", "can be reached from the network"),
        ("10.0.0.5:6333", "can be reached from the network"),
        ("gw.example.org:6333", "can be reached from the network"),
        ("127.0.0.1", "host:port is expected"),
        ("6333", "host:port is expected"),
        ("unix:run/p2p.sock", "absolute"),
        ("unix:@", "absolute"),
        ("unix:/" + "x" * 108, "at most 107 bytes"),
    ],
)
def test_an_address_to_listen_on_is_of_this_machine(listen: str, text: str) -> None:
    (problem,) = listening(listen=listen)
    assert problem.startswith("listeners[0].listen: ")
    assert text in problem


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:0", "127.0.0.9:1", "[::1]:6333", "localhost:6333", "unix:/run/p2p.sock", "unix:@p2p"]
)
def test_addresses_of_this_machine(listen: str) -> None:
    assert listening(listen=listen) == []


def test_localhost_is_loopback_whatever_a_hosts_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(listener, "bound_socket", lambda host, _port: asked.append(host) or socket.socket())
    listener.bind(listen_endpoint("localhost:6333"), 0).close()
    assert asked == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("gw.example.org", "host:port is expected"),
        ("https://gw.example.org:6333", "host:port is expected"),
        ("unix:/run/gw.sock", "reached in plaintext"),
        ("gw example:6333", "an IP address or a host name is expected"),
        ("gw*:6333", "an IP address or a host name is expected"),
    ],
)
def test_targets_are_addresses_of_servers(target: str, text: str) -> None:
    (problem,) = listening(targets=[target])
    assert problem.startswith("listeners[0].targets[0]: ")
    assert text in problem


def test_one_address_for_each_listener() -> None:
    second = {**LISTENER, "listen": "[::1]:6333"}
    assert problems(listeners=[LISTENER, second], health={"listen": "127.0.0.1:9"}) == []
    assert problems(listeners=[LISTENER, LISTENER], health={"listen": "0.0.0.0:6333"}) == [
        "health.listen: 0.0.0.0:6333 is taken: listeners[0].listen listens on 127.0.0.1:6333",
        "listeners[1].listen: another listener has this address",
    ]
    assert listening(targets=[])[0].startswith("listeners[0].targets: one is needed")
    assert problems(listeners=[])[0].startswith("listeners: one is needed")
    assert listening(targets=["gw:1", "gw:1"]) == ["listeners[0].targets[1]: is named twice"]


@pytest.mark.parametrize("target", ["127.0.0.1:6333", "localhost:6333", "0.0.0.0:6333", "[::1]:7000"])
def test_a_target_is_no_listener_of_its_own(target: str) -> None:
    second = {"listen": "[::1]:7000", "targets": ["gw:1"]}
    (problem,) = problems(listeners=[{**LISTENER, "targets": [target]}, second])
    assert "connections would lead back to us without end" in problem
    assert listening(targets=["127.0.0.2:6333", "127.0.0.1:6334"]) == []


def test_all_mistakes_are_told_with_their_places_and_no_value() -> None:
    text = b"""\
listeners:
  - listen: 127.0.0.1:6333
    target: [gw:1]
    alpn: h3
tls:
  ca_cert: ca.pem
  cert: client.pem
  server_nam: gw
  spki_sha256: [S3CRET]
limits: {max_connection: 1, idle_timeout: 0}
upstream: {rest: "http://S3CRET"}
"""
    with pytest.raises(ConfigError) as error:
        parse(text, PATH, {})
    told = str(error.value).splitlines()
    assert told == [
        "/etc/tlsproxy/client.yaml:2:5 listeners[0].targets: is required",
        "/etc/tlsproxy/client.yaml:3:5 listeners[0].target: unknown key (did you mean 'targets'?)",
        "/etc/tlsproxy/client.yaml:4:5 listeners[0].alpn: must be 'h2', 'http/1.1' or 'none'",
        "/etc/tlsproxy/client.yaml:8:3 tls.server_nam: unknown key (did you mean 'server_name'?)",
        "/etc/tlsproxy/client.yaml:10:10 limits.max_connection: unknown key (did you mean 'max_connections'?)",
        "/etc/tlsproxy/client.yaml:10:29 limits.idle_timeout: must be greater than 0",
        "/etc/tlsproxy/client.yaml:11:1 upstream: unknown key",
    ]
    assert "S3CRET" not in str(error.value)


def test_the_section_of_tls_has_the_checks_of_the_gateways_own() -> None:
    assert problems(tls={**TLS, "cert": "c.pem"}) == ["tls.cert: key is missing: a client certificate has both"]
    assert problems(tls={**TLS, "spiffe_id": "example.org"}) == [
        "tls.spiffe_id: not a SPIFFE ID: spiffe://trust-domain/path is expected"
    ]
    (pin,) = problems(tls={**TLS, "spki_sha256": ["abc"]})
    assert pin.startswith("tls.spki_sha256[0]: the SHA-256 of a public key is expected")


def test_a_mode_is_for_a_socket_at_a_path() -> None:
    assert listening(listen="unix:/run/p2p.sock", unix_mode="0666") == []
    for listen in ("127.0.0.1:6333", "unix:@p2p"):
        (problem,) = listening(listen=listen, unix_mode="0666")
        assert problem.startswith("listeners[0].unix_mode: only a unix socket at a path has a mode")


def test_the_environment_and_credentials_count_as_for_the_gateway() -> None:
    environ = {
        "QDRANT__TLS__MIN_VERSION": "1.3",
        "QDRANT__TLS__CERT": "other.pem",
        "QDRANT__LIMITS__MAX_CONNECTIONS": "5",
        "CREDENTIALS_DIRECTORY": "/c",
    }
    tree = {"listeners": [LISTENER], "tls": {**TLS, "cert": "c.pem", "key": "credential:key"}, "limits": None}
    config = parse(yaml.dump(tree).encode(), PATH, environ).config
    assert (config.tls.cert, config.tls.key) == (Path("/etc/tlsproxy/other.pem"), Path("/c/key"))
    assert (config.limits.max_connections, config.tls.min_version) == (5, "1.3")
    warned = parse(yaml.dump(tree).encode(), PATH, {**environ, "QDRANT__LIMITS__MAX": "5"}).warnings
    assert [str(one) for one in warned] == [
        "env QDRANT__LIMITS__MAX limits.max: no such key (did you mean 'limits'?); ignored"
    ]
