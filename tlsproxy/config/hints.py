"""The right form of what is often written in another one: rights as in Qdrant's tokens, keys at another level.

A hint shows example values only, and of the file's own nothing but words such as `rw`: the rest may be a secret.
"""

from __future__ import annotations

from typing import Any, Final

from tlsproxy.authz.access import MODES
from tlsproxy.config.callers import Match
from tlsproxy.config.positions import Path
from tlsproxy.config.problems import nearest

_FIELDS: Final = frozenset(Match.model_fields)
_CLAIMS: Final = frozenset({"act", "aud", "azp", "groups", "iss", "jti", "roles", "scope", "sub"})
_GRANTS: Final = frozenset({"collection", "collections", "grants"})
_RIGHTS: Final = frozenset({"access", *_GRANTS})


def form_hint(path: Path, value: Any) -> str:
    """The end of a text on a value of a wrong type or word, or a missing one: `: {access: r}`; "" without a hint."""
    match path:
        case ("roles", _, "filter" | "or_public"):
            return ': {tenant: "{cn}"}'
        case ("roles", _, "filter" | "or_public", _):
            return _value_hint(value)
        case ("roles", *_):
            return _role_hint(path, value)
        case ("identities",):
            return ': [{name: jobs, match: {cn: "ingest-*"}, role: ingest}]'
        case ("identities", int(), "match"):
            return ': {cn: "ingest-*"}'
        case ("identities", int(), "match", "claims", *more):
            return _claim_hint(value) if more else ': {groups: sre, sub: "alice@*"}'
        case _:
            return ""


def _value_hint(value: Any) -> str:
    if isinstance(value, list):
        return "; a claim that is a list gives several values: {claim:groups}"
    if isinstance(value, dict):
        return '; a key below a key has a path: {"meta.tenant": "{cn}"}'
    return ", or an integer or a boolean: Qdrant compares no others"


def _claim_hint(value: Any) -> str:
    if isinstance(value, dict):
        return '; a claim in a claim is named by its path: {"realm_access.roles": ops}'
    return ", or an integer or a boolean; one of a token's values must be this one: for several, a rule each"


def _role_hint(path: Path, value: Any) -> str:
    match path:
        case ("roles",):
            return ": {reader: {access: r}}"
        case ("roles", _):
            return f": {{access: r}}, or {{access: {_grants(value)}}}"
        case ("roles", _, "access"):
            return f'; for single collections a list: {_grants(value)} (all of them: "**")'
        case ("roles", _, "access", int()):
            return f": {_grant(value)}"
        case ("roles", _, "access", int(), "collection"):
            return f"; one name or glob for each entry: {_grant(value)}"
        case ("roles", *_, "operations"):
            return ": {allow: [query_batch, scroll]}, or {deny: [delete_points]}"
        case ("roles", *_, "operations", "allow" | "deny"):
            return ": [query_batch, scroll]"
        case _:
            return ""


def place_hint(path: Path) -> str:
    """The end of a text on an unknown key that belongs elsewhere; "" without a hint."""
    match path:
        case ("roles", _, "payload") | ("roles", _, "access", int(), "payload"):
            return ': a role is confined to points by its `filter`: {tenant: "{cn}"}'
        case ("roles", _, str(key)) if key in _GRANTS:
            return f": collections stand under `access`: {_grants(None)}"
        case ("roles", _, "allow" | "deny" as key) | ("roles", _, "access", int(), "allow" | "deny" as key):
            return f": it stands under `operations`: {{{key}: [delete_points]}}"
        case ("roles", _, str(key)) if key in _FIELDS or key in {"match", "identities"}:
            return ": certificates get their role under `identities`"
        case ("identities", int(), "match", str(key)) if key in _CLAIMS or not nearest(key, _FIELDS):
            return ": claims of a token stand under `claims`: {groups: sre}"
        case ("identities", int(), str(key)) if key in _FIELDS:
            return ': fields of a certificate stand under `match`: {cn: "ingest-*"}'
        case (_, int(), str(key)) | (str(key),) if key in _RIGHTS:
            return f": rights stand under `roles`, by the role's name: {{reader: {{access: {_grants(None)}}}}}"
        case _:
            return ""


def _grants(value: Any) -> str:
    return f"[{_grant(value)}]"


def _grant(value: Any) -> str:
    mode = value if isinstance(value, str) and value in MODES else "rw"
    return f"{{collection: docs, access: {mode}}}"
