"""The PROXY protocol in the configuration: balancers that tell their clients' addresses, by listener."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from tlsproxy.config.callers import Section
from tlsproxy.config.networks import Network, networks

ANYBODY: Final = "this is everybody: a client may then claim any address, in the audit log and before the limits too"

_FROM: Final = """Addresses and networks of the balancers, such as `10.0.0.7` or `10.0.0.0/24`, or `unix` for those on
this machine that connect over the listener's unix socket. Each of their connections must begin with a header;
connections from elsewhere are closed."""


class ProxyProtocol(Section):
    """Balancers that send a header of the PROXY protocol, version 1 or 2, before TLS. The client's address in it is the
    one of limits, audit log and `X-Forwarded-For`.
    """

    # `from` is no name of a Python field, so it stands in this form.
    __annotations__ = {"from": Annotated[tuple[str, ...], Field(min_length=1, description=_FROM)]}


def balancers(setting: ProxyProtocol | None) -> tuple[Network, ...] | None:
    """Networks that must send a header; None where none is expected."""
    return None if setting is None else networks(getattr(setting, "from"))
