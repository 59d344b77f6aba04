"""TLS in front of plaintext upstreams, as of a proxy beside Qdrant: client certificates are remembered."""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import TracebackType
from typing import Self

from cryptography import x509

from support.forwarding import Forwarding
from support.gateway import DEADLINE


class TlsFront:
    """``port`` leads to ``target``. ``serials`` are those of the client certificates, one for each connection.

    ``present`` replaces the server's side for new connections.
    """

    def __init__(self, context: ssl.SSLContext, target: int) -> None:
        self._forwarding = Forwarding(target, near=context, accepted=self._note)
        self.present = self._forwarding.listen
        self.serials: list[int] = []
        self._came = threading.Condition()

    def __enter__(self) -> Self:
        self._forwarding.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._forwarding.__exit__(kind, error, traceback)

    def wait(self, serial: int, count: int = 1) -> None:
        """Until so many connections have come with this certificate."""
        with self._came:
            assert self._came.wait_for(lambda: self.serials.count(serial) >= count, DEADLINE), self.serials

    @property
    def port(self) -> int:
        return self._forwarding.port

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _note(self, client: asyncio.StreamWriter) -> None:
        certificate = client.get_extra_info("ssl_object").getpeercert(binary_form=True)
        with self._came:
            self.serials.append(x509.load_der_x509_certificate(certificate).serial_number if certificate else 0)
            self._came.notify_all()
