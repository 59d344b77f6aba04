"""Upstreams on bare sockets: one that treats each connection by a function, and one that answers no SYN."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from support.gateway import DEADLINE


@contextmanager
def serving(serve: Callable[[socket.socket], None], address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[str]:
    """An upstream that treats each connection so: its ``host:port``."""

    def handle(sock: socket.socket) -> None:
        with sock:
            try:
                serve(sock)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(sock,), daemon=True).start()

    with socket.create_server(address) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"{address[0]}:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE)


@contextmanager
def deaf() -> Iterator[str]:
    """An upstream that can be dialled for ever, since its backlog is full: its ``host:port``."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"
