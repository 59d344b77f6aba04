"""nginx of Debian: an access rule by subject in a map, an access log with it, kept connections to the upstream."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from bench.errors import AbsentError
from bench.peers.peer import WITH_TWO, Peer, Place, Program, debian
from bench.site import CALLERS, ORGANIZATION

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

_HTTP = """
worker_processes {workers};
worker_rlimit_nofile 65536;
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 30000; }}
http {{
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  log_format audit '$time_iso8601 $remote_addr "$ssl_client_s_dn" $role $request_method $uri '
                   '$status $body_bytes_sent $request_time';
  access_log {directory}/access.log audit;
  upstream rest {{ server 127.0.0.1:{upstream_http}; keepalive 128; }}
  upstream grpc {{ server 127.0.0.1:{upstream_grpc}; keepalive 128; }}
  map $ssl_client_s_dn $role {{ default none; {callers} }}
  map "$role:$request_method:$uri" $allowed {{
    default 0;
    "~^rw:GET:/collections" 1;
    "~^rw:POST:/collections/[^/]+/points/" 1;
    "~^rw:PUT:/collections/[^/]+/points" 1;
    "~^rw:POST:/qdrant" 1;
  }}
  keepalive_requests 100000000; keepalive_timeout 3600;
  ssl_certificate {site}/server.pem; ssl_certificate_key {site}/server.key;
  ssl_client_certificate {site}/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;
  client_max_body_size 0; proxy_request_buffering off; proxy_max_temp_file_size 0;
  {buffers}
  server {{
    listen 127.0.0.1:{http} ssl;
    location / {{
      if ($allowed = 0) {{ return 403; }}
      proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Client-DN $ssl_client_s_dn;
      proxy_pass http://rest;
    }}
  }}
  server {{
    listen 127.0.0.1:{grpc} ssl{http2_listen}; {http2}
    location / {{ if ($allowed = 0) {{ return 403; }} grpc_pass grpc://grpc; }}
  }}
}}
"""
_STREAM = """
stream {{
  log_format relay '$time_iso8601 $remote_addr "$ssl_client_s_dn" $status $bytes_sent $session_time';
  access_log {directory}/stream.log relay;
  server {{
    listen 127.0.0.1:{tcp} ssl;
    ssl_certificate {site}/server.pem; ssl_certificate_key {site}/server.key;
    ssl_client_certificate {site}/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;
    proxy_pass 127.0.0.1:{upstream_http};
  }}
}}
"""
_RAISED = (
    "proxy_buffer_size 16k; proxy_buffers 8 128k; proxy_busy_buffers_size 256k; "
    "client_body_buffer_size 256k; ssl_buffer_size 16k;"
)


def configuration(place: Place, *, own_http2: bool, buffers: str = "", stream: bool = True) -> str:
    """``own_http2``: ``http2`` is a directive (since 1.25.1), no parameter of ``listen``."""
    return (_HTTP + (_STREAM if stream else "")).format(
        directory=place.directory,
        site=place.site.directory,
        workers=place.workers,
        http=place.http,
        grpc=place.grpc,
        tcp=place.tcp,
        upstream_http=place.upstream_http,
        upstream_grpc=place.upstream_grpc,
        callers=" ".join(f'"CN={name},O={ORGANIZATION}" rw;' for name in CALLERS),
        buffers=buffers,
        http2="http2 on;" if own_http2 else "",
        http2_listen="" if own_http2 else " http2",
    )


def _release(program: Program) -> tuple[int, ...]:
    return tuple(map(int, program.version.split(".")))


def _locate(venv: Path) -> Program:
    if not STREAM_MODULE.exists():
        raise AbsentError(f"{STREAM_MODULE} is not installed: apt-get install nginx-light libnginx-mod-stream")
    return debian("nginx", "nginx-light libnginx-mod-stream", "-v")(venv)


def _command(buffers: str, program: Program, place: Place) -> list[str]:
    text = f"load_module {STREAM_MODULE};\n" + configuration(
        place, own_http2=_release(program) >= (1, 25, 1), buffers=buffers
    )
    return [
        program.path,
        "-p",
        str(place.directory),
        "-e",
        f"{place.directory}/error.log",
        "-c",
        str(place.write("nginx.conf", text)),
    ]


def _as_shipped(program: Program, place: Place) -> list[str]:
    return _command("", program, place)


def _raised(program: Program, place: Place) -> list[str]:
    return _command(_RAISED, program, place)


PEER = Peer("nginx", frozenset({"http", "grpc", "tcp"}), _locate, _as_shipped, reload=signal.SIGHUP)
TWO = replace(PEER, name="nginx-2", workers=2, only=WITH_TWO, note="two workers, on both sets of cores", reload=None)
RAISED = Peer(
    "nginx-raised",
    frozenset({"http"}),
    _locate,
    _raised,
    note="nginx with larger buffers than it ships with",
    only=frozenset({"upsert", "download"}),
)
