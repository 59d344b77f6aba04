"""An API key is replaced under way: add the new one as the alternative, move the clients, drop the old one."""

from __future__ import annotations

from support.credential_traffic import Clients
from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

OLD, NEW = "the-old-key", "the-new-key"


def test_add_move_drop(own_site: Site, upstream: ScriptedUpstream) -> None:
    own_site.write("old.key", OLD.encode())
    own_site.write("new.key", NEW.encode())
    config = own_site.write_config(
        upstream.url, service={"verify_https_client_certificate": False, "api_key_file": "old.key"}
    )
    with Gateway(config) as gateway:
        with Caller(gateway, own_site.client(None)) as caller:
            assert caller.ask(api_key=NEW).status == 401
            clients = Clients(gateway, own_site.client(None), OLD)
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
