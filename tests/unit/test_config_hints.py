"""Rights in another form than ours, and keys at another level: the mistake's text shows the right form."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.rows import rows

from tlsproxy.config.loader import parse
from tlsproxy.config.problems import ConfigError

BASE = """\
tls: {cert: a, key: b, ca_cert: c}
service: {grpc_port: null}
identities: [{name: a, match: {cn: b}, role: x}]
"""
LIST = 'for single collections a list: [{collection: docs, access: rw}] (all of them: "**")'
GRANT = "{collection: docs, access: rw}"
RIGHTS = f"unknown key: rights stand under `roles`, by the role's name: {{reader: {{access: [{GRANT}]}}}}"


def problems(role: str, rest: str = "", identities: str = "") -> list[str]:
    base = BASE if not identities else BASE.replace("[{name: a, match: {cn: b}, role: x}]", identities)
    with pytest.raises(ConfigError) as refused:
        parse(f"{base}roles: {role}\n{rest}".encode(), Path("t.yaml"), {})
    return [f"{problem.key}: {problem.text}" for problem in refused.value.problems]


@rows("access", ["rw", "w", "read", "R", "true", "null", "''", "{docs: rw}", f"{GRANT}"])
def test_rights_on_everything_and_rights_on_collections(access: str) -> None:
    assert problems(f"{{x: {{access: {access}}}}}") == [f"roles.x.access: must be 'r', 'm' or 'pr'; {LIST}"]


def test_the_mode_that_was_meant() -> None:
    (text,) = problems("{x: {access: prw}}")
    assert "[{collection: docs, access: prw}]" in text


@rows(
    ("role", "expected"),
    [
        ("{x: {access: [rw]}}", f"roles.x.access[0]: must be a mapping: {GRANT}"),
        ("{x: {access: [[docs, rw]]}}", f"roles.x.access[0]: must be a mapping: {GRANT}"),
        (
            "{x: {access: [{docs: rw}]}}",
            f"roles.x.access[0].collection: is required; one name or glob for each entry: {GRANT}",
        ),
        (
            "{x: {access: [{collection: [a, b], access: r}]}}",
            f"roles.x.access[0].collection: must be text: quote it; one name or glob for each entry: {GRANT}",
        ),
        (
            "{x: {access: [{collection: a, access: mrw}]}}",
            "roles.x.access[0].access: must be 'r', 'rw', 'prw', 'pr' or 'm' (did you mean 'rw'?)",
        ),
        (
            "{x: {access: r, operations: [scroll]}}",
            "roles.x.operations: must be a mapping: {allow: [query_batch, scroll]}, or {deny: [delete_points]}",
        ),
        (
            "{x: {access: r, operations: {deny: scroll}}}",
            "roles.x.operations.deny: must be a list: [query_batch, scroll]",
        ),
        (
            "{x: {access: r, deny: [scroll]}}",
            "roles.x.deny: unknown key: it stands under `operations`: {deny: [delete_points]}",
        ),
        (
            "{x: {access: [{collection: a, access: r, allow: [scroll]}]}}",
            "roles.x.access[0].allow: unknown key: it stands under `operations`: {allow: [delete_points]}",
        ),
        (
            "{x: {collections: [a], access: r}}",
            f"roles.x.collections: unknown key: collections stand under `access`: [{GRANT}]",
        ),
        (
            "{x: {collection: a, access: r}}",
            f"roles.x.collection: unknown key: collections stand under `access`: [{GRANT}]",
        ),
        ("{x: {}}", f"roles.x.access: is required; {LIST}"),
        ("{x: rw}", f"roles.x: must be a mapping: {{access: r}}, or {{access: [{GRANT}]}}"),
        ("[{name: x, access: r}]", "roles: must be a mapping: {reader: {access: r}}"),
        (
            "{x: {access: r, match: {cn: b}}}",
            "roles.x.match: unknown key: certificates get their role under `identities`",
        ),
        ("{x: {access: r, filter: [a]}}", 'roles.x.filter: must be a mapping: {tenant: "{cn}"}'),
        (
            "{x: {access: r, filter: {a: 1.5}}}",
            "roles.x.filter.a: must be text: quote it, or an integer or a boolean: Qdrant compares no others",
        ),
        (
            "{x: {access: r, or_public: {a: [S3CRET]}}}",
            "roles.x.or_public.a: must be text: quote it; a claim that is a list gives several values: {claim:groups}",
        ),
        (
            "{x: {access: r, filter: {meta: {tenant: S3CRET}}}}",
            'roles.x.filter.meta: must be text: quote it; a key below a key has a path: {"meta.tenant": "{cn}"}',
        ),
        (
            "{x: {access: r, payload: {a: S3CRET}}}",
            'roles.x.payload: unknown key: a role is confined to points by its `filter`: {tenant: "{cn}"}',
        ),
    ],
)
def test_roles(role: str, expected: str) -> None:
    found = problems(role)
    assert expected in found
    assert "S3CRET" not in str(found)


@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        (
            "[{name: a, cn: b, role: x}]",
            'identities[0].cn: unknown key: fields of a certificate stand under `match`: {cn: "ingest-*"}',
        ),
        ("[{name: a, match: cn=b, role: x}]", 'identities[0].match: must be a mapping: {cn: "ingest-*"}'),
        ("[{name: a, match: {cn: b}, access: rw}]", f"identities[0].access: {RIGHTS}"),
        ("{a: {cn: b}}", 'identities: must be a list: [{name: jobs, match: {cn: "ingest-*"}, role: ingest}]'),
    ],
)
def test_identities(identities: str, expected: str) -> None:
    assert expected in problems("{x: {access: r}}", identities=identities)


@pytest.mark.parametrize("key", ["access", "collections", "grants"])
def test_rights_at_the_top(key: str) -> None:
    assert f"{key}: {RIGHTS}" in problems("{x: {access: r}}", rest=f"{key}: rw\n")


def test_another_mistake_has_the_nearest_word() -> None:
    assert "roles.x.acces: unknown key (did you mean 'access'?)" in problems("{x: {acces: r}}")
    assert "role: unknown key (did you mean 'roles'?)" in problems("{x: {access: r}}", rest="role: {}\n")


@rows(
    ("name", "hint"),
    [
        ("delete_point", " (did you mean 'delete_points'?)"),
        ("qurey_batch", " (did you mean 'query_batch'?)"),
        ("Upsert", " (did you mean 'upsert_points'?)"),
        ("scrol", " (did you mean 'scroll'?)"),
        ("search", " (did you mean 'core_search_batch'?)"),
        ("query", " (did you mean 'query_batch'?)"),
        ("matrix", " (did you mean 'search_points_matrix'?)"),
        ("nothing_like_it_at_all", ""),
        ("", ""),
    ],
)
def test_an_operation_that_there_is_not(name: str, hint: str) -> None:
    role = f"{{x: {{access: m, operations: {{deny: [scroll, '{name}']}}}}}}"
    assert problems(role) == [f"roles.x.operations.deny[1]: no operation is called {name!r}{hint}"]
    grant = f"{{x: {{access: [{{collection: a, access: m, operations: {{allow: ['{name}']}}}}]}}}}"
    assert problems(grant) == [f"roles.x.access[0].operations.allow[0]: no operation is called {name!r}{hint}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("healthz", "'healthz' needs no credential: no role can allow or deny it"),
        ("web_ui", "'web_ui' needs no credential: no role can allow or deny it"),
        ("whoami", "'whoami' is every caller's: no role can allow or deny it"),
        ("server_reflection", "'server_reflection' is every caller's: no role can allow or deny it"),
    ],
)
def test_an_operation_that_no_role_has_a_say_in(name: str, text: str) -> None:
    for key in ("allow", "deny"):
        found = problems(f"{{x: {{access: m, operations: {{{key}: [{name}]}}}}}}")
        assert found == [f"roles.x.operations.{key}[0]: {text}"]


@rows(
    ("role", "warning"),
    [
        ("{access: m, operations: {allow: []}}", "operations.allow: an empty list allows nothing"),
        (
            "{access: r, operations: {allow: [upsert_points]}}",
            "operations.allow[0]: `access` does not permit 'upsert_points'",
        ),
        (
            "{access: [{collection: a, access: prw}], operations: {allow: [create_snapshot]}}",
            "operations.allow[0]: `access` does not permit 'create_snapshot'",
        ),
        (
            "{access: [{collection: a, access: pr, operations: {allow: [delete_points]}}, {collection: b, access: m}]}",
            "access[0].operations.allow[0]: `access` does not permit 'delete_points'",
        ),
        (
            "{access: m, operations: {allow: [scroll], deny: [scroll]}}",
            "operations.allow[0]: 'scroll' is denied too, which counts",
        ),
        (
            '{access: [{collection: a, access: m}], filter: {tenant: "{cn}"}}',
            "access[0].access: nobody confined by a `filter` manages collections: m gives what rw does",
        ),
        ("{access: [{collection: a, access: m, operations: {allow: [change_aliases, list_aliases]}}]}", ""),
        (
            "{access: m, operations: {allow: [scroll, update_batch]}}",
            "operations.allow[1]: allows no batch alone: name what one may have in it too, such as 'upsert_points'",
        ),
        ("{access: m, operations: {allow: [delete_points, update_batch]}}", ""),
        ("{access: r, operations: {allow: [scroll], deny: [upsert_points]}}", ""),
        ("{access: pr, operations: {allow: [scroll, telemetry]}}", ""),
    ],
)
def test_operations_that_come_to_nothing(role: str, warning: str) -> None:
    parsed = parse(f"{BASE}roles: {{x: {role}}}".encode(), Path("t.yaml"), {})
    found = [f"{one.key}: {one.text}" for one in parsed.warnings if one.key.startswith("roles.x")]
    assert found == ([f"roles.x.{warning}"] if warning else [])
