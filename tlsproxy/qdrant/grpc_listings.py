"""What a collection-limited caller may know of a listing by gRPC: as :mod:`tlsproxy.qdrant.rest_listings`, of messages.

A listing's answer has its entries in field 1, each with a name or two, and the time it took in field 2. It is written
anew of these alone, so that what a newer Qdrant says beside them is left out.
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
"""By the operation's name: the fields of an entry that are names. All of them must be the caller's to know."""
STEP: Final = 250
"""Entries of one step, at some 8 microseconds each."""
_ENTRY: Final = 1
_TIME: Final = 2


class MessageListing(Listing):
    """The reduction of one method's answer."""

    __slots__ = ()

    def reducing(self, body: Content) -> Steps[bytes]:
        """``body`` is one message. Raises ValueError for what is not such a message."""
        kept = []
        for count, one in enumerate(fields(bytes(body)), start=1):
            if not count % STEP:
                yield None
            if one.number == _ENTRY:
                kept += self._entry(one.content())
            elif one.number == _TIME and one.wire_type == I64:
                kept.append(one.raw)
        return b"".join(kept)

    def _entry(self, content: bytes) -> list[bytes]:
        """Nothing, or the entry. A name that is there twice is one that nobody holds: readers differ about it."""
        names = ENTRIES[self.operation]
        found = [(one.number, one.content()) for one in fields(content) if one.number in names]
        if [number for number, _ in sorted(found)] != list(names):
            return []
        if not all(self._is_shown(name.decode()) for _, name in found):
            return []
        return [delimited(_ENTRY, b"".join(delimited(number, name) for number, name in found))]


def listing_of_call(operation: Operation, rights: tuple[Rights, ...]) -> MessageListing | None:
    """None where the answer may be seen as it is, or cannot be reduced."""
    listing = listing_of(operation, rights)
    if listing is None or operation.name not in ENTRIES:
        return None
    return MessageListing(listing.operation, listing.grants)
