"""TLS records of one connection, either side: an SSLObject between two memory BIOs.

Records are read greedily and written once for each direction. Received data is decrypted to its end at once, even if
the handler pauses reading meanwhile: no socket event would announce data that is left in a BIO.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Final

from tlsproxy.wire.content_coding import Content

RECORD: Final = 16_384
"""Bytes of plaintext in a record, at most (RFC 8446 §5.1)."""
FED: Final = 24_576
"""Bytes of ciphertext given to a BIO at a time, a record and a half: a BIO never shrinks again."""
MAX_HANDSHAKE: Final = 131_072
"""Bytes from a peer before the handshake is done, at most: room for a long chain, not for a flood."""


class Records:
    """``incoming`` and ``outgoing`` hold encrypted bytes, as they are received and as they are to be sent."""

    __slots__ = ("incoming", "outgoing", "tls")

    def __init__(self, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """``server_name``: of the server, on the client's side; without it this is the server's side."""
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_name is None, server_hostname=server_name
        )

    def opened(self, data: bytes) -> tuple[bytes, bool | ssl.SSLError]:
        """Plaintext of all received data, and True, or the error, where the stream ended."""
        incoming = self.incoming
        rest: bytes | memoryview = b""
        if len(data) <= FED:
            incoming.write(data)
        else:
            rest = memoryview(data)[FED:]
            incoming.write(memoryview(data)[:FED])
        try:
            data = self.tls.read(RECORD)
        except ssl.SSLWantReadError:
            return self._following(b"", rest) if rest else (b"", False)
        except ssl.SSLZeroReturnError:  # a close_notify after ours; without ours nothing is raised
            return b"", True
        except ssl.SSLError as error:
            return b"", error
        if not data:
            return b"", True
        return self._following(data, rest) if rest or incoming.pending else (data, False)

    def _following(self, data: bytes, rest: bytes | memoryview) -> tuple[bytes, bool | ssl.SSLError]:
        """Reads the records behind the first one, whose plaintext is ``data``."""
        read, incoming = self.tls.read, self.incoming
        records = [data]
        ended: bool | ssl.SSLError = False
        while not ended:
            if rest and incoming.pending <= FED:
                incoming.write(rest[:FED])
                rest = rest[FED:]
            if not incoming.pending:
                break
            try:
                data = read(RECORD)
            except ssl.SSLWantReadError:
                if not rest:
                    break
                incoming.write(rest[:FED])
                rest = rest[FED:]
                continue
            except ssl.SSLZeroReturnError:
                ended = True
                break
            except ssl.SSLError as error:
                ended = error
                break
            records.append(data)
            ended = not data
        return b"".join(records), ended

    def sealed(self, data: Content | memoryview) -> bytes:
        """The data encrypted."""
        write, read, size = self.tls.write, self.outgoing.read, len(data)
        if size <= RECORD:
            write(data)
            return read()
        view, sealed = memoryview(data), []
        for start in range(0, size, RECORD):  # one at a time: the BIO keeps the size of the largest
            write(view[start : start + RECORD])
            sealed.append(read())
        return b"".join(sealed)

    def say_goodbye(self) -> None:
        """Write a close_notify, which tells an end from a cut (RFC 8446 §6.1)."""
        # Ours is written first; the error says that theirs is not here yet, or that data precedes it.
        with suppress(ssl.SSLError):
            self.tls.unwrap()
