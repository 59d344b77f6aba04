"""A browser's word on where a request comes from → whether a page of elsewhere made it.

A client certificate is an ambient credential: a browser presents it whatever page asks. But it says in each request who
does: `Sec-Fetch-Site` (Fetch Metadata) always, `Origin` (Fetch) unless it only navigates or embeds by GET; and no page
can change either, for both are forbidden request headers. What is no browser sends neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from tlsproxy.authz.access import Decision, forbidden
from tlsproxy.errors import Form

_OWN_SITE: Final = frozenset((b"same-origin", b"none"))
"""A page of the gateway's own origin (the dashboard), or the user: a typed address, a bookmark."""
_DEFAULT_PORT: Final = b":443"


def is_cross_site(fields: Iterable[tuple[bytes, bytes]], authority: bytes, allowed: AbstractSet[bytes]) -> bool:
    """``fields`` have lower-case names; ``authority`` is what the request was sent to: a host, perhaps with a port.

    ``allowed`` are further origins whose pages may ask, as a browser writes them. Whatever a browser would not send
    (several origins, another word) is from elsewhere.
    """
    origins = [value for name, value in fields if name == b"origin"]
    if origins:
        if len(origins) == 1 and origins[0] in allowed:
            return False
        if len(origins) > 1 or origins[0].lower().removesuffix(_DEFAULT_PORT) != own_origin(authority):
            return True
    return any(value not in _OWN_SITE for name, value in fields if name == b"sec-fetch-site")


def own_origin(authority: bytes) -> bytes:
    """The origin of pages that are served at this authority, without its port where that is the default."""
    return b"https://" + authority.lower().removesuffix(_DEFAULT_PORT)


def cross_site(form: Form = Form.JSON) -> Decision:
    text = "a web page of another origin may not use a client certificate; it must send a key or token of its own"
    return forbidden("cross_site", text, form)
