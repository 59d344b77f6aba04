"""TLS records of one connection, either side: an SSLObject between two memory BIOs.

All connections of a thread share one pair of BIOs, which is empty before and after each call here: a BIO keeps the size
of the most that it ever held, 4 KiB after a handshake and 44 after a large body. Records are read greedily and written
once for each direction. Received data is decrypted to its end at once, even if the handler pauses reading meanwhile: no
socket event would announce data that is left in a BIO.
"""

from __future__ import annotations

import ssl
import threading
from contextlib import suppress
from typing import Final

from tlsproxy.tls.verification import Judge, shake_hands
from tlsproxy.wire.content_coding import Content

RECORD: Final = 16_384
"""Bytes of plaintext in a record, at most (RFC 8446 §5.1)."""
SEALED: Final = 131_072
"""Bytes of plaintext that are encrypted at a time, at most: more than one receipt has."""
MAX_HANDSHAKE: Final = 131_072
"""Bytes from a peer before the handshake is done, at most: room for a long chain, not for a flood."""

_thread: Final = threading.local()


def _bios() -> tuple[ssl.MemoryBIO, ssl.MemoryBIO]:
    """The thread's pair: encrypted bytes as they are received, and as they are to be sent."""
    try:
        bios: tuple[ssl.MemoryBIO, ssl.MemoryBIO] = _thread.bios
    except AttributeError:
        _thread.bios = bios = ssl.MemoryBIO(), ssl.MemoryBIO()
    return bios


class Records:
    """Used by the thread that made it. Each method returns, last, the bytes that are to be sent for it.

    Errors are returned without their traceback: its frames have the connection, which would be a reference cycle.
    """

    __slots__ = ("_incoming", "_outgoing", "tls")

    def __init__(self, context: ssl.SSLContext, server_name: str | None = None) -> None:
        """``server_name``: of the server, on the client's side; without it this is the server's side."""
        self._incoming, self._outgoing = incoming, outgoing = _bios()
        self.tls = context.wrap_bio(incoming, outgoing, server_side=server_name is None, server_hostname=server_name)

    def shake_hands(self, data: bytes, judge: Judge) -> tuple[bytes, bool | ssl.SSLError, bytes]:
        """One step of the handshake: received bytes behind its end, and whether it is done, or its error.

        An error of the judge is raised.
        """
        incoming, outgoing = self._incoming, self._outgoing
        try:
            incoming.write(data)
            shake_hands(self.tls, judge)
            return incoming.read(), True, outgoing.read()
        except ssl.SSLWantReadError:
            return b"", False, outgoing.read()
        except ssl.SSLError as error:
            return b"", error.with_traceback(None), outgoing.read()
        finally:
            incoming.read()
            outgoing.read()

    def opened(self, data: bytes) -> tuple[bytes, bool | ssl.SSLError, bytes]:
        """Plaintext of all received data, and True, or the error, where the stream ended."""
        incoming, outgoing, read = self._incoming, self._outgoing, self.tls.read
        records: list[bytes] = []
        ended = False
        try:
            incoming.write(data)
            while incoming.pending and not ended:
                data = read(RECORD)
                records.append(data)
                ended = not data
            return b"".join(records), ended, outgoing.read() if outgoing.pending else b""
        except ssl.SSLWantReadError:
            return b"".join(records), False, outgoing.read()
        except ssl.SSLZeroReturnError:  # a close_notify after ours; without ours nothing is raised
            return b"".join(records), True, outgoing.read()
        except ssl.SSLError as error:
            return b"".join(records), error.with_traceback(None), outgoing.read()
        finally:
            if incoming.pending or outgoing.pending:
                incoming.read()
                outgoing.read()

    def sealed(self, data: Content | memoryview) -> bytes:
        """The data encrypted."""
        if len(data) > SEALED:
            view = memoryview(data)
            return b"".join([self.sealed(view[at : at + SEALED]) for at in range(0, len(data), SEALED)])
        try:
            self.tls.write(data)
        except BaseException:
            self._outgoing.read()
            raise
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """A close_notify, which tells an end from a cut (RFC 8446 §6.1)."""
        # Ours is written first; the error says that theirs is not here yet, or that data precedes it.
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._outgoing.read()
