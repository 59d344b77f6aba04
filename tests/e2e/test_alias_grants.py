"""A grant for an alias and one for the collection behind it, on every REST route: a name is the name that is written.

Qdrant compares names before it resolves an alias, so that who may use the one may not use the other. Who passes a
route by its right name is read from Qdrant's own table.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.access_table import ROWS
from support.gateway import Gateway
from support.raw_request import Client
from support.site import Site
from support.upstream import Connection, Received, ScriptedUpstream

from tlsproxy.authz.tokens import mint

KEY = "manage-k3y"
REAL, ALIAS = "docs", "docs-now"
OTHER = {REAL: ALIAS, ALIAS: REAL}
CLASSES = {"cr": "r", "crw": "rw", "cprw": "prw"}
"""The table's classes of credential that are for one collection → their access."""
ROUTES = [row for row in ROWS if row["surface"] == "rest"]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has access to one name by a certificate's role, or by a token, or to one name by each."""

    kind: str
    by_role: str | None
    by_token: str | None

    def may(self, name: str) -> bool:
        return all(held in {None, name} for held in (self.by_role, self.by_token))


HOLDERS = [
    *(Holder("token", None, name) for name in OTHER),
    *(Holder("role", name, None) for name in OTHER),
    *(Holder("token beside a role", name, name) for name in OTHER),
    *(Holder("token beside the role for the other name", name, OTHER[name]) for name in OTHER),
]


def answer(connection: Connection, request: Received) -> None:
    request.body = connection.read_body(request)
    connection.sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"result":{}}')


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream) -> Iterator[Gateway]:
    shared_upstream.answer = answer
    roles = {f"{name}.{access}": [grant(name, access)] for name in OTHER for access in CLASSES.values()}
    for role in roles:
        site.issue(role, client=True, common_name=role)
    config = site.write_config(
        shared_upstream.url,
        service={"verify_https_client_certificate": False, "api_key": KEY, "jwt_rbac": True},
        roles={role: {"access": access} for role, access in roles.items()},
        identities=[{"name": role, "match": {"cn": role}, "role": role} for role in roles],
    )
    with Gateway(config) as running:
        yield running


def grant(name: str, access: str) -> dict[str, str]:
    return {"collection": name, "access": access}


def path_of(row: dict[str, str], name: str) -> str:
    return re.sub(r"\{[\w.]+\}", "7", row["path"].replace("{collection_name}", name))


def body_of(row: dict[str, str], looked_up: str) -> bytes:
    """Of a route whose body names collections: one that names this one."""
    query = {"lookup_from": {"collection": looked_up}, "with_lookup": looked_up}
    return json.dumps({"searches": [{}, query]} if row["path"].endswith("/batch") else query).encode()


@pytest.mark.parametrize("holder", HOLDERS, ids=str)
@pytest.mark.parametrize("token_class", CLASSES)
def test_every_route(
    site: Site, gateway: Gateway, shared_upstream: ScriptedUpstream, holder: Holder, token_class: str
) -> None:
    access, fields = CLASSES[token_class], []
    wrong: list[str] = []
    passed: set[str] = set()
    if holder.by_token is not None:
        fields.append(("api-key", mint(KEY, {"access": [grant(holder.by_token, access)]})))
    certificate = f"{holder.by_role}.{access}" if holder.by_role is not None else None
    with Client(gateway, site.client(certificate)) as connection:
        for row, name, looked_up in itertools.product(ROUTES, OTHER, OTHER):
            named = [name] if "{collection_name}" in row["path"] else []
            if row["body_names"]:
                named.append(looked_up)
            elif looked_up != REAL:
                continue  # as the one before
            in_table = row["passes"].split()
            passes = token_class in in_table and ("none" in in_table or all(map(holder.may, named)))
            before = len(shared_upstream.requests)
            body = body_of(row, looked_up) if row["body_names"] else b""
            response = connection.ask(row["method"], path_of(row, name), fields, body)
            arrived = [request.line for request in shared_upstream.requests[before:]]
            if passes:
                passed.update(named)
                expected = (200, [f"{row['method']} {path_of(row, name)} HTTP/1.1"])
            else:
                expected = (403, [])
            if (response.status, arrived) != expected:
                wrong.append(f"{row['method']} {path_of(row, name)} {looked_up}: {response.status} {arrived}")
            if token_class in in_table and not passes:
                refused = next(one for one in named if not holder.may(one))
                if f"Access to collection {refused} is required" not in response.body.decode():
                    wrong.append(f"{row['method']} {path_of(row, name)} {looked_up}: {response.body!r}")
    assert not wrong, "\n".join(wrong)
    assert passed == set(filter(holder.may, OTHER))
