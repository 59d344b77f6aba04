"""The key that signs tokens is replaced under way: every token that is still meant to be good is, at every moment."""

from __future__ import annotations

from support.credential_traffic import Clients
from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

from tlsproxy.authz.tokens import mint

OLD, NEW = "the-old-signing-key", "the-new-signing-key"
CLAIMS = {"access": "r", "exp": 4_000_000_000}


def test_add_mint_swap_drop(own_site: Site, upstream: ScriptedUpstream) -> None:
    old, new = mint(OLD, CLAIMS), mint(NEW, CLAIMS)
    own_site.write("old.key", OLD.encode())
    own_site.write("new.key", NEW.encode())
    config = own_site.write_config(
        upstream.url,
        service={"verify_https_client_certificate": False, "api_key_file": "old.key", "jwt_rbac": True},
    )
    context = own_site.client(None)
    with Gateway(config) as gateway, Caller(gateway, context) as caller:
        early = caller.ask(api_key=new)
        assert (early.status, early.body) == (403, "InvalidSignature")
        slow = Clients(gateway, context, old)
        with slow.asking():
            slow.wait_for(old)
            own_site.edit_config(config, service={"alt_api_key_file": "new.key"})
            gateway.reloaded()
            quick = Clients(gateway, context, new)  # the holders of tokens that are minted from here on
            with quick.asking():
                quick.wait_for(new)
                slow.wait_for(old)
                own_site.edit_config(config, service={"api_key_file": "new.key", "alt_api_key_file": "old.key"})
                gateway.reloaded()
                slow.wait_for(old)
                quick.wait_for(new)
                slow.key = new
                slow.wait_for(new)
                slow.wait_for(new)  # whoever was under way with the old token has its answer
                own_site.edit_config(config, service={"alt_api_key_file": None})
                gateway.reloaded()
                slow.wait_for(new)
                quick.wait_for(new)
        assert {status for clients in (slow, quick) for _, status in clients.answers} == {200}
        assert {key for key, _ in slow.answers} == {old, new}

        late = caller.ask(api_key=old)
        assert (late.status, late.body) == (403, "InvalidSignature")
        assert caller.ask(api_key=new).status == 200
        records = "\n".join(str(record) for record in gateway.stop())
        log = "\n".join(gateway.log.seen)
    for secret in (OLD, NEW, old, new):
        assert secret not in records
        assert secret not in log
