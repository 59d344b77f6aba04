"""Commands to copy and try while the demo is up."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from tlsproxy.demo.clients import HOST
from tlsproxy.demo.premises import COLLECTION

if TYPE_CHECKING:
    from tlsproxy.demo.premises import Premises
    from tlsproxy.demo.upstream import Ports


def to_try(premises: Premises, ports: Ports, admin: str) -> str:
    """``admin`` is the address of the admin server."""
    url = f"https://{HOST}:{ports.rest}"
    return f"""
The gateway is up at {url}, and for gRPC at {HOST}:{ports.grpc}. Try it from another terminal:

  # what you just saw, and what you do now, in a browser: decisions, connections, refusals, certificates
  http://{admin}/
  # or in a terminal
  {_quoted(sys.executable)} -m tlsproxy top --admin {admin}

  # search may read
  {_curl(premises, "search", f"{url}/collections")}
  # and may not write: 403
  {_curl(premises, "search", f"-X DELETE {url}/collections/{COLLECTION}")}
  # ingest may write to `{COLLECTION}` only: 403
  {_curl(premises, "ingest", f"{url}/collections/other")}
  # without a certificate: no connection
  curl --cacert {_quoted(premises.ca)} {url}/collections

  # Python, as the role search:
  import httpx, ssl
  from qdrant_client import QdrantClient
  tls = ssl.create_default_context(cafile={str(premises.ca)!r})
  tls.load_cert_chain({str(premises.certificate("search"))!r}, {str(premises.key("search"))!r})
  client = QdrantClient(url={url!r}, verify=tls, check_compatibility=False, limits=httpx.Limits())
  print(client.scroll({COLLECTION!r}, limit=3))
  # and over gRPC:
  pem = dict(
      root_certificates=open({str(premises.ca)!r}, "rb").read(),
      certificate_chain=open({str(premises.certificate("search"))!r}, "rb").read(),
      private_key=open({str(premises.key("search"))!r}, "rb").read(),
  )
  client = QdrantClient(
      url={url!r}, verify=tls, check_compatibility=False, grpc_port={ports.grpc}, prefer_grpc=True, grpc_options=pem
  )
  print(client.scroll({COLLECTION!r}, limit=3))

  # what the gateway wrote down
  tail -f {_quoted(premises.audit)}/*.log

Ctrl-C ends it."""


def _curl(premises: Premises, client: str, rest: str) -> str:
    certificate, key = _quoted(premises.certificate(client)), _quoted(premises.key(client))
    return f"curl --cacert {_quoted(premises.ca)} --cert {certificate} --key {key} {rest}"


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
