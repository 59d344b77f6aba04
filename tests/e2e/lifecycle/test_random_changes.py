"""Files change at random; after each publication those are there, and those alone, who may be by the oracle."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from support.gateway import Gateway
from support.kept_connection import Caller
from support.model_files import client_context, configuration, written
from support.model_values import CLIENTS, CONTENTS, FIRST
from support.reload_model import CAS, CONFIG, SERVER, Client, Content, Oracle, Policy
from support.site import CONFIG as USUAL
from support.upstream import ScriptedUpstream

from tlsproxy.errors import MaterialError

LONG = bool(os.environ.get("TLSPROXY_SOAK"))
STEPS = 1_000 if LONG else 12
OFF = 2.0
"""Seconds within which somebody who has lost the right is off."""
FILES = {CONFIG: ("tlsproxy.yaml",), SERVER: ("server.pem", "server.key"), CAS: ("ca.pem",)}


class Files:
    def __init__(self, directory: Path, upstream: str) -> None:
        self._directory = directory
        self._more = {name: USUAL[name] for name in ("audit", "admin", "limits")} | {"upstream": {"rest": upstream}}

    def put(self, name: str, content: Content) -> None:
        paths = [self._directory / each for each in FILES.get(name, (name,))]
        for path in paths:
            if path.is_dir():
                path.rmdir()
        try:
            found = written(name, content)
            if isinstance(content, Policy):
                found = (yaml.safe_dump(configuration(content) | self._more).encode(),)
            for path, data in zip(paths, found, strict=True):
                fresh = path.with_suffix(".new")
                fresh.touch(mode=0o600)
                fresh.write_bytes(data)
                fresh.replace(path)
        except MaterialError:
            for path in paths:
                path.unlink(missing_ok=True)
                path.mkdir()


class Clients:
    """``live`` are connected."""

    def __init__(self, gateway: Gateway, stack: ExitStack) -> None:
        self._gateway = gateway
        self._stack = stack
        self.live: dict[Client, Caller] = {}

    def agree(self, oracle: Oracle) -> None:
        for client in CLIENTS:
            refusal, caller = oracle.refusal(client, 0), self.live.get(client)
            may = oracle.may(client, 0)
            if caller is None:
                assert self._enters(client) == may, (client.leaf.subject, refusal)
            elif may:
                assert caller.ask().status == 200, client.leaf.subject
            else:
                caller.sock.settimeout(OFF)
                assert caller.is_closed(), (client.leaf.subject, refusal)
                caller.sock.close()
                del self.live[client]

    def _enters(self, client: Client) -> bool:
        try:
            caller = self._stack.enter_context(Caller(self._gateway, client_context(client)))
            entered = caller.ask().status == 200
        except (OSError, EOFError):
            return False
        if entered:
            self.live[client] = caller
        return entered


@pytest.mark.soak
@pytest.mark.timeout(3600 if LONG else 60)
def test_who_is_there_is_who_may_be(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    choose = random.Random(STEPS)  # noqa: S311 - a fixed mix
    files, disk = Files(tmp_path, upstream.url), dict(FIRST)
    for name, content in disk.items():
        files.put(name, content)
    oracle = Oracle.of(disk, 0)
    with Gateway(tmp_path / "tlsproxy.yaml") as gateway, ExitStack() as stack:
        clients = Clients(gateway, stack)
        clients.agree(oracle)
        for _ in range(STEPS):
            for name in choose.sample(sorted(CONTENTS), choose.choice((1, 2, 3))):
                disk[name] = choose.choice(CONTENTS[name])
                files.put(name, disk[name])
            oracle.judge(disk, 0)
            gateway.ask_admin("/reload", "POST")
            clients.agree(oracle)
