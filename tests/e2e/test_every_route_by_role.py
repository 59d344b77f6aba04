"""Every REST route of Qdrant × every kind of caller: who is let through, and in which words the others are refused.

Who passes is written down here once more, by hand, from what Qdrant's tokens mean, and is not computed by what decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.gateway import Gateway
from support.raw_request import Client, Response
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

from tlsproxy.authz.access import Requirement
from tlsproxy.errors import Form
from tlsproxy.qdrant import operations as ops

COLLECTION = {"r": "reader", "rw": "writer", "prw": "points"}
"""The access of a grant on `docs` → the client that has it."""
GLOBAL = {"m": "manager", "r": "auditor"}
CLIENTS = [*COLLECTION.values(), *GLOBAL.values(), "unmapped", None]

EVERYBODY = frozenset(CLIENTS)
NEEDS_GLOBAL = "Forbidden: Global access is required"
NEEDS_MANAGE = "Forbidden: Global manage access is required"
POINTS_ONLY = "Forbidden: Only points access is allowed for collection docs"
NEEDS_WRITE = "Forbidden: Write access to collection docs is required"
NEVER = "Forbidden: Manage access for this operation is required"


@dataclass(frozen=True, slots=True)
class Expected:
    """The refusal of each kind of caller that has a role; one that is missing passes."""

    auditor: str = ""
    reader: str = ""
    writer: str = ""
    points: str = ""


def limited(text: str, auditor: str = "") -> Expected:
    return Expected(auditor=auditor, reader=text, writer=text, points=text)


EXPECTED: dict[Requirement, Expected] = {
    ops.LISTING: Expected(),
    ops.GLOBAL_READ: limited(NEEDS_GLOBAL),
    ops.GLOBAL_EXTRAS: limited(NEEDS_GLOBAL),
    ops.GLOBAL_WRITE: limited(NEEDS_GLOBAL, auditor=NEEDS_MANAGE),
    ops.MANAGE: limited(NEEDS_GLOBAL, auditor=NEEDS_MANAGE),
    ops.MANAGE_NAMED: limited(NEEDS_GLOBAL, auditor=NEEDS_MANAGE),
    ops.READ: Expected(),
    ops.READ_LISTING: Expected(),
    ops.READ_EXTRAS: Expected(points=POINTS_ONLY),
    ops.WRITE: Expected(auditor=NEEDS_MANAGE, reader=NEEDS_WRITE),
    ops.WRITE_EXTRAS: Expected(auditor=NEEDS_MANAGE, reader=NEEDS_WRITE, points=POINTS_ONLY),
    ops.MANAGE_COLLECTION: Expected(auditor=NEEDS_MANAGE, reader=NEEDS_WRITE, writer=NEVER, points=POINTS_ONLY),
}
OPEN = {"/", "/healthz", "/livez", "/readyz", "/dashboard/x/y"}
FILES = {  # Qdrant's download and upload handlers, whose refusals are text/plain
    ("GET", "/snapshots/x"),
    ("GET", "/collections/docs/snapshots/x"),
    ("POST", "/collections/docs/snapshots/upload"),
    ("GET", "/collections/docs/shards/0/snapshot"),
    ("GET", "/collections/docs/shards/0/snapshots/x"),
    ("POST", "/collections/docs/shards/0/snapshots/upload"),
    ("POST", "/collections/docs/shards/0/snapshot/partial/create"),
    ("POST", "/collections/docs/shards/0/snapshot/partial/recover"),
}
NAMES_OTHERS = re.compile(r"/points/(?:discover|recommend|query)(?:/|$)|/points/search/groups$")


BODY = b'{"searches":[]}'
"""What a limited caller's query must have to be decided on."""
ANSWER = b'{"result":{}}'
"""What the upstream says to everything, and what a reduced listing of nothing still is in part."""


def target_of(operation: ops.Operation) -> str:
    path = operation.path.replace("{collection_name}", "docs").replace("{shard}", "0").replace("{tail...}", "x/y")
    return re.sub(r"\{\w+\}", "x", path)


ROUTES = [(operation, target_of(operation)) for operation in ops.REST]


def answer(connection: Connection, request: Received) -> None:
    request.body = connection.read_body(request)
    body = b"" if request.line.startswith("HEAD ") else ANSWER
    connection.sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + body)


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    shared_upstream.answer = answer
    roles = {client: {"access": access} for access, client in GLOBAL.items()}
    roles |= {client: {"access": [{"collection": "docs", "access": access}]} for access, client in COLLECTION.items()}
    for client in filter(None, CLIENTS):
        site.issue(client, client=True, common_name=client)
    config = site.write_config(
        shared_upstream.url,
        audit={"probes": True},
        service={"verify_https_client_certificate": False, "api_key": "a-k3y-that-nobody-sends"},
        roles=roles,
        identities=[{"name": client, "match": {"cn": client}, "role": client} for client in roles],
    )
    with Gateway(config) as running:
        yield running


def expected(operation: ops.Operation, target: str, client: str | None) -> tuple[int, str, Form]:
    """(status, text, form)."""
    if target in OPEN or client == "manager":
        return 200, '{"result":{', Form.BARE
    if client is None:
        return 401, "Must provide an API key or an Authorization bearer token", Form.BARE
    if client == "unmapped":
        return 403, 'Forbidden: no role for certificate "CN=unmapped"', Form.JSON
    text = getattr(EXPECTED[operation.requirement], client)
    if not text:
        return 200, '{"result":{', Form.BARE
    return 403, text, Form.TEXT if (operation.method, target) in FILES else Form.JSON


def text_of(response: Response) -> tuple[str, Form]:
    kind = response.fields.get("content-type")
    if kind == "application/json" and response.status != 200:
        return str(response.json["status"]["error"]), Form.JSON
    return response.body.decode(), Form.TEXT if kind == "text/plain; charset=utf-8" else Form.BARE


def arrived_since(upstream: ScriptedUpstream, before: int) -> list[str]:
    return [one.line for one in upstream.requests[before:]]


@pytest.mark.parametrize("client", CLIENTS)
def test_every_route(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, client: str | None) -> None:
    wrong: list[str] = []
    with Client(gateway, site.client(client)) as connection:
        for operation, target in ROUTES:
            before = len(shared_upstream.requests)
            body = BODY if NAMES_OTHERS.search(target) else b""
            response = connection.ask(operation.method, target, body=body)
            status, text, form = expected(operation, target, client)
            if operation.own and status == 200:  # answered here, and in this case that it is no question
                assert (response.status, arrived_since(shared_upstream, before)) == (400, [])
                gateway.audited(status=400, method=operation.name)
                continue
            said, said_form = text_of(response)
            arrived = arrived_since(shared_upstream, before)
            if operation.method == "HEAD":
                said = text
            if (response.status, said[: len(text)], said_form) != (status, text, form):
                wrong.append(f"{operation.method} {target}: {response.status} {said!r} {said_form}")
            if arrived != ([f"{operation.method} {target} HTTP/1.1"] if status == 200 else []):
                wrong.append(f"{operation.method} {target}: arrived {arrived}")
            record = gateway.audited(status=response.status)
            if (record["result"], record.get("method")) != (
                "ok" if status == 200 else "denied",
                operation.audit_method,
            ):
                wrong.append(f"{operation.method} {target}: audited {record}")
    assert not wrong, "\n".join(wrong)


def test_the_table_is_whole() -> None:
    """Every requirement has its expectation, and somebody passes and somebody fails each of them."""
    assert {operation.requirement for operation in ops.REST} - {ops.OPEN} == set(EXPECTED)
    assert {target for operation, target in ROUTES if operation.requirement is ops.OPEN} == OPEN
    assert {(operation.method, target) for operation, target in ROUTES} >= FILES
    assert len(ROUTES) > 100


@pytest.mark.parametrize("client", COLLECTION.values())
def test_another_collection(site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, client: str) -> None:
    """Of every route of a collection, on one that the caller has no grant for."""
    before = len(shared_upstream.requests)
    with Client(gateway, site.client(client)) as connection:
        for operation, target in ROUTES:
            if "/collections/docs" in target:
                response = connection.ask(operation.method, target.replace("/docs", "/docs2", 1))
                said, _ = text_of(response)
                assert response.status == 403, target
                texts = {"Forbidden: Access to collection docs2 is required", NEEDS_GLOBAL}
                assert said in texts, target
    assert len(shared_upstream.requests) == before
