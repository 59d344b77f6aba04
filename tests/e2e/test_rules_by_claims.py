"""Rules by claims of an issuer's tokens: over REST and gRPC, alone and beside certificates, told and changed live."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm
from qdrant_client import QdrantClient
from qdrant_client import grpc as pb
from qdrant_client import models as m
from support.gated_answers import GatedAnswer
from support.gateway import Gateway
from support.grpc_channels import call, channel
from support.grpc_upstream import GrpcUpstream, never
from support.h2_raw_client import SEARCH, fields, h2
from support.qdrant_clients import EmbeddedUpstream
from support.raw_connection import GET, connected
from support.raw_request import Client, Response
from support.site import CONFIG, Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint
from tlsproxy.cli import main

KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("login", "ci")}
OWN_KEY = "a key that is long enough to sign with"
GROUPS = "https://acme.example/groups"
LOGIN = "https://login.example/"
ISSUERS = [
    {"name": "login", "issuer": LOGIN, "audience": "qdrant", "algorithm": "ES256", "jwks": "login.json"},
    {"name": "ci", "issuer": "https://ci.example/", "audience": "qdrant", "algorithm": "ES256", "jwks": "ci.json",
     "groups_claim": "realm_access.roles"},
]  # fmt: skip
ROLES: dict[str, Any] = {
    **CONFIG["roles"],
    "sre": {"access": "m"},
    "docs": {"access": [{"collection": "docs", "access": "r"}]},
    "job": {"access": [{"collection": "docs", "access": "rw"}, {"collection": "logs", "access": "rw"}]},
    "tenants": {"access": [{"collection": "docs", "access": "r"}], "filter": {"tenant": "{claim:org.teams}"}},
    "agent": {"access": [{"collection": "docs", "access": "rw"}], "limits": {"per_identity": {}}},
}


def by_claims(name: str, role: str, claims: dict[str, Any], **match: str) -> dict[str, Any]:
    return {"name": name, "match": {**match, "claims": claims}, "role": role}


RULES = [
    by_claims("delegated", "agent", {"iss": LOGIN, "act.sub": "agent-*"}, cn="rag-*"),
    by_claims("staff", "sre", {"iss": LOGIN, GROUPS: "sre"}),
    by_claims("readers", "docs", {"iss": LOGIN, "sub": "*@acme.example", "email_verified": True}),
    by_claims("gates", "docs", {"iss": LOGIN, "gate": True}, dns="gate.example"),
    by_claims("tenants", "tenants", {"iss": LOGIN, "org.plan": "*"}),
    *CONFIG["identities"],
    by_claims("jobs", "job", {"iss": "https://ci.example/", "realm_access.roles": "ingest", "level": 3}),
]


def jwks(name: str) -> bytes:
    jwk = ECAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True) | {"kid": name, "alg": "ES256", "use": "sig"}
    return json.dumps({"keys": [jwk]}).encode()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Site:
    made = Site(tmp_path_factory.mktemp("claims"))
    for name in KEYS:
        made.write(f"{name}.json", jwks(name))
    made.issue("rag", client=True, common_name="rag-1")
    return made


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedUpstream]:
    with EmbeddedUpstream() as running:
        direct = QdrantClient(running.url)
        for name in ("docs", "logs"):
            direct.create_collection(name, vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        tenants = {1: "acme", 2: "umbrella", 3: "initech"}
        direct.upsert("docs", [m.PointStruct(id=n, vector=[1, n], payload={"tenant": t}) for n, t in tenants.items()])
        direct.close()
        yield running


def started(own: Site, embedded: EmbeddedUpstream, **sections: Any) -> Gateway:
    usual: dict[str, Any] = {
        "service": {"verify_https_client_certificate": False, "api_key": OWN_KEY, "jwt_rbac": True},
        "roles": ROLES,
        "identities": RULES,
        "jwt_issuers": ISSUERS,
    }
    return Gateway(own.write_config(embedded.url, grpc=embedded.grpc_url, **(usual | sections)))


@pytest.fixture(scope="module")
def gateway(own: Site, embedded: EmbeddedUpstream) -> Iterator[Gateway]:
    with started(own, embedded) as running:
        yield running


def token(signer: str = "login", **claims: Any) -> str:
    issuer = next(one for one in ISSUERS if one["name"] == signer)["issuer"]
    said = {"iss": issuer, "aud": ["qdrant", "other"], "exp": int(time.time()) + 600, **claims}
    return PyJWS().encode(json.dumps(said).encode(), KEYS[signer], "ES256", {"kid": signer})


def asked(gateway: Gateway, own: Site, sent: str | None, client: str | None, method: str, path: str) -> Response:
    fields = [] if sent is None else [("authorization", f"Bearer {sent}")]
    with Client(gateway, own.client(client)) as connection:
        return connection.ask(method, path, fields, b"{}" if method == "POST" else b"")


def reach(gateway: Gateway, own: Site, sent: str | None, client: str | None = None) -> dict[str, int]:
    """The statuses of reading each collection, and of writing docs, the same over both protocols."""
    fields = [] if sent is None else [("authorization", f"Bearer {sent}")]
    rest = {}
    with Client(gateway, own.client(client)) as connection:
        for name in ("docs", "logs"):
            rest[name] = connection.ask("POST", f"/collections/{name}/points/count", fields, b"{}").status
        rest["write"] = connection.ask("DELETE", "/collections/docs/index/absent", fields).status
    messages = {
        "docs": ("/qdrant.Points/Count", pb.CountPoints(collection_name="docs")),
        "logs": ("/qdrant.Points/Count", pb.CountPoints(collection_name="logs")),
        "write": (
            "/qdrant.Points/DeleteFieldIndex",
            pb.DeleteFieldIndexCollection(collection_name="docs", field_name="absent"),
        ),
    }
    statuses = {grpc.StatusCode.OK: 200, grpc.StatusCode.PERMISSION_DENIED: 403, grpc.StatusCode.UNAUTHENTICATED: 401}
    with channel(gateway, own, client) as opened:
        for name, (method, message) in messages.items():
            answered = call(opened, method, message.SerializeToString(), *((name, value) for name, value in fields))
            assert statuses[answered.code] == rest[name], (name, answered, rest)
    return rest


ALL = {"docs": 200, "logs": 200, "write": 200}
READS = {"docs": 200, "logs": 403, "write": 403}
WRITES = {"docs": 200, "logs": 403, "write": 200}
FORBIDDEN = dict.fromkeys(ALL, 403)
UNKNOWN = dict.fromkeys(ALL, 401)


def test_claims_give_a_role(own: Site, gateway: Gateway) -> None:
    verified = {"sub": "alice@acme.example", "email_verified": True}
    for sent, expected in (
        (token(**{GROUPS: ["dev", "sre"]}), ALL),
        (token(**{GROUPS: "sre"}), ALL),
        (token(**verified), READS),
        (token(**verified, **{GROUPS: ["sre"]}), ALL),
        (token("ci", realm_access={"roles": ["ingest"]}, level=3), ALL),
        (token(**{GROUPS: ["SRE"]}), UNKNOWN),
        (token(**{GROUPS: [["sre"], {"sre": "sre"}, None]}), UNKNOWN),
        (token(**{GROUPS: []}), UNKNOWN),
        (token(https={"//acme": {"example/groups": "sre"}}), UNKNOWN),
        (token(**(verified | {"email_verified": "true"})), UNKNOWN),
        (token(**(verified | {"email_verified": 1})), UNKNOWN),
        (token(**(verified | {"sub": "alice/x@acme.example"})), UNKNOWN),
        (token("ci", realm_access={"roles": ["ingest"]}, level="3"), UNKNOWN),
        (token("ci", **{GROUPS: ["sre"]}), UNKNOWN),
        (token("ci", **{GROUPS: ["sre"], "iss": LOGIN}), dict.fromkeys(ALL, 403)),
        (token(**{GROUPS: ["sre"], "aud": "other"}), UNKNOWN),
        (mint(OWN_KEY, {"iss": LOGIN, "aud": "qdrant", GROUPS: ["sre"]}), UNKNOWN),
    ):
        assert reach(gateway, own, sent) == expected, sent


def test_everything_that_applies_must_allow(own: Site, gateway: Gateway) -> None:
    sre, reader = token(**{GROUPS: "sre"}), token(sub="a@acme.example", email_verified=True)
    assert reach(gateway, own, sre, "search") == ALL | {"write": 403}
    assert reach(gateway, own, sre, "ingest") == WRITES
    assert reach(gateway, own, reader, "admin") == READS
    assert reach(gateway, own, token(**{GROUPS: "sre"}, access="r")) == ALL | {"write": 403}
    assert reach(gateway, own, token(access=[{"collection": "docs", "access": "rw"}])) == WRITES
    assert reach(gateway, own, token(sub="stranger"), "admin") == UNKNOWN, "a token only narrows"


def test_an_agent_on_behalf_of_a_user(own: Site, gateway: Gateway) -> None:
    """Neither the certificate nor the token has any rights alone."""
    acting = token(sub="alice", act={"sub": "agent-7"})
    assert reach(gateway, own, acting, "rag") == WRITES
    assert reach(gateway, own, acting) == UNKNOWN
    assert reach(gateway, own, acting, "stranger") == FORBIDDEN
    assert reach(gateway, own, None, "rag") == reach(gateway, own, OWN_KEY, "rag") == FORBIDDEN
    assert reach(gateway, own, token(sub="alice", act={"sub": "other"}), "rag") == UNKNOWN
    assert reach(gateway, own, token(**{GROUPS: "sre"}), "rag") == FORBIDDEN, "that rule does not name the certificate"


def test_a_list_of_claims_is_a_tenant_of_each(own: Site, gateway: Gateway) -> None:
    message = pb.CountPoints(collection_name="docs", exact=True).SerializeToString()
    for teams, expected in (
        (["acme", "initech"], 2),
        ("acme", 1),
        (["acme", "acme", "none"], 1),
        (["none", ["acme"], {"acme": 1}, None, ""], 0),
        ([f"team-{number}" for number in range(999)] + ["acme"], 1),
        ([f"team-{number}" for number in range(1000)] + ["acme"], None),
        ([], None),
        ([None, ["acme"]], None),
        (None, None),
    ):
        sent = token(org={"teams": teams, "plan": "free"})
        answered = asked(gateway, own, sent, None, "POST", "/collections/docs/points/count")
        with channel(gateway, own, None) as opened:
            over_grpc = call(opened, "/qdrant.Points/Count", message, ("authorization", f"Bearer {sent}"))
        if expected is None:
            assert (answered.status, over_grpc.code) == (403, grpc.StatusCode.PERMISSION_DENIED), teams
        else:
            assert answered.json["result"]["count"] == expected, teams
            assert pb.CountResponse.FromString(over_grpc.message).result.count == expected


def test_it_is_told(own: Site, gateway: Gateway) -> None:
    name = 'r\u202e\u200b\x00\n"e'
    sent = token(sub=name, **{GROUPS: "sre"}, groups=["sre", name, 5, None, ["x"], "g" * 300, "last"])
    told = asked(gateway, own, sent, None, "GET", "/_tlsproxy/whoami").json
    assert (told["role"], told["rule"], told["rights"]) == ("sre", "staff", ["m"])
    assert told["credential"]["rule"] == {"name": "staff", "role": "sre"}
    assert told["credential"]["subject"] == name
    assert told["credential"]["groups"] == ["sre", name, "5", "…"]
    record = gateway.audited(method="whoami")
    assert (record["auth_type"], record["subject"], record["token_subject"]) == ("Jwt", name, name)
    assert (record["key"], record["key_rights"], record["role"], record["rule"]) == ("login", "m", "sre", "staff")
    assert (record["token_rule"], record["token_role"], record["token_groups"]) == (
        "staff",
        "sre",
        ["sre", name, "5", "…"],
    )
    assert sent.split(".")[1] not in str(record)
    assert sent.split(".")[2] not in str(record)

    acting = token(sub="alice", act={"sub": "agent-7"}, groups="one")
    asked(gateway, own, acting, "rag", "GET", "/_tlsproxy/whoami")
    record = gateway.audited(method="whoami")
    assert (record["rule"], record["token_rule"], record["token_groups"]) == ("delegated", "delegated", ["one"])
    assert record["certificate_subject"] == "CN=rag-1"
    both = asked(
        gateway,
        own,
        token("ci", realm_access={"roles": ["ingest"]}, level=3, sub="j" * 300),
        "ingest",
        "GET",
        "/_tlsproxy/whoami",
    )
    assert (both.json["rule"], both.json["credential"]["rule"]["name"]) == ("ingest-jobs", "jobs")
    record = gateway.audited(method="whoami")
    assert (record["role"], record["token_role"], record["token_groups"]) == ("ingest", "job", ["ingest"])
    assert record["token_subject"] == "j" * 256

    asked(gateway, own, token(sub="bob"), None, "GET", "/collections/docs")
    record = gateway.audited(reason="token_without_access")
    assert "no rule of `identities` matches" in record["error"]


def test_explain_shows_the_rules_of_a_token(own: Site, gateway: Gateway) -> None:
    def explained(sent: str, client: str = "none") -> tuple[int, str]:
        certificate = client if client == "none" else str(own.directory / f"{client}.pem")
        words = [
            "explain",
            "--config",
            str(gateway.config),
            "--token",
            "-",
            certificate,
            "PUT",
            "/collections/docs/points",
        ]
        result = CliRunner().invoke(main, words, input=sent)
        return result.exit_code, result.stdout

    code, told = explained(token(sub="a\u202eb", act={"sub": "agent-1"}, groups=["x", "y"]), "rag")
    assert code == 0
    assert "token      subject a\\u202eb; groups x, y\n" in told
    assert '  rule "delegated" (role "agent"): matched; later rules are not tried\n' in told
    assert "token of   login (docs rw), rule delegated (role agent)\n" in told
    code, told = explained(token(**{GROUPS: ["dev"]}, email_verified=False, sub="x@acme.example"))
    assert code == 1
    assert '  rule "delegated" (role "agent"): act.sub is absent, not "agent-*"; there is no certificate\n' in told
    assert f'  rule "staff" (role "sre"): {GROUPS} is "dev", not "sre"\n' in told
    assert '  rule "readers" (role "docs"): email_verified is false, not true\n' in told
    assert "(token_without_access)" in told
    subject = ["explain", "--config", str(gateway.config), "CN=alice,OU=platform", "GET", "/collections"]
    told = CliRunner().invoke(main, subject).stdout
    assert "not judged rules" not in told, "those with claims are no rules of a certificate"
    assert "delegated" not in told
    code, told = explained(mint(OWN_KEY, {"access": "m"}))
    assert (code, "no rule is tried: its signer is no issuer" in told) == (0, True)


def test_a_changed_rule_counts_at_once_for_who_is_connected(own: Site, embedded: EmbeddedUpstream) -> None:
    sre, acting = token(**{GROUPS: "sre"}), token(act={"sub": "agent-1"})
    with (
        started(own, embedded) as gateway,
        Client(gateway, own.client(None)) as alone,
        Client(gateway, own.client("rag")) as beside,
        Client(gateway, own.client("search")) as other,
        channel(gateway, own, None) as calls,
    ):

        def statuses() -> tuple[int, str]:
            count = pb.CountPoints(collection_name="logs").SerializeToString()
            over_grpc = call(calls, "/qdrant.Points/Count", count, ("authorization", f"Bearer {sre}"))
            sent = [("authorization", f"Bearer {sre}")]
            return alone.ask("POST", "/collections/logs/points/count", sent, b"{}").status, over_grpc.code.name

        assert statuses() == (200, "OK")
        assert beside.ask("GET", "/collections/docs", [("authorization", f"Bearer {acting}")]).status == 200
        assert other.ask("GET", "/collections").status == 200

        rules = [RULES[0], RULES[1] | {"role": "docs"}, *RULES[2:]]
        own.edit_config(gateway.config, identities=rules)
        record = gateway.reloaded()
        assert record["changes"] == "rule staff: role sre → docs"
        assert record["affected_roles"] == "key login 3"
        assert statuses() == (403, "PERMISSION_DENIED")

        rules[1] = by_claims("staff", "docs", {"iss": LOGIN, GROUPS: "ops", "level": 1})
        own.edit_config(gateway.config, identities=rules)
        record = gateway.reloaded()
        assert record["changes"] == (f"rule staff: match.claims {GROUPS} sre → ops, match.claims level = 1 added")
        assert statuses() == (401, "UNAUTHENTICATED")

        own.edit_config(gateway.config, identities=rules[1:])
        gateway.reloaded()
        assert gateway.audited(event="connection")["reason"] == "no_role", "no rule names that certificate any more"
        assert other.ask("GET", "/collections").status == 200


def test_what_is_under_way_ends_with_the_rule(
    own_site: Site, upstream: ScriptedUpstream, grpc_upstream: GrpcUpstream
) -> None:
    """On connections that stay, and that others' requests do not notice."""
    keep, lose = by_claims("keep", "admin", {"groups": "kept"}), by_claims("lose", "admin", {"groups": "sre"})
    held, grpc_upstream.answer = GatedAnswer(), never
    upstream.answer = held
    own_site.write("login.json", jwks("login"))
    config = own_site.write_config(
        upstream.url,
        grpc=grpc_upstream.url,
        service={"verify_https_client_certificate": False},
        identities=[keep, lose],
        jwt_issuers=ISSUERS[:1],
    )
    sent, others = (f"authorization: Bearer {token(groups=group)}\r\n".encode() for group in ("sre", "kept"))
    bearer = ("authorization", f"Bearer {token(groups=['dev', 'sre'])}")
    with (
        Gateway(config) as gateway,
        connected(gateway, own_site.client(None)) as client,
        connected(gateway, own_site.client(None)) as other,
        h2(gateway, own_site, None) as calls,
    ):
        client.send(GET.replace(b"host", sent + b"host"))
        other.send(GET.replace(b"host", others + b"host"))
        stream = calls.call(b"", fields(SEARCH, bearer))
        held.wait(2)
        grpc_upstream.wait()
        own_site.edit_config(config, identities=[keep])
        assert client.response().status == 403
        assert calls.status(stream) in {7, 16}
        calls.lives()
        held.release.set()
        assert other.response().status == 200


def test_a_subject_is_an_account_over_both_protocols_and_all_workers(own: Site, embedded: EmbeddedUpstream) -> None:
    limits = {"requests_per_second": 0.01, "burst": 4}
    roles = ROLES | {"docs": ROLES["docs"] | {"limits": {"per_identity": limits}}}

    def reader(name: str, **claims: Any) -> str:
        return token(sub=f"{name}@acme.example", email_verified=True, **claims)

    with started(own, embedded, roles=roles, workers=2) as gateway:

        def count(sent: str, *, by_grpc: bool) -> int:
            if not by_grpc:
                return asked(gateway, own, sent, None, "POST", "/collections/docs/points/count").status
            message = pb.CountPoints(collection_name="docs").SerializeToString()
            with channel(gateway, own, None) as opened:
                code = call(opened, "/qdrant.Points/Count", message, ("authorization", f"Bearer {sent}")).code
            return {grpc.StatusCode.OK: 200, grpc.StatusCode.RESOURCE_EXHAUSTED: 429}[code]

        tried = [count(reader("alice", jti=str(turn)), by_grpc=turn % 2 == 0) for turn in range(7)]
        assert tried == [200] * 4 + [429] * 3
        assert count(reader("bob"), by_grpc=False) == count(reader("bob"), by_grpc=True) == 200
        assert count(token(**{GROUPS: "sre"}), by_grpc=False) == 200
