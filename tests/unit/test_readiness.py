from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from tlsproxy.admin.readiness import UpstreamProbe, audit_part, generation_part, inputs_part, is_ready
from tlsproxy.tls.trust import CrlPolicy

if TYPE_CHECKING:
    from tlsproxy.snapshot.generation import Generation


def generation(not_after: float, *next_updates: float, deny: bool = True) -> Generation:
    crls = [SimpleNamespace(issuer=f"CN={number}", next_update=update) for number, update in enumerate(next_updates)]
    leaf, trust = SimpleNamespace(not_after=not_after), SimpleNamespace(policy=CrlPolicy(deny_expired=deny))
    return cast("Generation", SimpleNamespace(material=SimpleNamespace(leaf=leaf, crls=crls, trust=trust)))


def test_an_upstream_that_listens_is_ok_and_a_closed_port_says_why() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = (socket.AF_INET, listener.getsockname())
            assert await UpstreamProbe(lambda: [address])() == "ok"
        assert await UpstreamProbe(lambda: [address])() == "Connection refused"

    asyncio.run(scenario())


def test_one_address_that_answers_is_enough() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = (socket.AF_INET, closed.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            alive = (socket.AF_INET, listener.getsockname())
            assert await UpstreamProbe(lambda: [dead, alive])() == "ok"

    asyncio.run(scenario())


def test_an_answer_is_of_the_present_addresses() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = (socket.AF_INET, closed.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            present = [dead]
            probe = UpstreamProbe(lambda: tuple(present), lambda: 0.0)
            assert await probe() != "ok"
            present[:] = [(socket.AF_INET, listener.getsockname())]
            assert await probe() == "ok"

    asyncio.run(scenario())


def test_an_answer_is_kept_for_a_second() -> None:
    async def scenario() -> None:
        now = [0.0]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = (socket.AF_INET, listener.getsockname())
            probe = UpstreamProbe(lambda: [address], lambda: now[0])
            assert set(await asyncio.gather(probe(), probe())) == {"ok"}
            listener.settimeout(5)
            listener.accept()[0].close()
            listener.setblocking(False)
            try:
                listener.accept()
            except BlockingIOError:
                pass
            else:
                raise AssertionError("two probes for two questions at once")
        now[0] = 0.9
        assert await probe() == "ok"
        now[0] = 1.0
        assert await probe() != "ok"

    asyncio.run(scenario())


def test_no_answer_in_time_says_so() -> None:
    async def scenario() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = full.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(address)
            assert await UpstreamProbe(lambda: [(socket.AF_INET, address)])() == "no connection within 1 s"
            for client in waiting:
                client.close()

    asyncio.run(scenario())


def test_an_upstream_without_an_address_is_not_ready() -> None:
    assert asyncio.run(UpstreamProbe(list)()) == "no address"


def test_a_generation_is_as_good_as_its_dates() -> None:
    assert generation_part(generation(100.0, 100.0), 99.0) == "ok"
    assert generation_part(generation(100.0), 100.0) == "the server certificate has expired"
    assert generation_part(generation(200.0, 150.0, 100.0), 100.0) == "the CRL of CN=1 is out of date"
    assert generation_part(generation(200.0, 100.0, deny=False), 100.0) == "ok"


def test_audit() -> None:
    assert audit_part(healthy=True, accepts=True, last_error="") == "ok"
    assert audit_part(healthy=True, accepts=False, last_error="") == "the queue is full"
    assert audit_part(healthy=False, accepts=False, last_error="No space left on device") == "No space left on device"
    assert audit_part(healthy=False, accepts=False, last_error="") == "not writing"


def test_inputs_name_the_first_few_on_one_line() -> None:
    assert inputs_part(["a: is missing\nb", "c"]) == "a: is missing b; c"
    assert inputs_part(list("abcde")) == "a; b; c; and 2 more"


def test_inputs_and_a_worker_cost_no_readiness() -> None:
    assert is_ready({"listeners": "ok", "inputs": "ca.pem: no answer", "workers": "worker 2 is being started"})
    assert not is_ready({"listeners": "draining", "inputs": "ok"})
