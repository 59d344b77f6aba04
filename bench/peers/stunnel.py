"""stunnel of Debian: TLS to TCP, with no access rule; its log has one line for each connection."""

from __future__ import annotations

from bench.peers.peer import Peer, Place, Program, debian

_CONFIG = """
foreground = yes
pid =
output = {directory}/stunnel.log
debug = notice
[tcp]
accept = 127.0.0.1:{tcp}
connect = 127.0.0.1:{upstream_http}
cert = {site}/server.pem
key = {site}/server.key
CAfile = {site}/ca.pem
verifyChain = yes
sslVersion = TLSv1.3
"""


def _command(program: Program, place: Place) -> list[str]:
    text = _CONFIG.format(
        directory=place.directory, tcp=place.tcp, upstream_http=place.upstream_http, site=place.site.directory
    )
    return [program.path, str(place.write("stunnel.conf", text))]


PEER = Peer("stunnel", frozenset({"tcp"}), debian("stunnel4", "stunnel4", "-version"), _command, note="no access rule")
