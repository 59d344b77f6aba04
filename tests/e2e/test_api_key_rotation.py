"""An API key is replaced under way: add the new one as the alternative, move the clients, drop the old one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.caller import Caller
from support.gateway import DEADLINE, Gateway
from support.site import Site
from support.upstream import ScriptedUpstream

OLD, NEW = "the-old-key", "the-new-key"


class Clients:
    """Four that ask all the time, two of them on new connections; ``key`` is what they send from then on."""

    def __init__(self, gateway: Gateway, site: Site) -> None:
        self.key = OLD
        self.answers: list[tuple[str, int]] = []
        self._gateway = gateway
        self._context = site.client(None)
        self._more = threading.Condition()
        self._stop = False

    @contextmanager
    def asking(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask, args=(kept,)) for kept in (True, True, False, False)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop = True
            for thread in threads:
                thread.join(DEADLINE)

    def _ask(self, kept: bool) -> None:  # noqa: FBT001 - a test's own
        while not self._stop:
            with Caller(self._gateway, self._context) as caller:
                self._ask_once(caller)
                while kept and not self._stop:
                    self._ask_once(caller)

    def _ask_once(self, caller: Caller) -> None:
        key = self.key
        try:
            status = caller.ask(api_key=key).status
        except (OSError, EOFError):
            status = 0
        with self._more:
            self.answers.append((key, status))
            self._more.notify_all()

    def wait_for(self, key: str, count: int = 40) -> None:
        """That many more answers to requests with this key."""
        with self._more:
            first = len(self.answers)
            enough = self._more.wait_for(
                lambda: sum(sent == key for sent, _ in self.answers[first:]) >= count, timeout=DEADLINE
            )
        assert enough


def test_add_move_drop(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.write("old.key", OLD.encode())
    own_site.write("new.key", NEW.encode())
    config = own_site.write_config(
        upstream.url, service={"verify_https_client_certificate": False, "api_key_file": "old.key"}
    )
    with Gateway(config) as gateway:
        with Caller(gateway, own_site.client(None)) as caller:
            assert caller.ask(api_key=NEW).status == 401
            clients = Clients(gateway, own_site)
            with clients.asking():
                clients.wait_for(OLD)
                own_site.edit_config(config, service={"alt_api_key_file": "new.key"})
                gateway.reloaded()
                clients.wait_for(OLD)
                clients.key = NEW
                clients.wait_for(NEW)
                # A client that is slow to move may still be under way with the old key: both are in force here.
                clients.wait_for(NEW)
                own_site.edit_config(config, service={"api_key_file": "new.key", "alt_api_key_file": None})
                gateway.reloaded()
                clients.wait_for(NEW)
            assert {status for _, status in clients.answers} == {200}
            assert {key for key, _ in clients.answers} == {OLD, NEW}

            refused = caller.ask(api_key=OLD)
            assert (refused.status, refused.body) == (401, "Invalid API key or JWT")
            assert caller.ask(api_key=NEW).status == 200
        records = "\n".join(str(record) for record in gateway.stop())
        log = "\n".join(gateway.log.seen)
    for secret in (OLD, NEW):
        assert secret not in records
        assert secret not in log


def test_a_key_file_that_is_written_anew(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.write("api.key", OLD.encode())
    config = own_site.write_config(
        upstream.url, service={"verify_https_client_certificate": False, "api_key_file": "api.key"}
    )
    with Gateway(config) as gateway, Caller(gateway, own_site.client(None)) as caller:
        assert caller.ask(api_key=OLD).status == 200
        own_site.replace("api.key", NEW.encode() + b"\n")
        gateway.reloaded()
        assert caller.ask(api_key=OLD).status == 401
        assert caller.ask(api_key=NEW).status == 200


def test_an_empty_key_file_leaves_the_old_key(own_site: Site, upstream: ScriptedUpstream) -> None:
    """Empty, it would mean no key: for clients without a certificate, that nobody may do anything."""
    own_site.write("api.key", OLD.encode())
    config = own_site.write_config(
        upstream.url, service={"verify_https_client_certificate": False, "api_key_file": "api.key"}
    )
    with Gateway(config) as gateway, Caller(gateway, own_site.client(None)) as caller:
        own_site.replace("api.key", b"")
        assert gateway.reloaded("failed")["error"].startswith(str(own_site.directory / "api.key"))
        assert caller.ask(api_key=OLD).status == 200
