"""hitch of Debian: TLS to TCP, with no access rule and no access log."""

from __future__ import annotations

from bench.peers.peer import Peer, Place, Program, debian

_CONFIG = """
frontend = {{ host = "127.0.0.1"
 port = "{tcp}"
 }}
backend = "[127.0.0.1]:{upstream_http}"
pem-file = "{site}/server-both.pem"
tls-protos = TLSv1.3
workers = {workers}
client-verify = required
client-verify-ca = "{site}/ca.pem"
daemon = off
quiet = on
user = "nobody"
group = "nogroup"
"""


def _command(program: Program, place: Place) -> list[str]:
    text = _CONFIG.format(
        tcp=place.tcp, upstream_http=place.upstream_http, site=place.site.directory, workers=place.workers
    )
    return [program.path, f"--config={place.write('hitch.conf', text)}"]


PEER = Peer(
    "hitch",
    frozenset({"tcp"}),
    debian("hitch", "hitch", "--version"),
    _command,
    note="neither an access rule nor a log",
)
