"""Dex, a real identity provider: its users' groups become roles, and its keys are followed as it changes them.

Run by `make providers`: it is built from the Go module proxy.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from click.testing import CliRunner
from support.gateway import DEADLINE, Gateway, Lines
from support.qdrant_clients import qdrant
from support.raw_request import Client
from support.site import Site
from support.upstream import ScriptedUpstream, plain

from tlsproxy.cli import main

COMMIT = "20260806151424-ab64ed778070"
MODULE = f"""module provider

go 1.25.8

require (
	github.com/dexidp/dex v0.0.0-{COMMIT}
	github.com/dexidp/dex/api/v2 v2.4.1-0.{COMMIT}
)
"""
BUILD_DEADLINE = 600.0
ROTATION = 45.0
"""Dex looks every 30 s whether its keys are due."""

PASSWORD = "password"
HASH = "$2a$10$2b2cU8CPhOTaGrs1HRQuAueS7JTT5ZHsHSzYiFPm1leZck7Mc8T4W"
"""Its hash (bcrypt)."""
USERS = {"alice": ["sre", "staff"], "bob": ["staff"], "carol": []}


@pytest.fixture(scope="session")
def dex_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("go") is None:
        pytest.skip("Dex is built by Go, and there is no `go` on the PATH")
    directory = tmp_path_factory.mktemp("dex")
    (directory / "go.mod").write_text(MODULE)
    build = ["env", "CGO_ENABLED=0", "go", "build", "-mod=mod", "-o", "dex", "github.com/dexidp/dex/cmd/dex"]
    built = subprocess.run(build, cwd=directory, capture_output=True, text=True, timeout=BUILD_DEADLINE, check=False)
    if built.returncode != 0:
        pytest.skip(f"Dex cannot be built: {built.stderr.strip()[-400:]}")
    return directory / "dex"


class Dex:
    """A server of its own, whose keys are in memory: after a restart there are others."""

    def __init__(self, program: Path, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self._address = taken.getsockname()
        address = f"127.0.0.1:{self._address[1]}"
        self.issuer = f"http://{address}/dex"
        self._command = [str(program), "serve", str(directory / "dex.yaml")]
        users = [
            {"email": f"{name}@example.org", "username": name, "userID": name, "groups": groups, "hash": HASH}
            for name, groups in USERS.items()
        ]
        config: dict[str, Any] = {
            "issuer": self.issuer,
            "storage": {"type": "memory"},
            "web": {"http": address},
            "enablePasswordDB": True,
            "oauth2": {"passwordConnector": "local"},
            "signer": {"type": "local", "config": {"keysRotationPeriod": "1s"}},
            "staticClients": [{"id": "qdrant", "secret": "dex", "name": "q", "redirectURIs": ["http://127.0.0.1/"]}],
            "staticPasswords": users,
        }
        (directory / "dex.yaml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self.stop()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._log = Lines(self._process.stderr)
        self._log.wait(lambda line: "listening on" in line)
        end = time.monotonic() + DEADLINE
        while not self._listens() and time.monotonic() < end:  # it says so a moment before
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(self._address) == 0

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)

    def token_of(self, user: str) -> str:
        """An ID token, by the password grant."""
        form = {"grant_type": "password", "username": f"{user}@example.org", "password": PASSWORD}
        data = urllib.parse.urlencode(form | {"scope": "openid email groups"}).encode()
        headers = {"Authorization": f"Basic {base64.b64encode(b'qdrant:dex').decode()}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.issuer}/token", data, headers)) as response:  # noqa: S310
            return str(json.load(response)["id_token"])


@pytest.fixture
def dex(dex_program: Path, tmp_path: Path) -> Iterator[Dex]:
    with Dex(dex_program, tmp_path) as running:
        yield running


@pytest.mark.timeout(BUILD_DEADLINE + 120)
def test_groups_and_a_rotation(own_site: Site, upstream: ScriptedUpstream, dex: Dex) -> None:
    entry = {"name": "dex", "issuer": dex.issuer, "audience": "qdrant", "algorithm": "RS256", "discovery": dex.issuer}
    config = own_site.write_config(
        upstream.url,
        service={"verify_https_client_certificate": False},
        jwt_issuers=[entry | {"refresh": 1}],
        identities=[
            {"name": "operators", "match": {"claims": {"groups": "sre"}}, "role": "admin"},
            {"name": "staff", "match": {"claims": {"groups": "staff", "email": "*@example.org"}}, "role": "search"},
        ],
    )
    explained = {}
    for user in USERS:
        token = own_site.write(f"{user}.token", dex.token_of(user).encode())
        arguments = ["--fetch", "--token", str(token), "none", "PUT", "/collections/docs"]
        explained[user] = CliRunner().invoke(main, ["explain", "--config", str(config), *arguments])
    assert {user: told.exit_code for user, told in explained.items()} == {"alice": 0, "bob": 1, "carol": 1}
    with Gateway(config) as gateway, Client(gateway, own_site.client(None)) as client:

        def ask(method: str, token: str) -> int:
            return client.ask(method, "/collections/docs", [("authorization", f"Bearer {token}")], b"{}").status

        first = {user: dex.token_of(user) for user in USERS}
        assert [ask("GET", token) for token in first.values()] == [200, 200, 401]
        assert [ask("DELETE", token) for token in first.values()] == [200, 403, 401]
        line = gateway.audited(status=403)
        assert (line["token_rule"], line["token_role"], line["token_groups"]) == ("staff", "search", ["staff"])
        listed = b'{"result":{"collections":[{"name":"docs"}]},"status":"ok","time":0.0}'
        upstream.answer = plain(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(listed), listed))
        real = qdrant(gateway, own_site.client(None), auth_token_provider=lambda: dex.token_of("bob"))
        assert [one.name for one in real.get_collections().collections] == ["docs"]
        real.close()
        # It signs with another key, and still tells the one of before.
        gateway.audited(ROTATION, event="reload", reason="jwks")
        assert [ask("GET", token) for token in (first["bob"], dex.token_of("bob"))] == [200, 200]
        # All its keys are new: tokens of before are nobody's.
        dex.stop()
        dex.start()
        gateway.reloaded(reason="jwks")
        assert [ask("GET", token) for token in (first["bob"], dex.token_of("bob"))] == [403, 200]
