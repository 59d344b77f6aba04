"""Certificate, key and operation together: Qdrant's order of checks, and rights that only ever narrow each other."""

from __future__ import annotations

import pytest

from tlsproxy.authz.access import Decision, GlobalMode, Grant, Rights, forbidden
from tlsproxy.authz.admission import admit
from tlsproxy.authz.credentials import Keys, presented_key
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Policy, Principal
from tlsproxy.errors import Form
from tlsproxy.qdrant.judge import judge
from tlsproxy.qdrant.rest import recognise

KEYS = Keys.of("manage-key", "alternative", "reader")
NO_KEYS = Keys.of()
IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9)
ANYBODY = Principal(identity=None, rule="", role="", rights=Rights(), refusal=None)
UNMAPPED = Principal(
    identity=IDENTITY, rule="", role="", rights=Rights(), refusal=forbidden("no_role", "no role for CN=a")
)


def holder(**rights: object) -> Principal:
    return Principal(identity=IDENTITY, rule="rule", role="role", rights=Rights(**rights), refusal=None)  # type: ignore[arg-type]


ADMIN = holder(everywhere=GlobalMode.M)
LIMITED = holder(grants=(Grant("docs", write=True, extras=True),))


def ask(principal: Principal, method: str, path: str, key: str | None = None, keys: Keys = KEYS) -> Decision:
    admitted = admit(principal, Policy(roles={}, rules=(), keys=keys), key, now=0.0)
    return judge(admitted, recognise(method, path))


def refused(decision: Decision) -> tuple[int, str, Form]:
    assert not decision.allowed
    return decision.status, decision.text, decision.form


@pytest.mark.parametrize("path", ["/", "/healthz", "/livez", "/readyz", "/dashboard/index.html"])
@pytest.mark.parametrize("principal", [ANYBODY, UNMAPPED, ADMIN])
def test_open_paths_ask_for_nothing(path: str, principal: Principal) -> None:
    assert ask(principal, "GET", path).allowed
    assert ask(principal, "GET", path, key="wrong").allowed


def test_without_certificate_and_key() -> None:
    text = "Must provide an API key or an Authorization bearer token"
    assert refused(ask(ANYBODY, "GET", "/collections")) == (401, text, Form.BARE)
    assert refused(ask(ANYBODY, "GET", "/collections", keys=NO_KEYS)) == (401, text, Form.BARE)
    assert refused(ask(ANYBODY, "GET", "/collections", key="anything", keys=NO_KEYS)) == (401, text, Form.BARE)


@pytest.mark.parametrize("principal", [ANYBODY, ADMIN])
@pytest.mark.parametrize("key", ["wrong", "", "manage-key ", "Manage-Key"])
def test_a_wrong_key(principal: Principal, key: str) -> None:
    assert refused(ask(principal, "GET", "/collections", key=key)) == (401, "Invalid API key or JWT", Form.BARE)


def test_a_key_alone_gives_its_rights() -> None:
    assert ask(ANYBODY, "PUT", "/collections/docs", key="manage-key").allowed
    assert ask(ANYBODY, "PUT", "/collections/docs", key="alternative").allowed
    assert ask(ANYBODY, "GET", "/collections/docs", key="reader").allowed
    assert refused(ask(ANYBODY, "PUT", "/collections/docs", key="reader"))[0] == 403


def test_a_key_narrows_a_role_and_never_widens_it() -> None:
    assert refused(ask(ADMIN, "PUT", "/collections/docs", key="reader"))[0] == 403
    assert ask(ADMIN, "PUT", "/collections/docs", key="manage-key").allowed
    assert refused(ask(LIMITED, "PUT", "/collections/docs", key="manage-key"))[0] == 403
    assert ask(LIMITED, "PUT", "/collections/docs/points", key="manage-key").allowed
    assert refused(ask(LIMITED, "PUT", "/collections/docs/points", key="reader"))[0] == 403


def test_a_key_does_not_help_a_certificate_without_a_role() -> None:
    assert refused(ask(UNMAPPED, "GET", "/collections", key="manage-key"))[:2] == (403, "Forbidden: no role for CN=a")


def test_who_you_are_comes_before_whether_the_route_exists() -> None:
    assert refused(ask(ANYBODY, "GET", "/nothing"))[0] == 401
    assert refused(ask(UNMAPPED, "GET", "/nothing"))[0] == 403
    assert refused(ask(ADMIN, "GET", "/nothing")) == (404, "", Form.EMPTY)
    assert refused(ask(LIMITED, "HEAD", "/collections")) == (404, "", Form.EMPTY)


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("GET", "/collections", "unfiltered_listing"),
        ("GET", "/aliases", "unfiltered_listing"),
        ("GET", "/telemetry", "unfiltered_listing"),
        ("GET", "/collections/docs/aliases", "unfiltered_listing"),
        ("POST", "/collections/docs/points/query", "body_not_inspected"),
        ("POST", "/collections/docs/points/search/groups", "body_not_inspected"),
        ("POST", "/collections/other/points/query", "collection"),
    ],
)
def test_what_could_tell_or_name_another_collection_is_refused_to_a_limited_caller(
    method: str, path: str, reason: str
) -> None:
    decision = ask(LIMITED, method, path)
    assert refused(decision)[0] == 403
    assert decision.reason == reason
    assert ask(ADMIN, method, path).allowed


def test_where_a_key_is_read_from() -> None:
    assert presented_key("k", "Bearer t") == "k"
    assert presented_key("", "Bearer t") == ""
    assert presented_key(None, "Bearer t") == "t"
    assert presented_key(None, "Bearer  t") == " t"
    assert presented_key(None, "bearer t") is None
    assert presented_key(None, "Basic dDp0") is None
    assert presented_key(None, None) is None
    assert presented_key("k\xff", "Bearer t") == "t"
    assert presented_key("k\xff", "Bearer t\xff") is None


def test_empty_keys_are_none_and_none_shows() -> None:
    assert not Keys.of("", "", "")
    assert Keys.of("", "", "r").find("", None, 0.0) is None
    same = Keys.of("same", "", "same").find("same", None, 0.0)
    assert same is not None
    assert same.rights == Rights(everywhere=GlobalMode.M)
    assert "digest" not in repr(KEYS)
