from __future__ import annotations

import asyncio
import socket

from tlsproxy.admin.upstream_probe import UpstreamProbe


def test_an_upstream_that_listens_is_ok_and_a_closed_port_says_why() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = (socket.AF_INET, listener.getsockname())
            assert str(await UpstreamProbe(lambda: [address])()) == "ok"
        assert str(await UpstreamProbe(lambda: [address])()) == "Connection refused"

    asyncio.run(scenario())


def test_one_address_that_answers_is_enough() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = (socket.AF_INET, closed.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            alive = (socket.AF_INET, listener.getsockname())
            assert str(await UpstreamProbe(lambda: [dead, alive])()) == "ok"

    asyncio.run(scenario())


def test_an_answer_is_of_the_present_addresses() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = (socket.AF_INET, closed.getsockname())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            present = [dead]
            probe = UpstreamProbe(lambda: tuple(present), lambda: 0.0)
            assert not (await probe()).good
            present[:] = [(socket.AF_INET, listener.getsockname())]
            assert (await probe()).good

    asyncio.run(scenario())


def test_an_answer_is_kept_for_a_second() -> None:
    async def scenario() -> None:
        now = [0.0]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = (socket.AF_INET, listener.getsockname())
            probe = UpstreamProbe(lambda: [address], lambda: now[0])
            assert all(part.good for part in await asyncio.gather(probe(), probe()))
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
        assert (await probe()).good
        now[0] = 1.0
        assert not (await probe()).good

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
            assert str(await UpstreamProbe(lambda: [(socket.AF_INET, address)])()) == "no connection within 1 s"
            for client in waiting:
                client.close()

    asyncio.run(scenario())


def test_an_upstream_without_an_address_is_not_ready() -> None:
    assert str(asyncio.run(UpstreamProbe(list)())) == "no address"
