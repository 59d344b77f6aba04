from __future__ import annotations

import copy
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.config.loader import Loaded, parse, schema
from tlsproxy.config.problems import ConfigError

FILE = Path("/etc/tlsproxy/tlsproxy.yaml")
MINIMAL = """\
tls: {cert: server.pem, key: server.key, ca_cert: ca.pem}
roles: {search: {access: r}}
identities: [{name: searchers, match: {ou: search}, role: search}]
"""


def load(text: str, environ: Mapping[str, str] | None = None) -> Loaded:
    return parse(text.encode(), FILE, environ or {})


def problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    return [str(problem).removeprefix(f"{FILE}:") for problem in caught.value.problems]


def test_minimal_configuration_is_clean() -> None:
    loaded = load(MINIMAL)
    assert (loaded.unused, loaded.warnings) == ((), ())
    assert loaded.config.service.http_port == 6333
    assert loaded.config.roles["search"].access == "r"


def test_an_outcome_is_kept_for_the_same_bytes_file_directory_and_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = Path("tlsproxy.yaml"), tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(tmp_path)
    first = parse(MINIMAL.encode(), here, {})
    assert parse(MINIMAL.encode(), here, {}) is first
    assert load(MINIMAL).config.tls.cert == Path("/etc/tlsproxy/server.pem")
    monkeypatch.chdir(there)
    assert parse(MINIMAL.encode(), here, {}).config.tls.cert == there / "server.pem"
    assert parse(MINIMAL.encode(), here, {"QDRANT__LOG_LEVEL": "DEBUG"}).config.log_level == "DEBUG"
    assert parse(MINIMAL.encode() + b"log_level: WARN\n", here, {}).config.log_level == "WARN"


def test_relative_paths_are_relative_to_the_file() -> None:
    config = load(MINIMAL + "audit: {}\nservice: {api_key_file: ../secrets/key, alt_api_key_file: /run/key}\n").config
    assert config.tls.cert == Path("/etc/tlsproxy/server.pem")
    assert config.tls.ca_cert == Path("/etc/tlsproxy/ca.pem")
    assert config.service.api_key_file == Path("/etc/tlsproxy/../secrets/key")
    assert config.service.alt_api_key_file == Path("/run/key")
    assert config.audit.dir == Path("/etc/tlsproxy/audit")


def test_audit_to_standard_output_is_no_path() -> None:
    assert load(MINIMAL + 'audit: {dir: "-"}\n').config.audit.dir == "-"


def test_every_crl_is_resolved() -> None:
    text = MINIMAL.replace("ca_cert: ca.pem", "ca_cert: ca.pem, crl: [a.crl, /b.crl]")
    assert load(text).config.tls.crl == (Path("/etc/tlsproxy/a.crl"), Path("/b.crl"))


def test_credential_names_a_file_of_systemd() -> None:
    text = MINIMAL.replace("key: server.key", 'key: "credential:server.key"')
    environ = {"CREDENTIALS_DIRECTORY": "/run/credentials/tlsproxy.service"}
    assert load(text, environ).config.tls.key == Path("/run/credentials/tlsproxy.service/server.key")
    assert problems(text) == [
        "1:25 tls.key: credential:NAME needs systemd's LoadCredential=: $CREDENTIALS_DIRECTORY is not set"
    ]


@pytest.mark.parametrize("name", ["../key", "a/b", "", ".", ".."])
def test_credential_is_a_name_and_no_path(name: str) -> None:
    text = MINIMAL.replace("server.key", f'"credential:{name}"')
    assert problems(text, {"CREDENTIALS_DIRECTORY": "/run"}) == [
        "1:25 tls.key: credential:NAME must name a credential, not a path"
    ]


LIST = 'for single collections a list: [{collection: docs, access: rw}] (all of them: "**")'


def test_all_problems_come_at_once_in_order() -> None:
    text = """\
tls: {cert: server.pem, kee: server.key, ca_cert: ca.pem}
service:
  http_port: many
  hots: 127.0.0.1
  api_key: [s3cret]
rolse: {}
roles:
  search: {access: x}
  ingest: {access: [{collection: docs, acces: rw}]}
  "bad name": {access: r}
identities: {}
audit:
  rotation: dayly
  rotation: daily
limits: 3
log_level: WARNING
"""
    assert problems(text) == [
        "1:1 tls.key: is required",
        "1:25 tls.kee: unknown key (did you mean 'key'?)",
        "3:3 service.http_port: must be a valid integer",
        "4:3 service.hots: unknown key (did you mean 'host'?)",
        "5:3 service.api_key: must be text: quote it",
        "6:1 rolse: unknown key (did you mean 'roles'?)",
        f"8:12 roles.search.access: must be 'r', 'm' or 'pr'; {LIST}",
        "9:21 roles.ingest.access[0].access: is required",
        "9:40 roles.ingest.access[0].acces: unknown key (did you mean 'access'?)",
        "10:3 roles.bad name: must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or a digit",
        '11:1 identities: must be a list: [{name: jobs, match: {cn: "ingest-*"}, role: ingest}]',
        "13:3 audit.rotation: must be 'daily' or 'hourly' (did you mean 'daily'?)",
        "14:3 audit.rotation: duplicate key (the first is in line 13)",
        "15:1 limits: must be a mapping: {connections: …, connections_per_address: …, per_address: …, …}",
        "16:1 log_level: must be 'DEBUG', 'INFO', 'WARN' or 'ERROR' (did you mean 'WARN'?)",
    ]


def test_a_mistake_in_one_item_hides_none_in_another() -> None:
    text = textwrap.dedent("""
    tls: {cert: a, key: b, ca_cert: c}
    roles:
      admin: {acces: m}
      search: {access: r}
    identities:
      - {name: one, match: {cnn: x}, role: admin}
      - {name: two, match: {cn: y}, role: serach}
      - {name: two, match: {ou: z}, role: admin}
      - {name: four, match: {}, role: search}
    """)
    found = problems(text)
    for key, mistake in (
        ("roles.admin.acces", "unknown key (did you mean 'access'?)"),
        ("identities[0].match.cnn", "unknown key (did you mean 'cn'?)"),
        ("identities[1].role", "no role is called 'serach' (did you mean 'search'?)"),
        ("identities[2].name", "'two' is the name of an earlier rule"),
        ("identities[3].match", "an empty match would match everybody"),
    ):
        assert [problem for problem in found if f" {key}: {mistake}" in problem], (key, found)
    assert not [problem for problem in found if "nobody" in problem or "'admin'" in problem]


def test_qdrants_keys_are_listed_and_not_used() -> None:
    text = MINIMAL + "storage: {storage_path: ./storage}\nservice: {max_workers: 0, metrics_port: 1}\ncluster:\n"
    unused = [f"{problem.line}:{problem.column} {problem.key}" for problem in load(text).unused]
    assert unused == ["4:1 storage", "5:11 service.max_workers", "5:27 service.metrics_port", "6:1 cluster"]


def test_section_whose_keys_are_commented_out_holds_its_defaults() -> None:
    assert load(MINIMAL + "limits:\nservice:\n  # host: 0.0.0.0\n").config.limits.connections == 10_000


def test_environment_wins_over_the_file() -> None:
    environ = {
        "QDRANT__SERVICE__HTTP_PORT": "7333",
        "qdrant__service__Grpc_Port": "null",
        "QDRANT__TLS__CRL": "[a.crl, b.crl]",
        "QDRANT__TLS__CA_CERT": "/run/ca.pem",
        "QDRANT__LOG_LEVEL": "debug",
        "QDRANT__AUDIT__LOG_API": "false",
        "QDRANT__LIMITS__HEAD_TIMEOUT": "2.5",
        "QDRANT_HOST": "not ours",
    }
    loaded = load(MINIMAL + "service: {http_port: 6333}\n", environ)
    config = loaded.config
    assert (config.service.http_port, config.service.grpc_port, config.log_level) == (7333, None, "DEBUG")
    assert config.tls.crl == (Path("/etc/tlsproxy/a.crl"), Path("/etc/tlsproxy/b.crl"))
    assert config.tls.ca_cert == Path("/run/ca.pem")
    assert (config.audit.log_api, config.limits.head_timeout) == (False, 2.5)
    assert (loaded.unused, loaded.warnings) == ((), ())


@pytest.mark.parametrize("key", ["123", "true", "null", "[a]", "0x10", "a: b"])
def test_key_from_the_environment_is_text_as_it_stands(key: str) -> None:
    api_key = load(MINIMAL, {"QDRANT__SERVICE__API_KEY": key}).config.service.api_key
    assert api_key is not None
    assert api_key.get_secret_value() == key


def test_empty_api_key_is_unset_as_in_qdrant() -> None:
    text = MINIMAL + 'service: {read_only_api_key: ""}\nupstream: {api_key: ""}\n'
    config = load(text, {"QDRANT__SERVICE__API_KEY": ""}).config
    assert (config.service.api_key, config.service.read_only_api_key, config.upstream.api_key) == (None, None, None)


@pytest.mark.parametrize("value", ["true", '"100"', "1.0", "1e2"])
def test_a_number_is_a_number(value: str) -> None:
    roles = MINIMAL.replace("access: r", f"access: r, queries: {{max_limit: {value}}}")
    assert problems(f"{roles}limits: {{max_headers: {value}}}") == [
        "2:39 roles.search.queries.max_limit: must be a valid integer",
        "4:10 limits.max_headers: must be a valid integer",
    ]


def test_a_number_of_seconds_or_of_the_environment() -> None:
    for text in ("limits: {handshake_timeout: true}", 'limits: {handshake_timeout: "5"}'):
        assert problems(MINIMAL + text) == ["4:10 limits.handshake_timeout: must be a valid number"]
    environ = {"QDRANT__LIMITS__HANDSHAKE_TIMEOUT": "5", "QDRANT__SERVICE__HTTP_PORT": "7000"}
    config = load(MINIMAL, environ).config
    assert (config.limits.handshake_timeout, config.service.http_port) == (5, 7000)


def test_problem_of_a_variable_names_it() -> None:
    not_a_number = "must be a valid integer"
    environ = {
        "QDRANT__SERVICE__HTTP_PORT": "x",
        "QDRANT__TLS__CRL": "[",
        "QDRANT__SERVICE__HOST": "a",
        "qdrant__service__host": "b",
    }
    assert problems(MINIMAL, environ) == [
        "env QDRANT__TLS__CRL tls.crl: not a value that YAML could read",
        "env qdrant__service__host service.host: set twice: QDRANT__SERVICE__HOST names the same key",
        f"env QDRANT__SERVICE__HTTP_PORT service.http_port: {not_a_number}",
    ]


def test_variable_that_sets_nothing_is_reported() -> None:
    loaded = load(
        MINIMAL,
        {
            "QDRANT__STORAGE__STORAGE_PATH": "x",
            "QDRANT__SERVICE__MAX_WORKERS": "1",
            "QDRANT__SERVICE__API_KEI": "x",
            "QDRANT__ROLES__ADMIN__ACCESS": "m",
            "QDRANT__LISTENERS": "[]",
            "QDRANT__SERVICE": "x",
            "QDRANT__": "x",
        },
    )
    assert [str(problem) for problem in loaded.unused] == [
        "env QDRANT__SERVICE__MAX_WORKERS service.max_workers: Qdrant's own; tlsproxy does not use it",
        "env QDRANT__STORAGE__STORAGE_PATH storage.storage_path: Qdrant's own; tlsproxy does not use it",
    ]
    warnings = [str(problem) for problem in loaded.warnings]
    assert (
        "env QDRANT__ROLES__ADMIN__ACCESS roles.admin.access: roles cannot be set in the environment; ignored"
        in warnings
    )
    assert (
        "env QDRANT__SERVICE__API_KEI service.api_kei: no such key (did you mean 'service.api_key'?); ignored"
        in warnings
    )
    assert "env QDRANT__LISTENERS listeners: listeners cannot be set in the environment; ignored" in warnings
    assert len(warnings) == 5
    assert loaded.config.roles.keys() == {"search"}


def test_variable_alone_makes_a_section() -> None:
    environ = {"QDRANT__TLS__CERT": "/c", "QDRANT__TLS__KEY": "/k", "QDRANT__TLS__CA_CERT": "/ca"}
    config = load(MINIMAL.split("\n", 1)[1], environ).config
    assert config.tls.cert == Path("/c")


def test_secret_is_in_no_problem_and_no_repr() -> None:
    secret = "hunter2hunter2"
    text = MINIMAL + f"service: {{api_key: {secret}, alt_api_key: [{secret}], read_only_api_key: {secret}\u00e9}}\n"
    text += f"upstream: {{rest: 'http://u:{secret}@127.0.0.1:1', api_key: {{{secret}: 1}}}}\nlog_level: {secret}\n"
    assert secret not in "\n".join(problems(text, {"QDRANT__LIMITS__CONNECTIONS": secret}))
    assert secret not in repr(load(MINIMAL + f"service: {{api_key: {secret}}}\n"))


def test_not_yaml_is_one_problem() -> None:
    assert problems("tls: [\n") == ["2:1 not YAML: expected the node content, but found '<stream end>'"]


def test_empty_file_says_what_is_required() -> None:
    assert "1:1 tls: is required" in problems("")


def test_schema_knows_both_ours_and_qdrants_keys() -> None:
    document = json.loads(json.dumps(schema()))
    assert document["properties"].keys() >= {"service", "tls", "identities", "storage", "telemetry_disabled"}
    service = document["$defs"]["Service"]["properties"]
    assert service["http_port"]["description"].startswith("Port of the REST API")
    assert "max_workers" in service
    assert document["additionalProperties"] is False


WORDS = st.sampled_from(["tls", "service", "cert", "key", "access", "name", "match", "roles", "x", "", "r", "1", "*"])
VALUES = st.recursive(
    WORDS | st.none() | st.integers() | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=10,
)
SECTIONS = st.sampled_from(
    ["tls", "service", "roles", "identities", "audit", "upstream", "admin", "limits", "storage", "log_level"]
)


@given(st.dictionaries(SECTIONS, VALUES, max_size=5))
def test_any_tree_is_a_configuration_or_a_config_error(tree: dict[str, object]) -> None:
    try:
        load(json.dumps(tree), {"QDRANT__SERVICE__HTTP_PORT": "1", "QDRANT__AUDIT__DIR": "x"})
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right, and nothing else


REFERENCE = yaml.safe_load((Path(__file__).parents[2] / "config" / "tlsproxy.yaml").read_text())
junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 40),
    st.sampled_from(["", "x", "*", "bad name", "m", "/", "http://a", "credential:x", "s\x00"]),
    st.lists(st.one_of(st.none(), st.just("x"), st.just({})), max_size=2),
    st.dictionaries(st.sampled_from(["name", "access", "cn", "bad key", "role", "1"]), st.sampled_from(["r", 1, {}])),
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@pytest.mark.fuzz
@given(
    st.lists(st.tuples(st.sampled_from(places(REFERENCE)), st.sampled_from(["set", "add", "drop"]), junk), max_size=4)
)
def test_whatever_is_wrong_is_a_problem_with_a_place(changes: list[tuple[tuple[str | int, ...], str, object]]) -> None:
    tree = copy.deepcopy(REFERENCE)
    for (*way, last), change, value in changes:
        holder = tree
        try:
            for step in way:
                holder = holder[step]
            if change == "drop":
                del holder[last]
            elif change == "set" or isinstance(holder, list):
                holder[last] = value
            else:
                holder[f"{last}x"] = value
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    try:
        load(yaml.dump(tree, Dumper=yaml.CSafeDumper))
    except ConfigError as error:
        found = error.problems
    else:
        return
    assert found
    assert all(problem.line >= 1 and problem.text for problem in found)
