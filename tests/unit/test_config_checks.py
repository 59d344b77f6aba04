from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.rows import rows

from tlsproxy.config.identity_checks import HINTS
from tlsproxy.config.loader import Loaded, parse
from tlsproxy.config.problems import ConfigError


def sound() -> dict[str, Any]:
    return {
        "tls": {"cert": "server.pem", "key": "server.key", "ca_cert": "ca.pem"},
        "roles": {"search": {"access": "r"}},
        "identities": [{"name": "searchers", "match": {"ou": "search"}, "role": "search"}],
    }


def load(**sections: Any) -> Loaded:
    tree = sound() | sections
    return parse(json.dumps(tree).encode(), Path("/etc/f.yaml"), {})


def errors(**sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**sections)
    return [f"{problem.key}: {problem.text}" for problem in caught.value.problems]


def warnings(**sections: Any) -> list[str]:
    return [f"{problem.key}: {problem.text}" for problem in load(**sections).warnings]


def rule(name: str = "a", role: str = "search", **match: str) -> dict[str, Any]:
    return {"name": name, "match": match, "role": role}


def key(**fields: Any) -> dict[str, Any]:
    return {"name": "ci", "sha256": "0" * 64, "role": "search"} | fields


def node(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "rest": "http://127.0.0.1:1", "grpc": "http://127.0.0.1:2"} | more


def issuer(**fields: Any) -> dict[str, Any]:
    usual = {
        "name": "login",
        "issuer": "https://login/",
        "audience": "qdrant",
        "algorithm": "ES256",
        "pem": "login.pem",
    }
    return usual | fields


KEY = "x" * 32
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "origin_of_a_page": (
        {"service": {"allowed_origins": ["https://a.example", "https://b.example/"]}},
        "service.allowed_origins[1]: is compared to the byte: a browser writes 'https://b.example'",
    ),
    "burst_of_nothing": (
        {"limits": {"per_key": {"burst": 5}}},
        "limits.per_key.burst: requests_per_second is needed",
    ),
    "burst_of_no_handshakes": (
        {"limits": {"per_address": {"burst": 5}}},
        "limits.per_address.burst: handshakes_per_second is needed",
    ),
    "burst_of_nothing_in_a_role": (
        {"roles": {"search": {"access": "r", "limits": {"per_identity": {"burst": 5}}}}},
        "roles.search.limits.per_identity.burst: requests_per_second is needed",
    ),
    "plaintext": ({"service": {"enable_tls": False}}, "service.enable_tls: tlsproxy terminates TLS"),
    "client_certificates_without_ca": (
        {"tls": {"cert": "c", "key": "k"}},
        "service.verify_https_client_certificate: tls.ca_cert is needed",
    ),
    "identities_without_ca": (
        {"tls": {"cert": "c", "key": "k"}, "service": {"verify_https_client_certificate": False}},
        "identities: tls.ca_cert is needed",
    ),
    "crl_without_ca": (
        {
            "tls": {"cert": "c", "key": "k", "crl": ["r"]},
            "service": {"verify_https_client_certificate": False, "api_key": KEY},
            "identities": [],
        },
        "tls.crl: tls.ca_cert is needed",
    ),
    "tcp_without_ca": (
        {
            "tls": {"cert": "c", "key": "k"},
            "service": {"verify_https_client_certificate": False, "api_key": KEY},
            "identities": [],
            "listeners": [{"port": 7000, "mode": "tcp", "upstream": "127.0.0.1:7001", "allow": ["search"]}],
        },
        "listeners[0]: tls.ca_cert is needed",
    ),
    "unknown_role": (
        {"identities": [rule(role="serach", ou="x")]},
        "identities[0].role: no role is called 'serach' (did you mean 'search'?)",
    ),
    "duplicate_rule": (
        {"identities": [rule(ou="x"), rule(ou="y")]},
        "identities[1].name: 'a' is the name of an earlier rule",
    ),
    "empty_match": ({"identities": [rule()]}, "identities[0].match: an empty match would match everybody"),
    "bad_glob": ({"identities": [rule(cn="a***")]}, "identities[0].match.cn: '***' is neither"),
    "empty_value": ({"identities": [rule(cn="")]}, "identities[0].match.cn: an empty pattern"),
    "space_in_value": ({"identities": [rule(cn="a ")]}, "identities[0].match.cn: begins or ends with a space"),
    "bad_fingerprint": ({"identities": [rule(sha256="ab:cd")]}, "identities[0].match.sha256: 64 hex digits"),
    "bad_serial": ({"identities": [rule(serial="xyz")]}, "identities[0].match.serial: a serial number in hex"),
    "bad_ip": ({"identities": [rule(ip="10.0.0")]}, "identities[0].match.ip: an IP address"),
    "bad_collection_glob": (
        {"roles": {"search": {"access": [{"collection": "a***", "access": "r"}]}}},
        "roles.search.access[0].collection: '***' is neither",
    ),
    "key_with_a_filter": (
        {
            "roles": {"search": {"access": "r", "filter": {"tenant": "{cn}"}}},
            "keys": [{"name": "ci", "sha256": "0" * 64, "role": "search"}],
        },
        "keys[0].role: role 'search' has a filter with {cn}: require_certificate is needed",
    ),
    "key_with_a_filter_by_token": (
        {
            "roles": {"search": {"access": "r", "filter": {"tenant": "{claim:team}"}}},
            "keys": [{"name": "ci", "sha256": "0" * 64, "role": "search", "require_certificate": {"cn": "a"}}],
        },
        "keys[0].role: role 'search' has a filter with {claim:team}: who sends a key sends no token",
    ),
    "issuer_with_an_unknown_role": (
        {
            "roles": {"search": {"access": "r"}},
            "jwt_issuers": [
                {"name": "i", "issuer": "i", "audience": "a", "algorithm": "ES256", "pem": "p", "role": "serach"}
            ],
        },
        "jwt_issuers[0].role: no role is called 'serach' (did you mean 'search'?)",
    ),
    "path_in_filter": (
        {"roles": {"search": {"access": "r", "filter": {"a[0].b": "x"}}}},
        "roles.search.filter.a[0].b: a payload key of letters",
    ),
    "key_within_another_in_filter": (
        {"roles": {"search": {"access": "r", "filter": {"a[].b": 1, "a": True}}}},
        "roles.search.filter.a[].b: no point has values under both 'a' and 'a[].b'",
    ),
    "fraction_in_filter": (
        {"roles": {"search": {"access": "r", "filter": {"a": 1.0}}}},
        "roles.search.filter.a",
    ),
    "integer_of_65_bits_in_filter": (
        {"roles": {"search": {"access": "r", "filter": {"a": 1 << 63}}}},
        "roles.search.filter.a: an integer of at most 64 bits",
    ),
    "public_by_the_caller": (
        {"roles": {"search": {"access": "r", "filter": {"a": "x"}, "or_public": {"b": "{cn}"}}}},
        "roles.search.or_public.b: a fixed value is expected",
    ),
    "public_without_a_filter": (
        {"roles": {"search": {"access": "r", "or_public": {"visibility": "public"}}}},
        "roles.search.or_public: adds to a `filter`, and there is none",
    ),
    "two_fields_in_filter": (
        {"roles": {"search": {"access": "r", "filter": {"tenant": "{o}{cn}"}}}},
        "roles.search.filter.tenant: a text with at most one field",
    ),
    "unknown_field_in_filter": (
        {"roles": {"search": {"access": "r", "filter": {"tenant": "{serial}"}}}},
        "roles.search.filter.tenant: {serial} is none of cn",
    ),
    "no_memory_for_a_body": (
        {"limits": {"inspection_memory_mb": 16}},
        "limits.inspection_memory_mb: less than service.max_request_size_mb (32)",
    ),
    "collection_twice": (
        {"roles": {"search": {"access": [{"collection": "a", "access": "r"}, {"collection": "a", "access": "rw"}]}}},
        "roles.search.access[1].collection: 'a' is in this list already",
    ),
    "key_and_key_file": (
        {"service": {"api_key": KEY, "api_key_file": "f"}},
        "service.api_key_file: api_key is given too",
    ),
    "key_that_no_header_can_carry": ({"service": {"api_key": "schlüssel"}}, "service.api_key: a key must be printable"),
    "upstream_key_and_key_file": (
        {"upstream": {"api_key": KEY, "api_key_file": "f"}},
        "upstream.api_key_file: api_key is given too",
    ),
    "upstream_key_that_no_header_can_carry": (
        {"upstream": {"api_key": "a\nb"}},
        "upstream.api_key: a key must be printable",
    ),
    "key_name_twice": ({"keys": [key(), key(sha256="1" * 64)]}, "keys[1].name: 'ci' is the name of an earlier key"),
    "key_named_as_qdrants": ({"keys": [key(name="api_key")]}, "keys[0].name: 'api_key' is a key of `service`"),
    "key_without_a_key": ({"keys": [key(sha256=None)]}, "keys[0]: one of sha256 and file is needed"),
    "key_with_two": ({"keys": [key(file="f")]}, "keys[0]: keep one of sha256 and file"),
    "key_that_is_empty": (
        {"keys": [key(sha256=hashlib.sha256(b"").hexdigest())]},
        "keys[0].sha256: is that of an empty",
    ),
    "key_of_no_role": ({"keys": [key(role="serach")]}, "keys[0].role: no role is called 'serach' (did you mean"),
    "key_for_every_certificate": (
        {"keys": [key(require_certificate={})]},
        "keys[0].require_certificate: an empty match would match everybody",
    ),
    "key_that_expires_somewhere": ({"keys": [key(expires="2030-01-01T00:00:00")]}, "keys[0].expires: "),
    "key_file_by_url": (
        {"keys": [key(sha256=None, file="https://h/k")]},
        "keys[0].file: a URL is not fetched: only files are supported",
    ),
    "issuer_pem_by_url": ({"jwt_issuers": [issuer(pem="https://h/k")]}, "jwt_issuers[0].pem: a URL is not fetched"),
    "issuer_over_a_network_in_the_clear": (
        {"jwt_issuers": [issuer(pem=None, jwks="http://h/k")]},
        "jwt_issuers[0].jwks: keys over plain http can be anybody's",
    ),
    "issuer_by_ftp": ({"jwt_issuers": [issuer(pem=None, jwks="ftp://h/k")]}, "jwt_issuers[0].jwks: https://host/path"),
    "issuer_by_no_host": ({"jwt_issuers": [issuer(pem=None, jwks="https:///k")]}, "jwt_issuers[0].jwks: https://host"),
    "issuer_by_bad_port": ({"jwt_issuers": [issuer(pem=None, jwks="https://h:x/")]}, "jwt_issuers[0].jwks: not a URL"),
    "issuer_with_password": (
        {"jwt_issuers": [issuer(pem=None, jwks="https://u:p@h/k")]},
        "jwt_issuers[0].jwks: a user or password in the URL",
    ),
    "issuer_asked_all_the_time": (
        {"jwt_issuers": [issuer(pem=None, jwks="https://h/k", refresh=0)]},
        "jwt_issuers[0].refresh: must be",
    ),
    "issuer_without_a_key": (
        {"jwt_issuers": [issuer(pem=None)]},
        "jwt_issuers[0]: one of pem, jwks and discovery is needed",
    ),
    "issuer_with_a_url_and_a_file": (
        {"jwt_issuers": [issuer(discovery="https://h/")]},
        "jwt_issuers[0]: keep one of pem and discovery",
    ),
    "issuer_of_spiffe_ids": (
        {"jwt_issuers": [issuer(issuer="spiffe://example.org/a")]},
        "jwt_issuers[0].issuer: a trust domain is expected",
    ),
    "discovery_of_a_trust_domain": (
        {"jwt_issuers": [issuer(pem=None, issuer="spiffe://example.org", discovery="https://h/")]},
        "jwt_issuers[0].discovery: a trust domain has no OpenID configuration",
    ),
    "issuer_with_two_urls": (
        {"jwt_issuers": [issuer(pem=None, jwks="https://h/k", discovery="https://h/")]},
        "jwt_issuers[0]: keep one of jwks and discovery",
    ),
    "discovery_in_the_clear": (
        {"jwt_issuers": [issuer(pem=None, discovery="http://h/k")]},
        "jwt_issuers[0].discovery: keys over plain http can be anybody's",
    ),
    "discovery_of_a_file": (
        {"jwt_issuers": [issuer(pem=None, discovery="openid.json")]},
        "jwt_issuers[0].discovery: https://host/path",
    ),
    "issuer_with_a_ca_and_a_file": (
        {"jwt_issuers": [issuer(pem=None, jwks="keys.json", ca_cert="ca.pem")]},
        "jwt_issuers[0].ca_cert: is for keys that are fetched",
    ),
    "issuer_with_a_bearer_token_and_a_file": (
        {"jwt_issuers": [issuer(bearer_token_file="token")]},
        "jwt_issuers[0].bearer_token_file: is for keys that are fetched",
    ),
    "issuer_with_two": ({"jwt_issuers": [issuer(jwks="f")]}, "jwt_issuers[0]: keep one of pem and jwks"),
    "issuer_with_a_shared_secret": ({"jwt_issuers": [issuer(algorithm="HS256")]}, "jwt_issuers[0].algorithm: must be"),
    "issuer_twice": ({"jwt_issuers": [issuer(), issuer()]}, "jwt_issuers[1].name: 'login' is the name of another"),
    "nobody": ({"identities": []}, "identities: nobody could do anything"),
    "nobody_useful": ({"roles": {"search": {"access": []}}}, "identities: nobody could do anything"),
    "upstream_https": (
        {"upstream": {"rest": "https://127.0.0.1:1"}},
        "upstream.rest: upstream.tls is missing",
    ),
    "upstream_https_without_a_name": (
        {"upstream": {"rest": "https://a..b:1", "tls": {"ca_cert": "ca.pem"}}},
        "upstream.rest: an IP address or a host name is expected before the port",
    ),
    "listener_upstream_tls_without_a_name": (
        {
            "listeners": [
                {"port": 443, "mode": "tcp", "upstream": "a..b:1", "upstream_tls": {"ca_cert": "ca.pem"}, "allow": []}
            ]
        },
        "listeners[0].upstream: an IP address or a host name is expected before the port",
    ),
    "listener_upstream_space": (
        {"listeners": [{"port": 443, "mode": "tcp", "upstream": "a b:1", "allow": []}]},
        "listeners[0].upstream: an IP address or a host name is expected before the port",
    ),
    "upstream_path": ({"upstream": {"rest": "http://127.0.0.1:1/x"}}, "upstream.rest: only http://host:port"),
    "upstream_user": ({"upstream": {"rest": "http://u@127.0.0.1:1"}}, "upstream.rest: a user or password"),
    "upstream_portless": ({"upstream": {"rest": "http://127.0.0.1"}}, "upstream.rest: the port is missing"),
    "upstream_no_url": ({"upstream": {"rest": "127.0.0.1:16333"}}, "upstream.rest: http://host:port or https:"),
    "upstream_space": ({"upstream": {"rest": "http://a b:1"}}, "upstream.rest: an IP address or a host name is"),
    "upstream_tab": ({"upstream": {"rest": "http://a\tb:1"}}, "upstream.rest: an IP address or a host name is"),
    "many_nodes": (
        {"upstream": {"nodes": [node(f"n{number}") for number in range(65)]}},
        "upstream.nodes: must have at most 64 entries, not 65",
    ),
    "upstream_bad_port": ({"upstream": {"rest": "http://h:99999"}}, "upstream.rest: not a URL"),
    "nodes_beside_rest": (
        {"upstream": {"rest": "http://127.0.0.1:1", "nodes": [node("a"), node("b")]}},
        "upstream.rest: `nodes` names each node with its `rest` and `grpc`: leave this out",
    ),
    "node_twice": ({"upstream": {"nodes": [node("a"), node("a")]}}, "upstream.nodes[1].name: a is another node's"),
    "nodes_all_drained": ({"upstream": {"nodes": [node("a", drain=True)]}}, "upstream.nodes: every node is drained"),
    "node_without_grpc": (
        {"upstream": {"nodes": [node("a"), node("b", grpc=None)]}},
        "upstream.nodes[1]: grpc is missing: service.grpc_port serves gRPC; write the gRPC API of this node",
    ),
    "node_path": ({"upstream": {"nodes": [node("a", rest="http://h:1/x")]}}, "upstream.nodes[0].rest: only http://"),
    "grpc_upstream_unsaid": (
        {"upstream": {"rest": "http://127.0.0.1:6444"}},
        "upstream.grpc: service.grpc_port serves gRPC, and upstream.rest is not its default: write the gRPC API",
    ),
    "grpc_upstream_unsaid_for_a_listener": (
        {
            "upstream": {"rest": "http://127.0.0.1:6444"},
            "service": {"grpc_port": None},
            "listeners": [{"port": 443, "protocols": ["grpc"]}],
        },
        "upstream.grpc: listeners[0] serves gRPC, and upstream.rest is not its default",
    ),
    "nothing_served": (
        {"service": {"http_port": None, "grpc_port": None}},
        "service.http_port: nothing is served: set http_port, grpc_port or listeners",
    ),
    "same_port": (
        {"service": {"http_port": 6333, "grpc_port": 6333}},
        "service.grpc_port: 0.0.0.0:6333 is taken: service.http_port listens on 0.0.0.0:6333",
    ),
    "listener_twice": (
        {
            "service": {"host": "10.0.0.1"},
            "listeners": [
                {"port": 443, "protocols": ["rest"]},
                {"port": 443, "host": "10.0.0.1", "protocols": ["grpc"]},
            ],
        },
        "listeners[1]: 10.0.0.1:443 is taken: listeners[0] listens on 10.0.0.1:443",
    ),
    "listener_within_a_wildcard": (
        {"listeners": [{"port": 6334, "host": "10.0.0.1", "protocols": ["grpc"]}]},
        "listeners[0]: 10.0.0.1:6334 is taken: service.grpc_port listens on 0.0.0.0:6334",
    ),
    "wildcard_over_a_listener": (
        {
            "service": {"host": "10.0.0.1"},
            "listeners": [{"port": 6333, "host": "::", "protocols": ["rest"]}],
        },
        "listeners[0]: [::]:6333 is taken: service.http_port listens on 10.0.0.1:6333",
    ),
    "health_without_a_port": ({"health": {"listen": "10.0.0.5"}}, "health.listen: host:port is expected"),
    "health_on_a_relative_path": (
        {"health": {"listen": "unix:health.sock"}},
        "health.listen: the path of a unix socket must be absolute",
    ),
    "health_on_a_listeners_socket": (
        {"health": {"listen": "unix:/s"}, "listeners": [{"unix": "/s", "protocols": ["rest"]}]},
        "health.listen: unix:/s is taken: listeners[0] listens on unix:/s",
    ),
    "health_on_the_operators_socket": (
        {"health": {"listen": "unix:@s"}, "admin": {"listen": "unix:@s"}},
        "health.listen: unix:@s is taken: admin.listen is unix:@s",
    ),
    "admin_on_a_listeners_socket": (
        {"admin": {"listen": "unix:@s"}, "listeners": [{"unix": "@s", "protocols": ["rest"]}]},
        "admin.listen: listeners[0] is the same socket",
    ),
    "neither_port_nor_socket": ({"listeners": [{"protocols": ["rest"]}]}, "listeners[0]: port is missing: a port, or"),
    "port_and_socket": (
        {"listeners": [{"unix": "/s", "port": 0, "protocols": ["rest"]}]},
        "listeners[0].port: `unix` stands in place of host and port",
    ),
    "host_and_socket": (
        {"listeners": [{"unix": "/s", "host": "::1", "protocols": ["rest"]}]},
        "listeners[0].host: `unix` stands in place of host and port",
    ),
    "mode_of_a_port": (
        {"listeners": [{"port": 0, "unix_mode": "0600", "protocols": ["rest"]}]},
        "listeners[0].unix_mode: unix is missing",
    ),
    "mode_of_an_abstract_socket": (
        {"listeners": [{"unix": "@s", "unix_mode": "0600", "protocols": ["rest"]}]},
        "listeners[0].unix_mode: an abstract socket has no mode",
    ),
    "mode_of_no_use": (
        {"listeners": [{"unix": "/s", "unix_mode": "0640", "protocols": ["rest"]}]},
        "listeners[0].unix_mode: ",
    ),
    "relative_socket": (
        {"listeners": [{"unix": "rest.sock", "protocols": ["rest"]}]},
        "listeners[0].unix: an absolute path or an abstract name is expected: /run/tlsproxy/rest.sock",
    ),
    "long_socket": (
        {"listeners": [{"unix": "@" + "x" * 108, "protocols": ["rest"]}]},
        "listeners[0].unix: the path or name of a unix socket has at most 107 bytes",
    ),
    "one_socket_twice": (
        {"listeners": [{"unix": "/s", "protocols": ["rest"]}, {"unix": "/s", "protocols": ["grpc"]}]},
        "listeners[1]: unix:/s is taken: listeners[0] listens on unix:/s",
    ),
    "own_socket_as_upstream": (
        {"upstream": {"rest": "unix:/s"}, "listeners": [{"unix": "/s", "protocols": ["rest"]}]},
        "upstream.rest: unix:/s is where tlsproxy itself listens: let Qdrant listen on another socket",
    ),
    "balancers_of_a_network_on_a_socket": (
        {"listeners": [{"unix": "/s", "protocols": ["rest"], "proxy_protocol": {"from": ["127.0.0.1"]}}]},
        "listeners[0].proxy_protocol.from[0]: nobody reaches a unix socket from a network: write unix",
    ),
    "balancers_over_no_socket": (
        {"service": {"proxy_protocol": {"from": ["unix"]}}},
        "service.proxy_protocol.from[0]: no unix socket: name the balancers' addresses",
    ),
    "health_where_clients_connect": (
        {"health": {"listen": "10.0.0.5:6333"}},
        "health.listen: 10.0.0.5:6333 is taken: service.http_port listens on 0.0.0.0:6333",
    ),
    "health_where_operators_connect": (
        {"health": {"listen": "[::]:9333"}, "admin": {"listen": "127.0.0.1:9333"}},
        "health.listen: [::]:9333 is taken: admin.listen is 127.0.0.1:9333",
    ),
    "probes_from_a_name": (
        {"health": {"probe_networks": ["10.0.0.0/24", "balancer.example.org"]}},
        "health.probe_networks[1]: an address or a network such as 10.0.0.0/24 is expected",
    ),
    "probes_from_a_mapped_network": (
        {"health": {"probe_networks": ["::1", "::ffff:10.0.0.0/120"]}},
        "health.probe_networks[1]: addresses of IPv4 are compared as such: write 10.0.0.0/24",
    ),
    "probes_from_a_network_with_host_bits": (
        {"health": {"probe_networks": ["10.0.0.7/24"]}},
        "health.probe_networks[0]: an address or a network such as 10.0.0.0/24 is expected: 10.0.0.7/24 has host bits",
    ),
    "balancers_of_nowhere": (
        {"service": {"proxy_protocol": {"from": []}}},
        "service.proxy_protocol.from: ",
    ),
    "balancers_by_name": (
        {"service": {"proxy_protocol": {"from": ["10.0.0.7", "balancer"]}}},
        "service.proxy_protocol.from[1]: an address or a network such as 10.0.0.0/24 is expected",
    ),
    "balancers_of_a_mapped_network": (
        {"listeners": [{"port": 443, "protocols": ["rest"], "proxy_protocol": {"from": ["::ffff:10.0.0.7"]}}]},
        "listeners[0].proxy_protocol.from[0]: addresses of IPv4 are compared as such: write 10.0.0.7/32",
    ),
    "relative_unix_upstream": (
        {"upstream": {"rest": "unix:qdrant.sock"}},
        "upstream.rest: an absolute path or an abstract name is expected: unix:/run/qdrant/rest.sock",
    ),
    "long_unix_upstream": (
        {"upstream": {"grpc": "unix:/" + "x" * 107}},
        "upstream.grpc: the path or name of a unix socket has at most 107 bytes",
    ),
    "unnamed_unix_upstream_of_tcp": (
        {"listeners": [{"port": 443, "mode": "tcp", "upstream": "unix:@", "allow": ["admin"]}]},
        "listeners[0].upstream: an absolute path or an abstract name is expected",
    ),
    "header_over_http": (
        {"listeners": [{"port": 443, "protocols": ["rest"], "send_proxy_protocol": "v2"}]},
        "listeners[0].send_proxy_protocol: for mode: tcp",
    ),
    "balancers_in_a_switch": ({"health": {"proxy_protocol": True}}, "health.proxy_protocol: "),
    "balancers_under_another_key": (
        {"service": {"proxy_protocol": {"form": ["10.0.0.7"]}}},
        "service.proxy_protocol: unknown key (did you mean 'from'?)",
    ),
    "listener_of_no_protocol": ({"listeners": [{"port": 443, "protocols": []}]}, "listeners[0]: protocols is missing"),
    "listener_without_protocols": ({"listeners": [{"port": 443}]}, "listeners[0]: protocols is missing"),
    "listener_of_both_modes": (
        {"listeners": [{"port": 443, "protocols": ["rest"], "allow": ["admin"]}]},
        "listeners[0]: upstream and allow are for mode: tcp",
    ),
    "tcp_of_a_protocol": (
        {"listeners": [{"port": 443, "mode": "tcp", "upstream": "a:1", "allow": ["admin"], "protocols": ["rest"]}]},
        "listeners[0].protocols: mode: tcp relays bytes",
    ),
    "tcp_for_nobody": (
        {"listeners": [{"port": 443, "mode": "tcp", "upstream": "a:1"}]},
        "listeners[0]: allow is missing",
    ),
    "tcp_to_nowhere": (
        {"listeners": [{"port": 443, "mode": "tcp", "allow": ["admin"]}]},
        "listeners[0]: upstream is missing: host:port is expected",
    ),
    "tcp_to_a_url": (
        {"listeners": [{"port": 443, "mode": "tcp", "upstream": "http://a:1", "allow": ["admin"]}]},
        "listeners[0].upstream: host:port is expected",
    ),
    "tcp_for_an_unknown_role": (
        {"listeners": [{"port": 443, "mode": "tcp", "upstream": "a:1", "allow": ["admn"]}]},
        "listeners[0].allow[0]: no role is called 'admn'",
    ),
    "listener_of_one_protocol_twice": (
        {"listeners": [{"port": 443, "protocols": ["grpc", "grpc"]}]},
        "listeners[0].protocols: a protocol is named twice",
    ),
    "listener_of_an_unknown_protocol": (
        {"listeners": [{"port": 443, "protocols": ["gprc"]}]},
        "listeners[0].protocols[0]: must be 'rest' or 'grpc' (did you mean 'grpc'?)",
    ),
    "listener_with_an_unknown_key": (
        {"listeners": [{"port": 443, "protocol": ["grpc"]}]},
        "listeners[0].protocol: unknown key (did you mean 'protocols'?)",
    ),
    "listener_behind_a_mistaken_one": (
        {"listeners": [{"port": 443}, {"port": 6333, "protocols": ["rest"]}]},
        "listeners[1]: 0.0.0.0:6333 is taken",
    ),
    "grpc_message_beyond_the_memory": (
        {"limits": {"max_message_size_mb": 512}},
        "limits.inspection_memory_mb: less than limits.max_message_size_mb (512)",
    ),
    "upstream_grpc": ({"upstream": {"grpc": "https://127.0.0.1:1"}}, "upstream.grpc: upstream.tls is missing"),
    "upstream_idle": ({"upstream": {"idle_timeout": 5}}, "upstream.idle_timeout: must be less than 5 s"),
    "loop": ({"upstream": {"rest": "http://127.0.0.1:6333"}}, "upstream.rest: 127.0.0.1:6333 is where tlsproxy itself"),
    "loop_grpc": (
        {"upstream": {"grpc": "http://127.0.0.1:6334"}},
        "upstream.grpc: 127.0.0.1:6334 is where tlsproxy itself",
    ),
    "loop_other_protocol": (
        {"upstream": {"rest": "http://127.0.0.1:6334", "grpc": "http://127.0.0.1:16334"}},
        "upstream.rest: 127.0.0.1:6334 is where tlsproxy itself",
    ),
    "loop_listener": (
        {
            "upstream": {"grpc": "http://127.0.0.1:8443"},
            "listeners": [{"port": 8443, "host": "127.0.0.1", "protocols": ["rest"]}],
        },
        "upstream.grpc: 127.0.0.1:8443 is where tlsproxy itself",
    ),
    "loop_name": ({"upstream": {"rest": "http://localhost:6333"}}, "upstream.rest: localhost:6333 is where"),
    "loop_same_address": (
        {"upstream": {"rest": "http://10.0.0.1:6333"}, "service": {"host": "10.0.0.1"}},
        "upstream.rest: 10.0.0.1:6333 is where",
    ),
    "admin_open": ({"admin": {"listen": "0.0.0.0:9333"}}, "admin.listen: the admin server has no authentication"),
    "admin_name": ({"admin": {"listen": "example.org:9333"}}, "admin.listen: the admin server has no authentication"),
    "admin_relative": ({"admin": {"listen": "unix:admin.sock"}}, "admin.listen: the path of a unix socket"),
    "admin_nonsense": ({"admin": {"listen": "9333"}}, "admin.listen: unix:/path or host:port"),
    "admin_same_port": ({"admin": {"listen": "127.0.0.1:6333"}}, "admin.listen: service.http_port is the same"),
    "admin_at_a_listener": (
        {"admin": {"listen": "127.0.0.1:8443"}, "listeners": [{"port": 8443, "protocols": ["rest"]}]},
        "admin.listen: listeners[0] is the same port",
    ),
    "store_of_another_kind": ({"shared": {"url": "http://127.0.0.1:6379"}}, "shared.url: redis://host:port, rediss://"),
    "store_without_a_host": ({"shared": {"url": "redis:///1"}}, "shared.url: redis://host:port, rediss://"),
    "store_with_a_bad_port": ({"shared": {"url": "redis://h:x"}}, "shared.url: not a URL: redis://host:port"),
    "store_with_a_password": ({"shared": {"url": "redis://u:S3CRET@127.0.0.1"}}, "shared.url: a user or password in"),
    "store_with_a_query": (
        {"shared": {"url": "redis://127.0.0.1/0?db=1"}},
        "shared.url: only the number of a database",
    ),
    "store_with_a_name_of_a_database": (
        {"shared": {"url": "redis://127.0.0.1/one"}},
        "shared.url: only the number of a",
    ),
    "store_of_anybody": ({"shared": {"url": "rediss://store:6379"}}, "shared.url: shared.ca_cert is needed"),
    "store_in_clear_with_a_ca": (
        {"shared": {"url": "redis://127.0.0.1", "ca_cert": "ca.pem"}},
        "shared.ca_cert: the store is spoken to in clear",
    ),
    "store_certificate_without_key": (
        {"shared": {"url": "rediss://store", "ca_cert": "ca.pem", "cert": "c.pem"}},
        "shared.cert: key is missing",
    ),
    "store_user_without_password": (
        {"shared": {"url": "redis://127.0.0.1", "user": "tlsproxy"}},
        "shared.user: shared.password_file is needed",
    ),
    "store_prefix": ({"shared": {"url": "redis://127.0.0.1", "prefix": "a b"}}, "shared.prefix: must be 1 to 64"),
    "no_gateways": ({"shared": {"url": "redis://127.0.0.1", "gateways": 0}}, "shared.gateways: "),
    "store_timeout": ({"shared": {"url": "redis://127.0.0.1", "timeout": 0}}, "shared.timeout: "),
    "forwarded": ({"audit": {"trust_forwarded_headers": True}}, "audit.trust_forwarded_headers: must be false"),
    "empty_path": ({"audit": {"dir": ""}}, "audit.dir: must not be empty"),
}


@rows("case", ERRORS)
def test_error(case: str) -> None:
    sections, expected = ERRORS[case]
    assert [found for found in errors(**sections) if found.startswith(expected)], errors(**sections)


WARNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "tokens": ({"service": {"jwt_rbac": True}}, "service.jwt_rbac: no token can be valid"),
    "filter_by_token": (
        {"roles": {"search": {"access": "r", "filter": {"tenant": "{claim:team}"}}}},
        "roles.search.filter: nobody has this role: its filter needs a token",
    ),
    "tokens_with_all_rights": (
        {"service": {"api_key": KEY, "jwt_rbac": True, "jwt_full_access_without_claim": True}},
        "service.jwt_full_access_without_claim: a token without an `access` claim has all rights",
    ),
    "remote_upstream": (
        {"upstream": {"rest": "http://10.0.0.9:6333"}, "service": {"grpc_port": None}},
        "upstream.rest: not on loopback",
    ),
    "remote_grpc_upstream": ({"upstream": {"grpc": "http://10.0.0.9:6334"}}, "upstream.grpc: not on loopback"),
    "unused_role": (
        {"roles": {"search": {"access": "r"}, "admin": {"access": "m"}}},
        "roles.admin: no identity, key or issuer has this role",
    ),
    "empty_role": (
        {"roles": {"search": {"access": []}}, "service": {"api_key": KEY}},
        "roles.search.access: an empty list allows nothing",
    ),
    "unreachable": (
        {"identities": [rule(dns="A.example"), rule("b", dns="a.EXAMPLE")]},
        "identities[1]: never reached: rule 'a' has the same match",
    ),
    "bounds_of_relayed_bytes": (
        {
            "roles": {"search": {"access": "r", "queries": {"vectors": "hide"}}},
            "listeners": [{"port": 7000, "mode": "tcp", "upstream": "127.0.0.1:7001", "allow": ["search"]}],
        },
        "listeners[0].allow[0]: its `filter` and `queries` hold nothing here",
    ),
    "remote_store_in_clear": ({"shared": {"url": "redis://10.0.0.9"}}, "shared.url: neither on loopback nor TLS"),
    "nothing_is_shared": ({"shared": {"gateways": 3}}, "shared.gateways: shared.url is missing"),
    "glob_over_a_subject": ({"identities": [rule(subject="CN=*,O=Acme")]}, "identities[0].match.subject: a '*' here"),
}


@rows("case", WARNINGS)
def test_warning(case: str) -> None:
    sections, expected = WARNINGS[case]
    found = warnings(**sections)
    assert len(found) == 1
    assert found[0].startswith(expected)


@rows(
    "sections",
    [
        {},
        {"service": {"grpc_port": None}},
        {"service": {"grpc_port": None}, "upstream": {"rest": "http://127.0.0.1:6444"}},
        {"service": {"grpc_port": None}, "limits": {"max_message_size_mb": 512}},
        {
            "service": {"http_port": None, "grpc_port": None},
            "listeners": [{"port": 443, "protocols": ["grpc", "rest"]}],
        },
        {"service": {"http_port": 0, "grpc_port": 0}, "listeners": [{"port": 0, "protocols": ["rest"]}]},
        {"upstream": {"rest": "http://127.0.0.1:6444", "grpc": "http://127.0.0.1:6445"}},
        {"service": {"host": "10.0.0.1"}, "listeners": [{"host": "10.0.0.2", "port": 6333, "protocols": ["rest"]}]},
        {"service": {"api_key": KEY}, "roles": {}, "identities": []},
        {"service": {"read_only_api_key_file": "f"}, "roles": {}, "identities": []},
        {
            "service": {"api_key": KEY, "verify_https_client_certificate": False},
            "roles": {},
            "identities": [],
            "tls": {"cert": "c", "key": "k"},
        },
        {
            "roles": {"search": {"access": []}},
            "listeners": [{"port": 8435, "mode": "tcp", "upstream": "127.0.0.1:6335", "allow": ["search"]}],
        },
        {"admin": {"listen": "unix:/run/admin.sock"}},
        {"admin": {"listen": "127.0.0.1:0"}},
        {"admin": {"listen": "[::1]:9333"}},
        {"admin": {"listen": "localhost:9333"}},
        {"upstream": {"rest": "http://[::1]:6333/"}, "service": {"http_port": 7333, "grpc_port": None}},
        {"upstream": {"rest": "http://127.0.0.1:16333/"}},
        {"identities": [rule(sha256=":".join(["AB"] * 32)), rule("b", serial="00:AB"), rule("c", ip="10.0.0.*")]},
    ],
)
def test_clean(sections: dict[str, Any]) -> None:
    assert warnings(**sections) == []


def test_check_does_not_run_on_a_section_that_is_invalid_itself() -> None:
    assert errors(identities=[rule(role="nobody", ou="x") | {"nam": 1}]) == [
        "identities[0].nam: unknown key (did you mean 'name'?)"
    ]


def test_errors_of_sound_sections_come_with_those_of_an_invalid_one() -> None:
    found = errors(limits={"connections": 0}, upstream={"rest": "https://h:1"})
    assert [text.split(":")[0] for text in found] == ["limits.connections", "upstream.grpc", "upstream.rest"]


def test_many_unknown_roles_are_told_of_without_a_near_one_for_each() -> None:
    """Each hint is a comparison with all names: of 2,000 and 1,000 that took 14 seconds."""
    names = [f"team-{number}" for number in range(100)]
    rules = [{"name": f"n{n}", "match": {"cn": f"c{n}"}, "role": f"team_{n % 100}"} for n in range(200)]
    told = [
        one for one in errors(roles={name: {"access": "r"} for name in names}, identities=rules) if "is called" in one
    ]
    assert len(told) == 200
    assert sum("did you mean 'team-" in one for one in told) == HINTS


def test_two_nodes_at_one_address_are_warned_of() -> None:
    nodes = [node("a"), node("b", rest="http://127.0.0.1:3"), node("c", grpc="http://127.0.0.1:4")]
    assert warnings(upstream={"nodes": nodes}) == [
        "upstream.nodes[2].rest: a has this address too: they are one node under two names",
        "upstream.nodes[1].grpc: a has this address too: they are one node under two names",
    ]


def test_a_longest_wait_below_the_usual_one_is_warned_of() -> None:
    (warning,) = warnings(limits={"max_response_timeout": 60})
    assert warning.startswith("limits.max_response_timeout: less than upstream.response_timeout (300 s)")
    assert warnings(limits={"max_response_timeout": 300}) == []
    assert warnings(upstream={"response_timeout": 7200}) == [], "the default is nobody's mistake"


@rows(
    ("entry", "mistake"),
    [
        ({}, "revoked[0]: must name exactly one caller, by subject, sha256, serial, key or jti"),
        ({"subject": "a", "jti": "b"}, "revoked[0]: must name exactly one caller"),
        ({"sha256": "ab"}, "revoked[0]: sha256: is not a SHA-256 fingerprint"),
        ({"serial": "0xyz"}, "revoked[0]: serial: is not hexadecimal"),
        ({"subject": "a", "issuer": "CN=ca"}, "revoked[0]: subject: an issuer goes with a serial number only"),
        ({"subject": " "}, "revoked[0]: subject: must have 1 to 1024 characters"),
        ({"subject": "a", "until": "2030-01-01"}, "revoked[0].until: "),
        ({"subjct": "a"}, "revoked[0].subjct: unknown key (did you mean 'subject'?)"),
        ({"serial": 17}, "revoked[0].serial: must be text: quote it"),
    ],
)
def test_locks_that_hold_nobody(entry: dict[str, Any], mistake: str) -> None:
    assert any(problem.startswith(mistake) for problem in errors(revoked=[entry])), errors(revoked=[entry])


def test_a_lock_of_an_unknown_key() -> None:
    more = {"keys": [key(name="nightly-import")], "jwt_issuers": [issuer()]}
    found = warnings(revoked=[{"key": "nightly-imprt"}, {"key": "login"}, {"key": "api_key"}], **more)
    assert found == ["revoked[0].key: no key or issuer has this name (did you mean 'nightly-import'?)"]
