"""The five stories of docs/stories.md, run as they stand: configurations, commands, Python, refusals, audit lines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from qdrant_client import QdrantClient
from support.gateway import Gateway
from support.qdrant_clients import EmbeddedUpstream
from support.sessions import Session, merged, run_commands, sections
from support.token_issuer import TokenIssuer, key_set, signed

PAGE = sections("docs/stories.md")
STORIES = [title for title in PAGE if title]
KEY = ec.generate_private_key(ec.SECP256R1())
USERS = {"bea": ["staff", "board"], "carl": ["sales"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, where the page's commands make the certificates."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(directory := tmp_path_factory.mktemp("stories"))
        patched.setenv("TLSPROXY_CONFIG", "tlsproxy.yaml")
        yield directory


@pytest.fixture(scope="module")
def login() -> Iterator[TokenIssuer]:
    with TokenIssuer() as issuer:
        document = {"issuer": f"{issuer.url}/", "jwks_uri": f"{issuer.url}/keys"}
        issuer.answers["/.well-known/openid-configuration"] = (200, json.dumps(document).encode())
        issuer.answers["/keys"] = (200, key_set(k=KEY))
        yield issuer


def token(login: TokenIssuer, user: str) -> str:
    """As a provider's token exchange (RFC 8693) writes it."""
    claims = {"sub": f"{user}@example.org", "groups": USERS[user], "act": {"sub": "answers"}}
    return signed(KEY, "k", iss=f"{login.url}/", aud="qdrant", exp=int(time.time()) + 600, **claims)


def replaced(text: str, own: dict[str, str]) -> str:
    """The page's text as a reader would make it their own."""
    for shown, mine in own.items():
        text = text.replace(shown, mine)
    return text


def shown(language: str, title: str = "") -> list[str]:
    """The blocks of a section in this language; of the introduction unless told."""
    return [block.text for block in PAGE[title] if block.language == language]


@pytest.fixture(scope="module")
def session(place: Path, login: TokenIssuer) -> Iterator[Session]:
    """One gateway with the parts of all stories, and the page's introduction run."""
    own = {"https://login.example.org": login.url, "qdrant.example.org": "localhost"}
    for user in USERS:
        (place / f"{user}.token").write_text(token(login, user))
    for block in shown("sh"):
        run_commands(replaced(block, own))
    parts = (yaml.safe_load(replaced(shown("yaml", title)[0], own)) for title in PAGE)
    whole: dict[str, Any] = reduce(merged, parts)
    with EmbeddedUpstream() as embedded, ExitStack() as clients:
        whole |= {
            "service": {"host": "127.0.0.1", "http_port": 0, "grpc_port": 0},
            "upstream": {"rest": embedded.url, "grpc": embedded.grpc_url},
            "audit": {"dir": "-", "flush_interval": 0.002},
            "admin": {"listen": f"unix:{place}/admin.sock"},
            "limits": {"drain_grace": 0},
        }
        (path := place / "tlsproxy.yaml").write_text(yaml.safe_dump(whole))

        def kept(**options: Any) -> QdrantClient:
            client = QdrantClient(**options)
            clients.callback(client.close)
            return client

        with Gateway(path) as gateway:
            own |= {":6333": f":{gateway.port}", "=6334": f"={gateway.grpc_port}"}
            running = Session(gateway, own=partial(replaced, own=own))
            for block in shown("python"):
                running.define(block)
            running.names["QdrantClient"] = kept
            yield running


@pytest.mark.parametrize("title", STORIES)
def test_story(title: str, session: Session) -> None:
    _, *blocks = PAGE[title]
    for block in blocks:
        session.run(block)


def test_five_stories_are_whole() -> None:
    """Configuration, commands with and without output, Python, audit line."""
    assert len(STORIES) == 5
    for title in STORIES:
        assert {block.language for block in PAGE[title]} == {"yaml", "sh", "console", "pycon", "json"}
