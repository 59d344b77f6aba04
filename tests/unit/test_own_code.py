from __future__ import annotations

import pytest

from tlsproxy.proxy.transport.dial import DialledStream, own_code
from tlsproxy.proxy.transport.tls import TlsStream


class Base:
    def twice(self, number: int) -> int:
        return self.once(number) * 2

    def once(self, number: int) -> int:
        return number


@own_code("twice")
class Derived(Base):
    def once(self, number: int) -> int:
        return number + 1


def test_the_same_method_on_code_of_its_own() -> None:
    assert (Base().twice(1), Derived().twice(1)) == (2, 4)
    assert Derived.twice.__code__ == Base.twice.__code__
    assert Derived.twice.__code__ is not Base.twice.__code__
    assert Derived.once is not Base.once


@pytest.mark.parametrize("name", ["_on_readable", "_take", "_send", "write", "resume_reading"])
def test_what_each_event_runs_is_shared_by_no_two_kinds_of_stream(name: str) -> None:
    assert getattr(TlsStream, name).__code__ is not getattr(DialledStream, name).__code__
