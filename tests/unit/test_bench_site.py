"""What the bench calls inspected is inspected, and what it calls relayed is not."""

from __future__ import annotations

import pytest

from bench.peers.tlsproxy import ROLES
from bench.site import http, search
from tlsproxy.authz.access import ALLOWED, UNREAD, Decision, GlobalMode, Grant, Grants, Rights
from tlsproxy.authz.admission import Admission
from tlsproxy.authz.roles import Principal
from tlsproxy.config.queries import Queries, query_policy_of
from tlsproxy.qdrant.operations import REST
from tlsproxy.qdrant.rest_decision import decide_request
from tlsproxy.qdrant.rest_hidden import stripping_of
from tlsproxy.qdrant.router import recognise
from tlsproxy.wire.http1 import END, parse_request

LIMITED = Rights(grants=Grants(Grant("items", write=True, extras=True)))
BOUNDED = Rights(everywhere=GlobalMode.M, queries=query_policy_of(Queries.model_validate(ROLES["bounded"]["queries"])))
BLINDED = Rights(everywhere=GlobalMode.M, queries=query_policy_of(Queries.model_validate(ROLES["blinded"]["queries"])))


@pytest.mark.parametrize(
    ("request_", "rights", "decision"),
    [
        (search(8), Rights(everywhere=GlobalMode.M), ALLOWED),
        (search(8), LIMITED, UNREAD),
        (search(8), BOUNDED, UNREAD),
        (search(8, with_payload=True), BLINDED, UNREAD),
        (http("GET", "/collections/items"), LIMITED, ALLOWED),
    ],
)
def test_a_search_of_a_caller_with_limits_is_decided_by_its_body(
    request_: bytes, rights: Rights, decision: Decision
) -> None:
    assert ROLES["limited"]["access"] == [{"collection": "items", "access": "rw"}]
    head = parse_request(request_[: request_.index(END) + len(END)])
    admission = Admission(Principal(None, "rule", "role", rights, None), None)
    assert decide_request(admission, recognise(head.method, head.target)).decision is decision


def test_only_the_answer_of_a_policy_that_hides_is_read() -> None:
    (operation,) = (one for one in REST if one.path == "/collections/{collection_name}/points/query")
    assert stripping_of(operation, BOUNDED.queries) is None
    assert stripping_of(operation, BLINDED.queries) is not None
