"""Conversion of a Qdrant configuration: what the gateway takes over, what it leaves out, and what Qdrant's must become.

Qdrant's keys in `service`, `tls` and `audit` are the gateway's too; the gateway takes Qdrant's place in front of the
clients, so its ports, certificate and keys become the gateway's. No file is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from tlsproxy.config.model import Config
from tlsproxy.config.qdrant_keys import is_unused
from tlsproxy.config.shape import model_at

SECRETS: Final = ("api_key", "alt_api_key", "read_only_api_key")

_SECTIONS: Final = ("service", "tls", "audit", "logger")
_OWN_LOG: Final = "the gateway's audit log is its own"
_LEFT: Final = {
    ("service", "enable_tls"): "the gateway always speaks TLS",
    ("service", "verify_https_client_certificate"): (
        "client certificates are required; --optional-certificates makes them optional"
    ),
    ("audit", "enabled"): _OWN_LOG,
    ("audit", "dir"): _OWN_LOG,
    ("audit", "trust_forwarded_headers"): "the gateway knows a client from its connection",
}
_FILES: Final = ("cert", "key", "ca_cert")
_FORMER: Final = (*SECRETS, "jwt_rbac")
"""Keys of Qdrant's `service` that are about clients, which the gateway now judges."""


@dataclass(frozen=True, slots=True)
class Taken:
    """``sections`` of a Qdrant configuration for the gateway; ``left``: each key that is left out, with the reason."""

    sections: dict[str, Any]
    left: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            f"{section}.{key}" if isinstance(value, dict) else section
            for section, value in self.sections.items()
            for key in (value if isinstance(value, dict) else ("",))
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The keys whose values are secrets."""
        return tuple(key for key in SECRETS if key in self.sections.get("service", {}))


def take(qdrant: Mapping[str, Any], located: Callable[[str], str | None]) -> Taken:
    """Take over what has the same meaning. ``located`` gives the path of a file of Qdrant's; None if there is none."""
    sections: dict[str, Any] = {}
    left: list[tuple[str, str]] = []
    for section, value in qdrant.items():
        if section == "log_level":
            sections[section] = value
        elif section not in _SECTIONS:
            own = section in Config.model_fields
            left.append((section, "not Qdrant's" if own else _why(section)))
        elif isinstance(value, dict):
            for key, item in value.items():
                reason = _reason(section, key, item, located)
                if reason is not None:
                    left.append((f"{section}.{key}", reason))
                elif not _is_default(section, key, item):
                    sections.setdefault(section, {})[key] = located(item) if _is_file(section, key) else item
        elif value is not None:
            left.append((section, "is no mapping"))
    tls = sections.get("tls", {})
    if ("cert" in tls) != ("key" in tls):
        left += [
            (f"tls.{key}", "of the pair the other one is missing") for key in ("cert", "key") if tls.pop(key, None)
        ]
    return Taken({name: value for name, value in sections.items() if value not in ({}, None)}, tuple(left))


def _reason(section: str, key: str, value: Any, located: Callable[[str], str | None]) -> str | None:
    """Why a key is left out; None if it is taken."""
    if (section, key) in _LEFT:
        return None if (key, value) == ("verify_https_client_certificate", True) else _LEFT[section, key]
    if key not in model_at((section,)).model_fields:
        return _why(section, key)
    if _is_file(section, key) and value is not None and (not isinstance(value, str) or located(value) is None):
        return "there is no such file"
    return None


def _is_default(section: str, key: str, value: Any) -> bool:
    """Whether it is null, or an empty key, and that says nothing: `grpc_port: null` says that there is no gRPC."""
    return value in (None, "") and model_at((section,)).model_fields[key].default is None


def _is_file(section: str, key: str) -> bool:
    return section == "tls" and key in _FILES


def _why(*path: str) -> str:
    return "stays in Qdrant's file" if is_unused(path) else "is no key of Qdrant's or the gateway's that is known"


def as_yaml(config: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """The file, with a comment before some of its sections."""
    parts = []
    for name, value in config.items():
        comment = "".join(f"# {line}\n" for line in comments.get(name, "").splitlines())
        style = None if isinstance(value, dict | list) else False
        parts.append(comment + yaml.safe_dump({name: value}, sort_keys=False, default_flow_style=style, width=118))
    return "\n".join(parts)


def qdrants_own(qdrant: Mapping[str, Any], rest: str, grpc: str, key_file: str | None) -> Iterator[str]:
    """Lines on what Qdrant's own file must have from then on: plaintext, where only the gateway reaches it."""
    service = qdrant.get("service")
    service = service if isinstance(service, dict) else {}
    address, call = urlsplit(rest), urlsplit(grpc)
    host = "127.0.0.1" if address.hostname in {"127.0.0.1", "localhost"} else "ADDRESS"
    yield "service:"
    yield f"  host: {host}{'' if host != 'ADDRESS' else '   # one that only the gateway reaches'}"
    yield f"  http_port: {address.port or 80}"
    served = service.get("grpc_port", call.port) is not None
    yield f"  grpc_port: {(call.port or 80) if served else 'null'}"
    yield "  enable_tls: false"
    if key_file is not None:
        yield f"  api_key: KEY   # that of {key_file}"
    former = [key for key in _FORMER if service.get(key) and (key_file is None or key != "api_key")]
    if former:
        yield f"  # remove: {', '.join(former)}"
