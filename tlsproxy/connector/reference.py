"""The reference of client mode's configuration, config/client.yaml, from the model."""

from __future__ import annotations

import sys
from typing import Any, Final

from tlsproxy.config.reference import commented
from tlsproxy.connector.model import ConnectConfig

_HEAD: Final = """\
# The reference of client mode's configuration (`tlsproxy connect --config client.yaml`): every key, with its default or
# an example. Generated from tlsproxy/connector/model.py by `make reference`.
#
# QDRANT__SECTION__KEY in the environment wins over this file, such as QDRANT__TLS__CERT=/run/client.pem; `listeners`
# are set in the file only. Relative paths are relative to it. A path may be `credential:NAME`: systemd's
# LoadCredential=NAME:… then names the file. Times are seconds. An edited file is applied while it runs, except where it
# says "Needs a restart"."""
_EXAMPLES: Final[dict[str, Any]] = {
    "listeners": [
        {"listen": "127.0.0.1:6333", "targets": ["gw1.example.org:6333", "gw2.example.org:6333"], "alpn": "http/1.1"},
        {"listen": "127.0.0.1:6334", "targets": ["gw1.example.org:6334", "gw2.example.org:6334"], "alpn": "h2"},
        {"listen": "unix:/run/tlsproxy-connect/client/p2p.sock", "targets": ["peer.example.org:8435"]},
    ],
    "tls": {"ca_cert": "../certs/ca.pem", "cert": "../certs/client.pem", "key": "../certs/client.key"},
}


def as_yaml() -> str:
    return commented(ConnectConfig, _HEAD, _EXAMPLES)


if __name__ == "__main__":
    sys.stdout.write(as_yaml())
