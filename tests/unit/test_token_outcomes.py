"""Tokens, outcome by outcome as Qdrant's own layer gives them, and what we refuse beyond it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt import PyJWS
from support.rows import rows
from test_config_tokens import RSA_KEY

from tlsproxy.authz.access import Decision, GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.claims import DUPLICATE, PAYLOAD, MalformedToken, read_object
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.tokens import UNKNOWN_KEY, Token, Tokens, VerificationKey, Verifier, mint, qdrant_verifier
from tlsproxy.errors import Form

KEY, ALT = "the-api-key", "the-alternative"
NOW = 1_800_000_000.7
TOKENS = Tokens((qdrant_verifier("api_key", KEY),))
WITH_ALT = Tokens((*TOKENS.verifiers, qdrant_verifier("alt_api_key", ALT)))
LENIENT = Tokens(TOKENS.verifiers, full_access_without_claim=True)
IDENTITY = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="ab" * 32, not_after=2e9)

GENERIC = (401, "Invalid API key or JWT")
SIGNATURE = (403, "InvalidSignature")
EXPIRED = (403, "ExpiredSignature")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(payload: str | bytes, header: str = '{"alg":"HS256","typ":"JWT"}', key: str = KEY) -> str:
    """Signed with whatever stands in it."""
    data = payload if isinstance(payload, bytes) else payload.encode("utf-8", "surrogatepass")
    message = f"{b64(header.encode())}.{b64(data)}"
    return f"{message}.{b64(hmac.digest(key.encode(), message.encode(), 'sha256'))}"


def token(key: str = KEY, **claims: Any) -> str:
    return raw(json.dumps(claims), key=key)


def verify(text: str, tokens: Tokens = TOKENS, identity: Identity | None = None, now: float = NOW) -> Token | Decision:
    return tokens.verify(text, identity, now)


def rights(text: str, tokens: Tokens = TOKENS, identity: Identity | None = None) -> Rights:
    outcome = verify(text, tokens, identity)
    assert isinstance(outcome, Token), outcome
    return outcome.rights


def refused(text: str, tokens: Tokens = TOKENS, identity: Identity | None = None) -> tuple[int, str]:
    outcome = verify(text, tokens, identity)
    assert isinstance(outcome, Decision)
    assert outcome.form is Form.BARE
    assert outcome.allowed is False
    assert outcome.reason
    return outcome.status, outcome.text


def test_an_independent_implementation_agrees_on_the_signature() -> None:
    assert PyJWS().decode(mint(KEY + "x" * 32, {"access": "r"}), KEY + "x" * 32, algorithms=["HS256"])
    assert rights(mint(KEY, {"access": "r"})) == Rights(everywhere=GlobalMode.R)


@rows(
    ("access", "given_rights"),
    [
        ("m", Rights(everywhere=GlobalMode.M)),
        ("r", Rights(everywhere=GlobalMode.R)),
        ([], Rights()),
        ([{"collection": "docs", "access": "rw"}], Rights(grants=Grants(Grant("docs", write=True, extras=True)))),
        (
            [{"collection": "docs", "access": "prw", "x": 1}],
            Rights(grants=Grants(Grant("docs", write=True, extras=False))),
        ),
        (
            [{"collection": "a", "access": "r", "payload": None}],
            Rights(grants=Grants(Grant("a", write=False, extras=True))),
        ),
        ([{"collection": "logs.*", "access": "r"}], Rights(grants=Grants(Grant("logs.*", write=False, extras=True)))),
        ({"collections": {"docs": ["read"]}}, Rights(grants=Grants(Grant("docs", write=False, extras=True)))),
        ({"collections": {"docs": ["write", "read"]}}, Rights(grants=Grants(Grant("docs", write=True, extras=True)))),
        ({"collections": {}}, Rights()),
    ],
)
def test_access(access: object, given_rights: Rights) -> None:
    assert rights(token(access=access)) == given_rights
    assert rights(token(access=access, key=ALT), WITH_ALT) == given_rights


@rows(
    "access",
    [
        None, "", "rw", "prw", "M", 1, True, {}, {"m": None}, [["docs", "r"]], [None], [{}], ["docs"],
        [{"collection": "docs"}], [{"collection": "docs", "access": "m"}], [{"collection": "docs", "access": ["r"]}],
        [{"collection": 1, "access": "r"}], [{"collection": "a***", "access": "r"}],
        {"collections": []}, {"collections": {"docs": "read"}}, {"collections": {"docs": ["write"]}},
        {"collections": {"docs": []}}, {"collections": {"docs": ["read", "manage"]}},
        {"collections": {"docs": {"read": 1}}}, {"collections": {"docs": ["read", 1]}},
        {"collections": {"docs": [["read"]]}}, {"collections": {"a***": ["read"]}},
        {"collections": {}, "global": "m"},
    ],
)  # fmt: skip
def test_access_of_another_form_is_no_token(access: object) -> None:
    assert refused(token(access=access)) == GENERIC


def test_no_access_claim_is_full_access_only_where_that_is_configured() -> None:
    status, text = refused(token(exp=int(NOW) + 60))
    assert status == 401
    assert "jwt_full_access_without_claim" in text
    assert rights(token(), LENIENT) == Rights(everywhere=GlobalMode.M)


@pytest.mark.parametrize(
    ("seconds", "outcome"), [(60, None), (0, None), (-29, None), (-30, None), (-31, EXPIRED), (-10_000, EXPIRED)]
)
def test_expiry_has_thirty_seconds_of_leeway(seconds: int, outcome: tuple[int, str] | None) -> None:
    text = token(access="r", exp=int(NOW) + seconds)
    if outcome is None:
        assert rights(text)
    else:
        assert refused(text) == outcome


@rows("exp", [1.5, -1, "1900000000", None, True, [], 1 << 64, 1e30])
def test_an_expiry_of_another_form_is_no_token(exp: object) -> None:
    assert refused(token(access="r", exp=exp)) == GENERIC


def test_the_first_second_of_all_is_a_time() -> None:
    assert refused(token(access="r", exp=0)) == EXPIRED
    assert rights(token(access="r", nbf=0))


def test_tokens_are_minted_as_they_are_read() -> None:
    for number in range(100):
        outcome = verify(mint(KEY, {"access": "r", "number": number}))
        assert isinstance(outcome, Token), number
    assert qdrant_verifier("name", KEY).name == "name"


def test_a_plan_must_not_outlive_its_token() -> None:
    outcome = verify(token(access="r", exp=int(NOW)))
    assert isinstance(outcome, Token)
    assert isinstance(verify(token(access="r", exp=int(NOW)), now=outcome.expires - 0.01), Token)
    assert isinstance(verify(token(access="r", exp=int(NOW)), now=outcome.expires), Decision)
    forever = verify(token(access="r"))
    assert isinstance(forever, Token)
    assert forever.expires == float("inf")


def test_expired_and_malformed_is_malformed() -> None:
    assert refused(token(access="rw", exp=1)) == GENERIC


def test_the_first_error_counts_in_the_order_of_the_keys() -> None:
    assert refused(token(access="r", exp=1), WITH_ALT) == EXPIRED
    assert refused(token(access="r", exp=1, key=ALT), WITH_ALT) == SIGNATURE  # the api_key's verifier says so first
    assert refused(token(access="rw", key=ALT), WITH_ALT) == SIGNATURE
    assert refused(token(access="rw"), WITH_ALT) == SIGNATURE  # no token for the one, not signed by the other
    assert refused(token(access="rw")) == GENERIC
    assert refused("wrong", WITH_ALT) == GENERIC


def test_a_wrong_signature_is_told_from_a_wrong_key() -> None:
    assert refused(token(access="m", key="another")) == SIGNATURE
    head, payload, signature = token(access="r").split(".")
    other = b64(b'{"access":"m"}')
    assert refused(f"{head}.{other}.{signature}") == SIGNATURE
    assert refused(f"{head}.{payload}.") == SIGNATURE
    assert refused(f"{head}.{payload}.{signature[:-3]}") == SIGNATURE


@rows("text", ["", "wrong", ".", "..", "a.b.c", "foo.bar.baz", "a.b", "a.b.c.d", KEY, "\xe9.\xe9.\xe9"])
def test_what_does_not_look_like_a_token_is_a_wrong_key(text: str) -> None:
    assert refused(text) == GENERIC


@rows("part", [0, 1, 2])
@rows("change", ["=", "==", "+", " ", "\n", "%3D"])
def test_padding_and_other_alphabets_are_refused(part: int, change: str) -> None:
    parts = token(access="r").split(".")
    parts[part] += change
    assert refused(".".join(parts)) in {GENERIC, SIGNATURE}
    assert part == 1 or refused(".".join(parts)) == GENERIC


def test_bits_that_no_encoder_sets_are_refused() -> None:
    parts = token(access="r").split(".")
    assert len(parts[2]) == 43
    last = parts[2][-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    parts[2] = parts[2][:-1] + alphabet[alphabet.index(last) + 1]
    assert refused(".".join(parts)) == GENERIC


@rows(
    "header",
    [
        '{"alg":"none"}', '{"alg":"None"}', '{"alg":"HS384"}', '{"alg":"RS256"}', '{"alg":"hs256"}', '{"alg":""}',
        '{"alg":null}', '{"alg":["HS256"]}', "{}", "[]", '"HS256"', '{"alg":"HS256","kid":1}',
        '{"alg":"HS256","typ":{}}', '{"alg":"none","alg":"HS256"}', '{"alg":"HS256","alg":"none"}', '{"alg":"HS256"',
        '\ufeff{"alg":"HS256"}',
    ],
)  # fmt: skip
def test_a_header_that_is_not_exactly_right(header: str) -> None:
    assert refused(raw('{"access":"m"}', header)) == GENERIC
    message = raw('{"access":"m"}', header).rsplit(".", 1)[0]
    assert refused(f"{message}.") == GENERIC


@pytest.mark.parametrize("header", ['{"alg":"HS256"}', '{"alg":"HS256","kid":"../../etc/passwd","jku":"https://evil"}'])
def test_a_header_chooses_nothing(header: str) -> None:
    assert rights(raw('{"access":"r"}', header))


@rows(
    "payload",
    [
        "", "null", "[]", '"m"', "{", '{"access":"r","access":"m"}', '{"access":"r","x":{"a":1,"a":2}}',
        '{"access":"r","exp":NaN}', '{"access":"r","x":Infinity}', '\ufeff{"access":"r"}', '{"access":"r"} x',
        '{"access":"r","subject":"\\ud800"}', '{"access":"r","\\udfff":1}', '{"access":"r",}', "{'access':'r'}",
        '{"access":"r","x":' + "[" * 100_000 + "]" * 100_000 + "}", '{"access":"r","exp":' + "9" * 5000 + "}",
        b'{"access":"r","x":"\xff"}',
    ],
)  # fmt: skip
def test_a_payload_that_two_readers_could_read_differently(payload: str | bytes) -> None:
    assert refused(raw(payload)) == GENERIC


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a":[{"b":1,"b":2}]}', "a member comes twice"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":"\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_an_object_that_is_refused_says_why(text: bytes, says: str) -> None:
    """An operator reads it of a set of keys, and a client of a search in the audit log."""
    with pytest.raises(MalformedToken) as error:
        read_object(text)
    assert str(error.value) == says


def test_the_validators_texts() -> None:
    twice = [{"collection": "docs", "access": "r"}, {"collection": "docs", "access": "rw"}]
    status, text = refused(token(access=twice))
    assert status == 401
    assert "Collection name should be unique" in text
    status, text = refused(token(access=[{"collection": "docs", "access": "r", "payload": {"a": 1}}]))
    assert status == 401
    assert "The 'payload' constraint is deprecated and should not be used" in text
    assert refused(token(access=twice, exp=1)) == EXPIRED


@pytest.mark.parametrize("claims", [{"sub": 1}, {"subject": 1}, {"subject": []}, {"value_exists": []}, {"nbf": "1"}])
def test_known_claims_of_another_type(claims: dict[str, Any]) -> None:
    assert refused(token(access="r", **claims)) == GENERIC


def test_claims_that_do_not_matter() -> None:
    text = token(access="r", iss=1, aud=None, iat="x", jti=[], sub=None, subject=None, other={"a": 1})
    assert rights(text)
    outcome = verify(token(access="r", subject="alice", sub="tenant"))
    assert isinstance(outcome, Token)
    assert outcome.claims.subject == "alice"


def test_claims_that_are_absent_are_empty() -> None:
    for more in ({}, {"sub": None, "subject": None, "iss": 1, "aud": 1}):
        outcome = verify(token(access="r", **more))
        assert isinstance(outcome, Token)
        claims = outcome.claims
        assert (claims.subject, claims.issuer, claims.audience, claims.certificate) == ("", "", (), "")
        assert (claims.expires, claims.not_before, claims.exists, claims.defect) == (None, None, None, "")


def test_not_before_is_honoured() -> None:
    assert rights(token(access="r", nbf=int(NOW) + 30))
    assert refused(token(access="r", nbf=int(NOW) + 31)) == GENERIC


def test_expiry_can_be_required() -> None:
    strict = Tokens(TOKENS.verifiers, require_exp=True)
    assert refused(token(access="r"), strict)[0] == 401
    assert rights(token(access="r", exp=int(NOW)), strict)


def test_a_token_that_is_bound_to_a_certificate() -> None:
    bound = token(access="r", cnf={"x5t#S256": b64(bytes.fromhex(IDENTITY.sha256))})
    assert rights(bound, identity=IDENTITY)
    assert refused(bound) == GENERIC
    other = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="cd" * 32, not_after=2e9)
    assert refused(bound, identity=other) == GENERIC


@pytest.mark.parametrize("cnf", [None, {}, "x", {"jkt": "a"}, {"x5t#S256": "00"}, {"x5t#S256": 1}, {"x5t#S256": ""}])
def test_a_binding_that_cannot_be_checked_is_refused(cnf: object) -> None:
    assert refused(token(access="r", cnf=cnf), identity=IDENTITY) == GENERIC


def test_value_exists_becomes_a_question_to_the_upstream() -> None:
    claim = {"collection": "users", "matches": [{"key": "id", "value": 7}, {"key": "ok", "value": True}]}
    outcome = verify(token(access="r", value_exists=claim))
    assert isinstance(outcome, Token)
    assert outcome.claims.exists is not None
    assert outcome.claims.exists.collection == "users"
    must = [{"key": "id", "match": {"value": 7}}, {"key": "ok", "match": {"value": True}}]
    assert json.loads(outcome.claims.exists.body) == {
        "limit": 1, "with_payload": False, "with_vector": False, "filter": {"must": must},
    }  # fmt: skip
    for number in (-(1 << 63), (1 << 63) - 1):
        claim = {"collection": "users", "matches": [{"key": "id", "value": number}]}
        assert isinstance(verify(token(access="r", value_exists=claim)), Token)
    one = verify(token(access="r", value_exists={"collection": "users", "matches": [{"key": "ok", "value": 1}]}))
    two = verify(token(access="r", value_exists={"collection": "users", "matches": [{"key": "ok", "value": True}]}))
    assert isinstance(one, Token)
    assert isinstance(two, Token)
    assert one.claims.exists != two.claims.exists


@rows(
    "claim",
    [
        {}, {"collection": "a"}, {"collection": 1, "matches": []}, {"collection": "a", "matches": {}}, "a", 1,
        {"collection": "a", "matches": [1]}, {"collection": "a", "matches": ["k"]},
        {"collection": "a", "matches": [{"key": 1, "value": "v"}]},
        {"collection": "a", "matches": [{}]}, {"collection": "a", "matches": [{"key": "k"}]},
        {"collection": "a", "matches": [{"key": "k", "value": 1.5}]},
        {"collection": "a", "matches": [{"key": "k", "value": None}]},
        {"collection": "a", "matches": [{"key": "", "value": "v"}]},
        {"collection": "a", "matches": [{"key": "k", "value": 1 << 63}]},
        {"collection": "a", "matches": [{"key": "k", "value": -(1 << 63) - 1}]},
    ],
)  # fmt: skip
def test_value_exists_of_another_form(claim: object) -> None:
    assert refused(token(access="r", value_exists=claim)) == GENERIC


EC_KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = "https://login.example.org/"


def issuer(algorithm: str, *keys: VerificationKey, name: str = "login", iss: str = ISSUER) -> Verifier:
    return Verifier(name, algorithm, keys, iss, "qdrant")


def signed(key: Any, algorithm: str, header: dict[str, str] | None = None, **claims: Any) -> str:
    told = {"iss": ISSUER, "aud": "qdrant", "access": "r"} | claims
    return PyJWS().encode(json.dumps(told).encode(), key, algorithm, headers=header)


ES = issuer("ES256", VerificationKey(EC_KEY.public_key(), "k1"))
RS = issuer("RS256", VerificationKey(RSA_KEY.public_key()))
BOTH = Tokens((*TOKENS.verifiers, ES, RS), full_access_without_claim=True)


def test_issuers() -> None:
    for text, name in (
        (signed(EC_KEY, "ES256"), "login"),
        (signed(RSA_KEY, "RS256", aud=["other", "qdrant"]), "login"),
        (token(access="r"), "api_key"),
    ):
        outcome = verify(text, BOTH)
        assert isinstance(outcome, Token)
        assert outcome.verifier.name == name
    assert rights(signed(EC_KEY, "ES256", {"kid": "k1"}), BOTH)
    assert refused(signed(EC_KEY, "ES256", {"kid": "k2"}), BOTH) == SIGNATURE


def test_a_key_that_its_issuer_does_not_have_yet() -> None:
    """Which is worth another look at the issuer's keys, and nothing else of a token is."""
    without_kid = issuer("ES256", VerificationKey(ec.generate_private_key(ec.SECP256R1()).public_key()), name="b")
    unknown = signed(EC_KEY, "ES256", {"kid": "k2"})
    for tokens in (BOTH, Tokens((ES, without_kid)), Tokens((without_kid, ES))):
        outcome = verify(unknown, tokens)
        assert isinstance(outcome, Decision)
        assert outcome.reason == UNKNOWN_KEY
        assert refused(unknown, tokens) == SIGNATURE
    other = ec.generate_private_key(ec.SECP256R1())
    for text, tokens in (
        (signed(other, "ES256", {"kid": "k1"}), BOTH),
        (signed(other, "ES256"), BOTH),
        (unknown, Tokens((without_kid,))),
        (unknown, Tokens((RS,))),
        (token(access="r", key="another"), BOTH),
    ):
        outcome = verify(text, tokens)
        assert isinstance(outcome, Decision)
        assert outcome.reason != UNKNOWN_KEY


@pytest.mark.parametrize(
    "claims",
    [{"iss": "https://evil/"}, {"iss": None}, {"aud": "other"}, {"aud": []}, {"aud": None}, {"aud": {"qdrant": 1}}],
)
def test_a_token_for_or_from_somebody_else(claims: dict[str, Any]) -> None:
    assert refused(signed(EC_KEY, "ES256", **claims), BOTH) == GENERIC


def test_an_issuers_token_without_access_has_no_rights_of_its_own() -> None:
    text = PyJWS().encode(json.dumps({"iss": ISSUER, "aud": "qdrant"}).encode(), EC_KEY, "ES256")
    outcome = verify(text, BOTH)
    assert isinstance(outcome, Token)
    assert outcome.rights is None


def test_an_issuers_token_that_must_be_understood() -> None:
    text = signed(EC_KEY, "ES256", {"crit": ["x"], "x": "y"})  # type: ignore[dict-item]
    assert refused(text, BOTH) == GENERIC


def test_a_public_key_is_no_shared_secret() -> None:
    """HS256 with the issuer's public key as the secret: the algorithm is the verifier's, never the token's."""
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = json.dumps({"iss": ISSUER, "aud": "qdrant", "access": "m"})
    message = ".".join((b64(b'{"alg":"HS256"}'), b64(claims.encode())))
    text = f"{message}.{b64(hmac.digest(pem, message.encode(), 'sha256'))}"
    assert refused(text, BOTH) == SIGNATURE
    assert refused(text, Tokens((RS,))) == GENERIC


def test_an_issuer_cannot_speak_for_another() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    two = Tokens((ES, issuer("ES256", VerificationKey(other.public_key()), name="b", iss="https://b/")))
    assert refused(signed(other, "ES256"), two) == SIGNATURE
    assert rights(signed(other, "ES256", iss="https://b/"), two)


NO_ACCESS = (
    f"{GENERIC[1]}: the token has no `access` claim, which would mean full access; "
    "service.jwt_full_access_without_claim allows that"
)
BOUND = {"cnf": {"x5t#S256": b64(bytes(32))}}
STRICT = Tokens(TOKENS.verifiers, require_exp=True)


@rows(
    ("text", "tokens", "reason", "shown"),
    [
        ("a.b", TOKENS, "invalid_key", GENERIC[1]),
        (token(access="rw"), TOKENS, "invalid_key", GENERIC[1]),
        (token(access="r", key="another"), TOKENS, "token_signature", "InvalidSignature"),
        (signed(EC_KEY, "ES256", {"kid": "k2"}), Tokens((ES,)), "token_key_unknown", "InvalidSignature"),
        (token(access="r", exp=1), TOKENS, "token_expired", "ExpiredSignature"),
        (token(access=[{"collection": "a", "access": "r"}] * 2), TOKENS, "token_claims", DUPLICATE),
        (token(access=[{"collection": "a", "access": "r", "payload": {}}]), TOKENS, "token_claims", PAYLOAD),
        (signed(EC_KEY, "ES256", aud="other"), Tokens((ES,)), "token_issuer", GENERIC[1]),
        (token(access="r", nbf=int(NOW) + 31), TOKENS, "token_not_yet_valid", GENERIC[1]),
        (token(access="r"), STRICT, "token_without_exp", f"{GENERIC[1]}: the token has no `exp` claim"),
        (token(access="r", **BOUND), TOKENS, "token_of_another_certificate", GENERIC[1]),
        (token(), TOKENS, "token_without_access", NO_ACCESS),
    ],
)  # fmt: skip
def test_each_refusal_has_its_reason_for_the_log(text: str, tokens: Tokens, reason: str, shown: str) -> None:
    outcome = verify(text, tokens, IDENTITY)
    assert isinstance(outcome, Decision)
    assert (outcome.reason, outcome.text) == (reason, shown)


def test_the_first_of_two_defects_is_told() -> None:
    twice = [{"collection": "a", "access": "r"}, {"collection": "a", "access": "r", "payload": {}}]
    assert refused(token(access=twice)) == (401, DUPLICATE)
    other = [{"collection": "a", "access": "r", "payload": {}}, {"collection": "a", "access": "r"}]
    assert refused(token(access=other)) == (401, PAYLOAD)


def test_secrets_are_in_no_repr() -> None:
    assert KEY not in repr(TOKENS)
    assert hashlib.sha256(KEY.encode()).hexdigest() not in repr(TOKENS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["r", "m", "rw", "docs"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["collection", "access", "payload", "collections", "m"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.fuzz
@given(json_values, json_values, json_values)
def test_no_claims_are_an_error_of_ours(access: object, exp: object, exists: object) -> None:
    outcome = verify(token(access=access, exp=exp, value_exists=exists))
    assert isinstance(outcome, Token | Decision)
    if isinstance(outcome, Token) and access != "m":
        assert outcome.rights.everywhere is not GlobalMode.M


@pytest.mark.fuzz
@given(st.binary(max_size=60), st.integers(0, 2), st.text(max_size=40))
def test_no_bytes_are_an_error_of_ours(data: bytes, part: int, text: str) -> None:
    parts = token(access="m").split(".")
    parts[part] = b64(data)
    if parts != token(access="m").split("."):
        assert isinstance(verify(".".join(parts)), Decision)
    assert isinstance(verify(text), Decision)
