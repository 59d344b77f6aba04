"""Certificate, key and operation together: Qdrant's order of checks, and rights that only ever narrow each other."""

from __future__ import annotations

import pytest

from tlsproxy.authz.access import ALLOWED, UNREAD, Decision, GlobalMode, Grant, Rights, forbidden
from tlsproxy.authz.credentials import Keys, presented_key
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.roles import Principal
from tlsproxy.errors import BadRequest, Form
from tlsproxy.qdrant.judge import judge, judge_body
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
    return judge(principal, keys, key, recognise(method, path)).decision


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


@pytest.mark.parametrize("path", ["/collections", "/aliases", "/telemetry", "/collections/docs/aliases", "/issues"])
def test_a_limited_callers_listing_is_reduced(path: str) -> None:
    asked = recognise("GET", path)
    judgement = judge(LIMITED, KEYS, None, asked)
    assert judgement.decision.allowed
    assert judgement.listing is not None
    assert judgement.listing.grants == LIMITED.rights.grants
    assert judge(ADMIN, KEYS, None, asked).listing is None
    assert judge(ADMIN, KEYS, "reader", asked).listing is None
    nobody = judge(holder(), KEYS, None, asked)
    assert (nobody.decision.allowed, nobody.listing) == (False, None)


@pytest.mark.parametrize("path", ["points/query", "points/search/groups", "points/discover/batch"])
def test_a_body_that_may_name_another_collection_decides_with_the_head(path: str) -> None:
    asked = recognise("POST", f"/collections/docs/{path}")
    judgement = judge(LIMITED, KEYS, None, asked)
    assert judgement.decision is UNREAD
    assert not judgement.decision.allowed
    batch = path.endswith("batch")

    def ask(body: bytes) -> Decision:
        return judge_body(judgement.rights, asked, b'{"searches":[%b]}' % body if batch else body)[0]

    assert ask(b"{}") is ALLOWED
    assert ask(b'{"lookup_from":{"collection":"docs"}}') is ALLOWED
    assert refused(ask(b'{"lookup_from":{"collection":"other"}}')) == (
        403,
        "Forbidden: Access to collection other is required",
        Form.JSON,
    )
    assert ask(b'{"with_lookup":"other"}').reason == "collection"
    assert judge(ADMIN, KEYS, None, asked).decision is ALLOWED
    assert ask_other(path).reason == "collection"
    with pytest.raises(BadRequest):
        ask(b"[")


def ask_other(path: str) -> Decision:
    """On a collection that the caller has no grant for, the head is enough."""
    return ask(LIMITED, "POST", f"/collections/other/{path}")


def test_where_a_key_is_read_from() -> None:
    assert presented_key("k", "Bearer t") == "k"
    assert presented_key("", "Bearer t") == ""
    assert presented_key(None, "Bearer t") == "t"
    assert presented_key(None, "Bearer  t") == " t"
    assert presented_key(None, "bearer t") is None
    assert presented_key(None, "Basic dDp0") is None
    assert presented_key(None, None) is None


def test_empty_keys_are_none_and_none_shows() -> None:
    assert not Keys.of("", "", "")
    assert Keys.of("", "", "r").rights_of("") is None
    assert Keys.of("same", "", "same").rights_of("same") == Rights(everywhere=GlobalMode.M)
    assert repr(KEYS) == "Keys()"
