"""OpenID configurations: the document of a token issuer that names the URL of its keys.

OpenID Connect Discovery 1.0, and RFC 8414 for issuers of OAuth alone. Nothing is fetched here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from tlsproxy.authz.claims import MalformedToken, read_object
from tlsproxy.config.endpoints import check_key_set_url
from tlsproxy.errors import MaterialError
from tlsproxy.pem.blocks import text_of
from tlsproxy.text import printable

_WELL_KNOWN: Final = "/.well-known/"
_OPENID_CONFIGURATION: Final = "/.well-known/openid-configuration"
_SHOWN: Final = 200
"""Most characters of a document's value in an error."""


@dataclass(frozen=True, slots=True)
class OpenIdConfiguration:
    """``algorithms`` are those of its ID tokens, empty where it names none. ``keys_url`` may hold a secret."""

    keys_url: str = field(repr=False)
    algorithms: tuple[str, ...] = ()

    def warning(self, algorithm: str) -> str:
        """The warning that it does not name the algorithm of its issuer; "" for none.

        No error: it speaks of ID tokens, and access tokens may be signed otherwise. The keys decide.
        """
        if not self.algorithms or algorithm in self.algorithms:
            return ""
        return f"it names {_quoted(', '.join(sorted(self.algorithms)))} as its algorithms, not {algorithm}"


def configuration_url(given: str) -> str:
    """The document's URL for `discovery`, which may be the issuer's own URL.

    `https://idp.example/realms/a` becomes `https://idp.example/realms/a/.well-known/openid-configuration` (Discovery
    §4). A path with `/.well-known/` is complete: RFC 8414 §3.1 has it before the issuer's path.
    """
    parts = urlsplit(given)
    path = parts.path if _WELL_KNOWN in parts.path else f"{parts.path.rstrip('/')}{_OPENID_CONFIGURATION}"
    return parts._replace(path=path, fragment="").geturl()


def openid_configuration(name: str, data: bytes, issuer: str) -> OpenIdConfiguration:
    """The configuration of this issuer. ``name`` is the shown URL.

    Raises MaterialError, also if the document names another issuer: it must be equal to the letter (Discovery §4.3).
    """
    try:
        document = read_object(text_of(name, data))
    except MalformedToken as error:
        raise MaterialError(name, f"is not an OpenID configuration: {error}") from None
    named, url = document.get("issuer"), document.get("jwks_uri")
    if not isinstance(named, str) or not isinstance(url, str):
        text = "is not an OpenID configuration: `issuer` and `jwks_uri` must be text"
        raise MaterialError(name, f"{text}{_other_document(document)}")
    if named != issuer:
        text = f"is the configuration of {_quoted(named)}, and `issuer` is {_quoted(issuer)}"
        raise MaterialError(name, f"{text}: they must be equal to the letter{_difference(named, issuer)}")
    try:
        check_key_set_url(url)
    except ValueError as error:
        raise MaterialError(name, f"its `jwks_uri` cannot be used: {error}") from None
    algorithms = document.get("id_token_signing_alg_values_supported")
    found = algorithms if isinstance(algorithms, list) else []
    return OpenIdConfiguration(url, tuple(each for each in found if isinstance(each, str)))


def _quoted(text: str) -> str:
    return f'"{printable(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")}"'


def _other_document(document: Mapping[str, Any]) -> str:
    return "; it is a set of keys, which `jwks` names" if "keys" in document else ""


def _difference(named: str, issuer: str) -> str:
    if named.rstrip("/") == issuer.rstrip("/"):
        return "; one ends in a slash"
    # Microsoft Entra's `common`, `organizations` and `consumers`.
    return "; it is for any tenant: name the URL of yours" if "{" in named else ""
