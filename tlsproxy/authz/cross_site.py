"""Cross-site request detection, from the headers that browsers set.

A client certificate is an ambient credential: a browser presents it for requests of any page. But it names the page's
site in each request: by `Sec-Fetch-Site` (Fetch Metadata) always, by `Origin` (Fetch) unless it navigates or embeds by
GET. Pages cannot change either, since both are forbidden request headers. Other clients send neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from tlsproxy.authz.access import Decision, forbidden
from tlsproxy.errors import Form

_OWN_SITE: Final = frozenset((b"same-origin", b"none"))
"""Pages of the gateway's own origin (the dashboard), and the user: a typed address, a bookmark."""
_DEFAULT_PORT: Final = b":443"


def is_cross_site(fields: Iterable[tuple[bytes, bytes]], authority: bytes, allowed: AbstractSet[bytes]) -> bool:
    """Whether a page of another origin made the request. ``fields`` have lower-case names.

    ``authority`` is the host of the request, perhaps with a port; ``allowed`` are further origins that are trusted, as
    a browser writes them. Values that no browser sends (several origins, an unknown site) count as cross-site.
    """
    origins: list[bytes] = []
    foreign = False
    for name, value in fields:
        if name == b"origin":
            origins.append(value)
        elif name == b"sec-fetch-site" and value not in _OWN_SITE:
            foreign = True
    if not origins:
        return foreign
    if len(origins) > 1:
        return True
    if origins[0] in allowed:
        return False
    return foreign or origins[0].lower().removesuffix(_DEFAULT_PORT) != own_origin(authority)


def own_origin(authority: bytes) -> bytes:
    """The origin of pages at this authority, without the default port: `https://qdrant.example`."""
    return b"https://" + authority.lower().removesuffix(_DEFAULT_PORT)


def cross_site(form: Form = Form.JSON) -> Decision:
    text = "a web page of another origin may not use a client certificate; it must send a key or token of its own"
    return forbidden("cross_site", text, form)
