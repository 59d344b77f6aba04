from __future__ import annotations

import json
from pathlib import Path

import pytest

from tlsproxy.authz.access import GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.identity import Identity
from tlsproxy.authz.keys import Keys
from tlsproxy.authz.locks import Locks
from tlsproxy.authz.tokens import Tokens
from tlsproxy.config.loader import parse
from tlsproxy.config.model import Config
from tlsproxy.config.policy import policy_of
from tlsproxy.config.secrets import known_keys, secret_files, upstream_api_key
from tlsproxy.errors import MaterialError

MANAGE, READ = Rights(everywhere=GlobalMode.M), Rights(everywhere=GlobalMode.R)


def config(directory: Path, **sections: object) -> Config:
    tree = {"tls": {"cert": "c", "key": "k", "ca_cert": "a"}, "service": {"api_key": "k"}} | sections
    return parse(json.dumps(tree).encode(), directory / "f.yaml", {}).config


def rights(keys: Keys, presented: str) -> Rights | None:
    key = keys.find(presented, None, 0.0)
    return None if key is None else key.rights


def test_keys_come_from_the_file_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "ro").write_bytes(b"reader\n")
    (tmp_path / "up").write_bytes(b"upstream\r\n")
    loaded = config(
        tmp_path,
        service={"api_key": "manager", "read_only_api_key_file": "ro"},
        upstream={"api_key_file": "up"},
    )
    assert secret_files(loaded) == (tmp_path / "ro", tmp_path / "up")
    keys = known_keys(loaded, Path.read_bytes)
    assert rights(keys, "manager") == MANAGE
    assert rights(keys, "reader") == READ
    assert rights(keys, "reader\n") is None
    assert upstream_api_key(loaded, Path.read_bytes) == "upstream"


def test_no_upstream_key_is_none(tmp_path: Path) -> None:
    assert upstream_api_key(config(tmp_path), Path.read_bytes) is None


def test_nothing_is_read_where_no_file_is_named(tmp_path: Path) -> None:
    loaded = config(tmp_path, service={"alt_api_key": "other"})
    assert secret_files(loaded) == ()
    assert rights(known_keys(loaded, Path.read_bytes), "other") == MANAGE


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines\n", b" padded", b"schl\xc3\xbcssel", b"\x00", b"a\n\n"])
def test_file_without_a_usable_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    loaded = config(tmp_path, service={"api_key_file": "key"})
    with pytest.raises(MaterialError) as caught:
        known_keys(loaded, Path.read_bytes)
    assert caught.value.path == str(tmp_path / "key")
    assert "lines" not in str(caught.value)


def test_policy_says_what_the_configuration_says(tmp_path: Path) -> None:
    loaded = config(
        tmp_path,
        roles={
            "admin": {"access": "m"},
            "search": {"access": "r"},
            "ingest": {
                "access": [
                    {"collection": "docs", "access": "rw"},
                    {"collection": "a*", "access": "prw"},
                    {"collection": "b", "access": "r"},
                ]
            },
        },
        identities=[
            {"name": "jobs", "match": {"cn": "ingest-*", "o": "Acme"}, "role": "ingest"},
            {"name": "all", "match": {"o": "Acme"}, "role": "search"},
        ],
    )
    policy = policy_of(loaded, Keys(), Tokens(), Locks())
    assert policy.roles == {
        "admin": MANAGE,
        "search": READ,
        "ingest": Rights(
            grants=Grants(
                Grant("docs", write=True, extras=True),
                Grant("a*", write=True, extras=False),
                Grant("b", write=False, extras=True),
            )
        ),
    }
    who = Identity("O=Acme", "CN=CA", "1", "00", 0.0, common_name="ingest-1", organizations=("Acme",))
    assert policy.principal_of(who).rule == "jobs"
