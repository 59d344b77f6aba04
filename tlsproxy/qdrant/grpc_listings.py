"""Listings over gRPC, reduced for collection-limited callers: as :mod:`tlsproxy.qdrant.rest_listings`, of messages.

A listing has its entries in field 1, each with one or two names, and the time it took in field 2. It is rewritten with
these alone, so that fields of a newer Qdrant are removed.
"""

from __future__ import annotations

from typing import Final

from tlsproxy.authz.access import Rights
from tlsproxy.qdrant.operations import Operation
from tlsproxy.qdrant.rest_listings import Listing, listing_of
from tlsproxy.wire.content_coding import Content
from tlsproxy.wire.cooperative import Steps
from tlsproxy.wire.protobuf import I64, delimited, fields

ENTRIES: Final = {"list_collections": (1,), "list_aliases": (1, 2), "list_collection_aliases": (1, 2)}
"""By operation: the fields of an entry that are names. The caller must have grants for all of them."""
STEP: Final = 250
"""Entries per step, at some 8 microseconds each."""
_ENTRY: Final = 1
_TIME: Final = 2


class MessageListing(Listing):
    """The reduction of one method's response."""

    __slots__ = ()

    def reducing(self, body: Content) -> Steps[bytes]:
        """``body`` is one message. Raises ValueError if it is malformed."""
        shown = []
        for count, one in enumerate(fields(bytes(body)), start=1):
            if not count % STEP:
                yield None
            if one.number == _ENTRY:
                shown += self._entry(one.content())
            elif one.number == _TIME and one.wire_type == I64:
                shown.append(one.raw)
        return b"".join(shown)

    def _entry(self, content: bytes) -> list[bytes]:
        """The entry, or nothing. One with a name twice is removed: readers differ in which one counts."""
        names = ENTRIES[self.operation]
        found = [(one.number, one.content()) for one in fields(content) if one.number in names]
        if [number for number, _ in sorted(found)] != list(names):
            return []
        if not all(self._is_shown(name.decode()) for _, name in found):
            return []
        return [delimited(_ENTRY, b"".join(delimited(number, name) for number, name in found))]


def listing_of_call(operation: Operation, rights: tuple[Rights, ...]) -> MessageListing | None:
    """The reduction for these rights; None where the response may be shown whole, or cannot be reduced."""
    listing = listing_of(operation, rights)
    if listing is None or operation.name not in ENTRIES:
        return None
    return MessageListing(listing.operation, listing.grants)
