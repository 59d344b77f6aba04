"""Qdrant's own API keys: their names in the audit log, and their rights."""

from __future__ import annotations

from dataclasses import replace

from tlsproxy.authz.access import GlobalMode, Rights
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import UNKNOWN_DIGEST, Key, Keys
from tlsproxy.authz.matcher import Matcher

HOLDER = Identity(subject="CN=a", issuer="CN=ca", serial="1", sha256="00", not_after=2e9, common_name="a")
OTHER = replace(HOLDER, common_name="b")


def test_qdrants_own_keys_by_name() -> None:
    found = [Keys.of("a", "b", "c").find(secret, None, 0) for secret in ("a", "b", "c")]
    assert [(key.name, key.rights.everywhere) for key in found if key is not None] == [
        ("api_key", GlobalMode.M),
        ("alt_api_key", GlobalMode.M),
        ("read_only_api_key", GlobalMode.R),
    ]


def test_a_key_by_its_name_must_be_valid_too() -> None:
    all_of_it = Rights(everywhere=GlobalMode.M)
    bound = Key("bound", b"1", all_of_it, expires=10, certificate=Matcher(cn="a"))
    keys = Keys((bound, Key("free", b"2", all_of_it), Key("free", b"3", all_of_it)))
    assert keys.named("free", None, 99) is keys.keys[1]
    assert keys.named("bound", HOLDER, 9.9) is bound
    for name, identity, now in (("other", HOLDER, 0), ("bound", HOLDER, 10), ("bound", None, 0), ("bound", OTHER, 0)):
        assert keys.named(name, identity, now) is None
    assert keys.named("bound", replace(HOLDER, defect="odd"), 0) is None


def test_without_secrets_there_are_no_keys() -> None:
    assert not Keys.of()
    assert Keys.of().keys == ()
    assert Keys.of("a")


def test_a_key_whose_secret_could_not_be_read_exists_and_equals_nothing() -> None:
    keys = Keys.of(None)
    assert [(key.name, key.digest) for key in keys.keys] == [("api_key", UNKNOWN_DIGEST)]
    assert keys
    assert keys.find("", None, 0) is None
