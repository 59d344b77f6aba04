"""Every gRPC method of Qdrant × every kind of credential: who passes, and in which words the others do not.

Who passes is read from Qdrant's own table; the words are Qdrant's, written down once more by hand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from qdrant_client import grpc as pb
from support.access_table import ROWS
from support.gateway import Gateway
from support.grpc_channels import Answered, call, channel
from support.grpc_upstream import GrpcCall, GrpcUpstream
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint
from tlsproxy.qdrant import operations

KEY, READ_KEY = "manage-k3y", "reading-k3y"
METHODS = {row["path"]: row for row in ROWS if row["surface"] == "grpc"}
METHODS["/qdrant.StorageRead/ReadMulti"] = METHODS["/qdrant.StorageRead/ReadBatch"] | {"audit": "read_multi"}  # to 1.18
LIMITED = {"cr": "r", "crw": "rw", "cprw": "prw"}
"""The table's classes of credential that are for one collection → their access."""
CERTIFICATES = {"manager": "m", "auditor": "r", "reader": "cr", "writer": "crw", "points": "cprw"}

NO_ROLE = (
    'Forbidden: no role for certificate "CN=unmapped": '
    "the gateway's administrator can add a rule for it to `identities`"
)

# A method of these takes a collection's name, and Qdrant refuses it by the collection; the others need all of Qdrant.
OF_COLLECTIONS = frozenset(
    path
    for path, row in METHODS.items()
    if not path.startswith("/grpc.")
    and row["passes"] not in {"m", "m r"}
    and path not in {"/qdrant.Collections/List", "/qdrant.Collections/ListAliases", "/qdrant.Qdrant/HealthCheck"}
) | {f"/qdrant.Collections/{name}" for name in ("UpdateCollectionClusterSetup", "CreateShardKey", "DeleteShardKey")}


def refusal(path: str, kind: str, collection: str) -> str:
    """Qdrant's words to a credential of this class that does not pass."""
    if kind == "r":
        return "Forbidden: Global manage access is required"
    if path not in OF_COLLECTIONS:
        return "Forbidden: Global access is required"
    passes = METHODS[path]["passes"].split()
    if kind == "cprw" and ("crw" in passes or passes == ["m"]):
        return f"Forbidden: Only points access is allowed for collection {collection}"
    if kind == "cr":
        return f"Forbidden: Write access to collection {collection} is required"
    return "Forbidden: Manage access for this operation is required"


@dataclass(frozen=True, slots=True)
class Caller:
    """``classes``: of each thing it presents, in Qdrant's order of checks and ours. ``refused``: whatever it asks."""

    client: str | None
    key: str = ""
    classes: tuple[str, ...] = ()
    refused: Answered | None = None

    def expected(self, path: str, collection: str) -> Answered | None:
        """The refusal, None where it passes."""
        if METHODS[path]["passes"].startswith("none"):
            return None
        if self.refused is not None:
            return self.refused
        for kind in self.classes:
            if kind in LIMITED and path in OF_COLLECTIONS and collection != "docs":
                return denied(f"Forbidden: Access to collection {collection} is required")
            if kind not in METHODS[path]["passes"].split():
                return denied(refusal(path, kind, collection))
        return None


def denied(text: str) -> Answered:
    return Answered(grpc.StatusCode.PERMISSION_DENIED, text)


def unauthenticated(text: str) -> Answered:
    return Answered(grpc.StatusCode.UNAUTHENTICATED, text)


def token(access: object = "m", *, key: str = KEY, **claims: object) -> str:
    return mint(key, {"access": access, **claims})


def on_docs(access: str) -> str:
    return token([{"collection": "docs", "access": access}])


CALLERS = {
    **{name: Caller(name, classes=(kind,)) for name, kind in CERTIFICATES.items()},
    "key": Caller(None, KEY, ("m",)),
    "reading key": Caller(None, READ_KEY, ("r",)),
    "token m": Caller(None, token("m"), ("m",)),
    "token r": Caller(None, token("r"), ("r",)),
    **{f"token {access}": Caller(None, on_docs(access), (kind,)) for kind, access in LIMITED.items()},
    "writer with a reading key": Caller("writer", READ_KEY, ("crw", "r")),
    "reader with a key": Caller("reader", KEY, ("cr", "m")),
    "auditor with a token for docs": Caller("auditor", on_docs("rw"), ("r", "crw")),
    "manager with a token for docs": Caller("manager", on_docs("prw"), ("m", "cprw")),
    "nobody": Caller(
        None, refused=unauthenticated("Must provide an API key or an Authorization bearer token")
    ),
    "wrong key": Caller(None, "wr0ng", refused=unauthenticated("Invalid API key or JWT")),
    "manager with a wrong key": Caller("manager", "wr0ng", refused=unauthenticated("Invalid API key or JWT")),
    "foreign token": Caller(None, token(key="another"), refused=denied("InvalidSignature")),
    "expired token": Caller(None, token(exp=int(time.time()) - 60), refused=denied("ExpiredSignature")),
    "unmapped": Caller("unmapped", refused=denied(NO_ROLE)),
    "unmapped with a key": Caller("unmapped", KEY, refused=denied(NO_ROLE)),
}  # fmt: skip


async def answer(received: GrpcCall) -> None:
    while await received.receive() is not None:
        pass
    await received.send(b"")


@pytest.fixture(scope="module")
def upstream_of_all() -> Iterator[GrpcUpstream]:
    with GrpcUpstream(answer) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(site: Site, shared_upstream: ScriptedUpstream, upstream_of_all: GrpcUpstream) -> Iterator[Gateway]:
    for client in (*CERTIFICATES, "unmapped"):
        site.issue(client, client=True, common_name=client)
    access = {"m": "m", "r": "r"} | {kind: [{"collection": "docs", "access": given}] for kind, given in LIMITED.items()}
    config = site.write_config(
        shared_upstream.url,
        grpc=upstream_of_all.url,
        audit={"probes": True},
        service={
            "verify_https_client_certificate": False,
            "api_key": KEY,
            "read_only_api_key": READ_KEY,
            "jwt_rbac": True,
        },
        roles={client: {"access": access[kind]} for client, kind in CERTIFICATES.items()},
        identities=[{"name": client, "match": {"cn": client}, "role": client} for client in CERTIFICATES],
    )
    with Gateway(config) as running:
        yield running


@pytest.mark.parametrize("name", CALLERS)
def test_every_method(site: Site, gateway: Gateway, upstream_of_all: GrpcUpstream, name: str) -> None:
    caller, wrong = CALLERS[name], []
    metadata = [("api-key", caller.key)] if caller.key else []
    collections = ("docs", "docs-now") if LIMITED.keys() & {*caller.classes} else ("docs",)
    with channel(gateway, site, caller.client) as opened:
        for path, row in METHODS.items():
            for collection in collections:
                upstream_of_all.calls.clear()
                message = pb.GetCollectionInfoRequest(collection_name=collection).SerializeToString()
                got = call(opened, path, message, *metadata)
                refused = caller.expected(path, collection)
                if got != (refused or Answered(grpc.StatusCode.OK)):
                    wrong.append(f"{path} {collection}: {got}, not {refused}")
                whole = [(one.method, one.messages) for one in upstream_of_all.calls if one.messages]
                if whole != ([(path, [message])] if refused is None else []):
                    wrong.append(f"{path} {collection}: arrived {whole}")
                record = gateway.audited(api=path)
                told = (record["result"], record["grpc_status"], record["status"])
                if told != ("ok" if refused is None else "denied", got.code.value[0], 200):
                    wrong.append(f"{path} {collection}: audited {record}")
                if row["audit"] and record["method"] != row["audit"]:
                    wrong.append(f"{path}: audited as {record['method']}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", CALLERS)
def test_no_such_method(site: Site, gateway: Gateway, upstream_of_all: GrpcUpstream, name: str) -> None:
    """First who you are, then whether there is such a thing, as in Qdrant; what differs in a letter is another one."""
    caller = CALLERS[name]
    metadata = [("api-key", caller.key)] if caller.key else []
    upstream_of_all.calls.clear()
    with channel(gateway, site, caller.client) as opened:
        for path in (
            "/qdrant.Points/Unknown",
            "/qdrant.Points/search",
            "/qdrant.Points/Search/",
            "/qdrant.Qdrant/HealthCheck2",
            "/qdrant.PointsInternal/Upsert",
            "/grpc.health.v1.Health/Watch",
            "/grpc.health.v1.health/Check",
        ):
            got = call(opened, path, b"", *metadata)
            if caller.refused is not None:
                assert got == caller.refused, path
            else:
                assert got.code is grpc.StatusCode.UNIMPLEMENTED, path
            assert gateway.audited(api=path)["result"] == "denied"
    assert not upstream_of_all.calls


def test_the_table_is_whole() -> None:
    assert set(METHODS) == {operation.path for operation in operations.GRPC}
    assert len(METHODS) > 60
