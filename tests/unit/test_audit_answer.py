"""The answer to a query of the audit log, joined in one go."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from tlsproxy.audit.query import read_query
from tlsproxy.proxy.rest.audit_query import answered


@given(st.lists(st.sampled_from([b'{"a":1}', b"{}", b'{"b":"c"}']), max_size=4))
def test_it_is_the_entries_in_qdrants_form(entries: list[bytes]) -> None:
    log = SimpleNamespace(read=lambda _query, _largest: entries.copy())
    expected = b'{"result":{"entries":[' + b",".join(entries) + b']},"status":"ok","time":0.0}'
    assert answered(log, read_query(b"{}"), 1) == expected  # type: ignore[arg-type]
