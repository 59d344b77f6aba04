"""Lines to copy and try while the demo is up. Pure text: nothing here runs any of them."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from tlsproxy.demo.clients import HOST
from tlsproxy.demo.premises import COLLECTION

if TYPE_CHECKING:
    from tlsproxy.demo.premises import Premises


def to_try(premises: Premises, port: int) -> str:
    url = f"https://{HOST}:{port}"
    return f"""
The gateway is up at {url}. Try it from another terminal:

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

  # what the gateway wrote down
  tail -f {_quoted(premises.audit)}/*.log

Ctrl-C ends it."""


def _curl(premises: Premises, client: str, rest: str) -> str:
    certificate, key = _quoted(premises.certificate(client)), _quoted(premises.key(client))
    return f"curl --cacert {_quoted(premises.ca)} --cert {certificate} --key {key} {rest}"


def _quoted(path: object) -> str:
    return shlex.quote(str(path))
