"""Files of `include` come, change, break and go under a running gateway with workers, and count like the main file."""

from __future__ import annotations

import json

from support.gateway import Gateway
from support.kept_connection import Caller
from support.site import Site
from support.upstream import ScriptedUpstream

STRANGERS = """
roles: {guest: {access: r}}
identities: [{name: nobodies, match: {cn: nobody}, role: guest}]
"""


def test_files_count_as_they_come_and_go_and_a_broken_one_is_named(own_site: Site, upstream: ScriptedUpstream) -> None:
    pieces = own_site.directory / "conf.d"
    pieces.mkdir()
    config = own_site.write_config(
        upstream.url,
        include="conf.d/*.yaml",
        workers=2,
        tls={"poll_interval": 300},
    )
    with Gateway(config) as gateway:
        with Caller(gateway, own_site.client("stranger")) as stranger:
            assert stranger.ask().status == 403
            own_site.write("conf.d/.new", STRANGERS.encode()).rename(pieces / "50-guests.yaml")
            gateway.reloaded()
            assert stranger.ask().status == 200
            status = json.loads(gateway.ask_admin("/status")[1])
            assert status["generation"]["included"] == [str(pieces / "50-guests.yaml")]
            assert {"what": "file", "name": str(pieces / "50-guests.yaml"), "how": "added", "detail": ""} in status[
                "last_reload"
            ]["changes"]

            own_site.write("conf.d/50-guests.yaml", STRANGERS.replace("guest}]", "gost}]").encode())
            code, body = gateway.ask_admin("/reload", "POST")
            assert code == 409
            assert f"{pieces}/50-guests.yaml:3:52 identities[3].role: no role is called 'gost'" in body
            assert stranger.ask().status == 200

            (pieces / "50-guests.yaml").unlink()
            gateway.ask_admin("/reload", "POST")
            assert stranger.is_closed()
        with Caller(gateway, own_site.client("stranger")) as stranger:
            assert stranger.ask().status == 403
