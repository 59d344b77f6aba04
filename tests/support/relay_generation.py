"""What is asked over a relay in memory: a generation whose callers are told apart by a key of each call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qdrant_client import grpc as pb

from support.h2_harness import Fields
from support.site import Site
from tlsproxy.proxy.decision.request_plan import Plan, Plans
from tlsproxy.proxy.decision.unread_body import Unread
from tlsproxy.snapshot.files import read_inputs
from tlsproxy.snapshot.generation import Generation
from tlsproxy.snapshot.startup import first_generation
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import at_once

DOCS = [{"collection": "docs", "access": "rw"}]
ROLES = {
    "plain": {"access": "m"},
    "limited": {"access": DOCS},
    "tenant": {"access": DOCS, "filter": {"tenant": "acme"}},
    "bounded": {"access": DOCS, "queries": {"exact": "forbid", "timeout": 30}},
}
KEYS = {name: f"the-key-of-{name}" for name in ROLES}
SEARCH, COUNT, LIST = "/qdrant.Points/Search", "/qdrant.Points/Count", "/qdrant.Collections/List"


def relay_generation(
    site: Site,
    roles: Mapping[str, Any] = ROLES,
    upstream: str = "http://127.0.0.1:1",
    limits: Mapping[str, float] = MappingProxyType({}),
    rest: str = "http://127.0.0.1:1",
) -> Generation:
    config = site.write_config(
        rest,
        grpc=upstream,
        service={"verify_https_client_certificate": False},
        audit={"dir": "-", "on_full": "block"},
        roles=dict(roles),
        limits=dict(limits),
        identities=[],
        keys=[
            {"name": name, "role": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
            for name, key in KEYS.items()
        ],
    )
    return first_generation(config, {}, read_inputs(config, {}), {}).generation


def asked(path: str, role: str) -> Fields:
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("api-key", KEYS.get(role, role)),
    ]


def planned_whole(plans: Plans, unread: Unread, body: bytes) -> tuple[Plan, Content]:
    """By head and body, remembered or made in steps."""
    outcome = plans.read(unread, body)
    return outcome if isinstance(outcome, tuple) else at_once(outcome)


def count(collection: str = "docs", size: int = 100) -> bytes:
    condition = pb.Condition(field=pb.FieldCondition(key="x" * size, match=pb.Match(integer=1)))
    return pb.CountPoints(collection_name=collection, filter=pb.Filter(must=[condition])).SerializeToString()


def collections(*names: str) -> bytes:
    found = [pb.CollectionDescription(name=one) for one in names]
    return pb.ListCollectionsResponse(collections=found, time=0.25).SerializeToString()
