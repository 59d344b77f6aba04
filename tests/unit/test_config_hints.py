"""Rights in another form than ours, and keys at another level: the mistake's text shows the right form."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize("access", ["rw", "w", "read", "R", "true", "null", "''", "{docs: rw}", f"{GRANT}"])
def test_rights_on_everything_and_rights_on_collections(access: str) -> None:
    assert problems(f"{{x: {{access: {access}}}}}") == [f"roles.x.access: must be 'r' or 'm'; {LIST}"]


def test_the_mode_that_was_meant() -> None:
    (text,) = problems("{x: {access: prw}}")
    assert "[{collection: docs, access: prw}]" in text


@pytest.mark.parametrize(
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
            "{x: {access: [{collection: a, access: m}]}}",
            "roles.x.access[0].access: must be 'r', 'rw' or 'prw' (m is of a role as a whole: `access: m`)",
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
