"""Gateways of several workers: which of them a connection is at, and clients at each of them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from support.gateway import Gateway
from support.polling import until
from support.raw_connection import RawClient, connected
from support.site import Site

ENOUGH = 200
"""Connections among which every worker has one, however busy the machine is."""


def status(gateway: Gateway) -> dict[str, Any]:
    return dict(json.loads(gateway.ask_admin("/status")[1]))


def workers(gateway: Gateway) -> dict[int, dict[str, Any]]:
    return {worker["number"]: worker for worker in status(gateway)["workers"]}


def all_serve(gateway: Gateway) -> int:
    """The generation, once every worker serves it."""
    now: dict[str, Any] = {}

    def serve() -> bool:
        now.update(status(gateway))
        return {worker["generation"] for worker in now["workers"]} == {now["generation"]["number"]}

    until(serve)
    return int(now["generation"]["number"])


def worker_of(entry: dict[str, Any], count: int) -> int:
    """By its number: worker w of N gives w, w + N, and so on."""
    return (int(entry["number"]) - 1) % count + 1


def at_each(gateway: Gateway, site: Site, stack: ExitStack, count: int = 2) -> dict[int, tuple[int, RawClient]]:
    """For each worker the number of a connection that is there, and its client. ``stack`` ends all that were made."""
    found: dict[int, tuple[int, RawClient]] = {}
    seen = {entry["number"] for entry in status(gateway)["connections"]["live"]}
    for _ in range(ENOUGH):
        client = stack.enter_context(connected(gateway, site.client()))
        client.send(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
        assert client.response().status == 200
        new = next(entry for entry in status(gateway)["connections"]["live"] if entry["number"] not in seen)
        seen.add(new["number"])
        found.setdefault(worker_of(new, count), (new["number"], client))
        if len(found) == count:
            return found
    raise AssertionError(f"{ENOUGH} connections, and none at some worker: {found.keys()}")
