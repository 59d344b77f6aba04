"""HAProxy of Debian: ACLs by the client's common name, its log in a file by way of standard output."""

from __future__ import annotations

import signal

from bench.peers.peer import Peer, Place, Program, debian
from bench.site import CALLERS

_CONFIG = """
global
  nbthread {workers}
  maxconn 12000
  no strict-limits
  log stdout format raw local0
defaults
  mode http
  log global
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  log-format "%t %ci \\"%[ssl_c_s_dn(cn)]\\" %HM %HU %ST %B %Ta"
  http-reuse always
frontend rest
  bind 127.0.0.1:{http} {tls} alpn http/1.1
  acl known ssl_c_s_dn(cn) -m str {callers}
  acl get method GET
  acl get_path path_beg /collections
  acl post method POST
  acl post_path path_reg ^/collections/[^/]+/points/
  acl put method PUT
  acl put_path path_reg ^/collections/[^/]+/points
  http-request deny unless known
  http-request deny unless get get_path or post post_path or put put_path
  http-request set-header X-Client-DN %[ssl_c_s_dn(cn)]
  default_backend rest
backend rest
  server s 127.0.0.1:{upstream_http}
frontend grpc
  bind 127.0.0.1:{grpc} {tls} alpn h2
  acl known ssl_c_s_dn(cn) -m str {callers}
  acl post method POST
  acl post_path path_beg /qdrant
  http-request deny unless known post post_path
  default_backend grpc
backend grpc
  server s 127.0.0.1:{upstream_grpc} proto h2
frontend tcp
  mode tcp
  log-format "%t %ci %B"
  bind 127.0.0.1:{tcp} {tls}
  default_backend tcp
backend tcp
  mode tcp
  server s 127.0.0.1:{upstream_http}
"""
_TLS = "ssl crt {site}/server-both.pem ca-file {site}/ca.pem verify required ssl-min-ver TLSv1.3"


def _command(program: Program, place: Place) -> list[str]:
    text = _CONFIG.format(
        workers=place.workers,
        tls=_TLS.format(site=place.site.directory),
        callers=" ".join(CALLERS),
        http=place.http,
        grpc=place.grpc,
        tcp=place.tcp,
        upstream_http=place.upstream_http,
        upstream_grpc=place.upstream_grpc,
    )
    return [program.path, "-W", "-db", "-f", str(place.write("haproxy.cfg", text))]


PEER = Peer(
    "haproxy",
    frozenset({"http", "grpc", "tcp"}),
    debian("haproxy", "haproxy", "-v"),
    _command,
    reload=signal.SIGUSR2,
)
