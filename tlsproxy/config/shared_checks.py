"""Checks of the section `shared` (:mod:`tlsproxy.config.shared`)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from tlsproxy.config.endpoints import Endpoint
from tlsproxy.config.findings import Finding
from tlsproxy.config.model import Config
from tlsproxy.config.positions import Tree
from tlsproxy.config.shared import SharedConfig, StoreAddress, store_address


def store(config: Config, _tree: Tree) -> Iterator[Finding]:
    shared = config.shared
    if shared.url is None:
        given = sorted(key for key, value in shared if value != type(shared).model_fields[key].default)
        if given:
            yield Finding(("shared", given[0]), "shared.url is missing: nothing is shared", warning=True)
        return
    try:
        address = store_address(shared.url)
    except ValueError as error:
        yield Finding(("shared", "url"), str(error))
        return
    if find_spec("redis") is None:
        yield Finding(("shared", "url"), "the library for it is missing: pip install 'tlsproxy[shared]'")
    yield from _tls(shared, address)
    if shared.user is not None and shared.password_file is None:
        yield Finding(("shared", "user"), "shared.password_file is needed: a user has a password")


def _tls(shared: SharedConfig, address: StoreAddress) -> Iterator[Finding]:
    if not address.tls:
        for key in ("ca_cert", "cert", "key"):
            if getattr(shared, key) is not None:
                yield Finding(("shared", key), "the store is spoken to in clear: shared.url must begin with rediss://")
        if isinstance(address.endpoint, Endpoint) and not address.endpoint.loopback:
            text = "neither on loopback nor TLS: whoever is on the way can change limits and locks; use rediss://"
            yield Finding(("shared", "url"), text, warning=True)
        return
    if shared.ca_cert is None:
        yield Finding(("shared", "url"), "shared.ca_cert is needed: without it the store could be anybody")
