"""Qdrant's own API keys: their names in the audit log, and their rights."""

from __future__ import annotations

from tlsproxy.authz.access import GlobalMode
from tlsproxy.authz.keys import UNKNOWN_DIGEST, Keys


def test_qdrants_own_keys_by_name() -> None:
    found = [Keys.of("a", "b", "c").find(secret, None, 0) for secret in ("a", "b", "c")]
    assert [(key.name, key.rights.everywhere) for key in found if key is not None] == [
        ("api_key", GlobalMode.M),
        ("alt_api_key", GlobalMode.M),
        ("read_only_api_key", GlobalMode.R),
    ]


def test_without_secrets_there_are_no_keys() -> None:
    assert not Keys.of()
    assert Keys.of().keys == ()
    assert Keys.of("a")


def test_a_key_whose_secret_could_not_be_read_exists_and_equals_nothing() -> None:
    keys = Keys.of(None)
    assert [(key.name, key.digest) for key in keys.keys] == [("api_key", UNKNOWN_DIGEST)]
    assert keys
    assert keys.find("", None, 0) is None
