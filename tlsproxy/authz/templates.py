"""A role's `filter`: templates of payload conditions, filled in from the caller's certificate or token.

A template is a text with at most one ``{field}``: with two, `{o}{ou}` would be `abc` for `a` and `bc` as for `ab` and
`c`, another tenant. If the certificate has no or several values of the field, or the token has no non-empty string
claim for ``{claim:NAME}``, the template cannot be filled in, and the role gives no rights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.authz.access import Condition
from tlsproxy.authz.claim_paths import claim_at
from tlsproxy.authz.identity import Identity

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARTS = re.compile(r"([^{}]*)(?:\{([a-z]+|claim:[A-Za-z0-9_.:/-]{1,128})\}([^{}]*))?")
_CLAIM: Final = "claim:"

FIELDS: Final[dict[str, Callable[[Identity], tuple[str, ...]]]] = {
    "cn": lambda identity: (identity.common_name,) if identity.common_name else (),
    "o": lambda identity: identity.organizations,
    "ou": lambda identity: identity.organizational_units,
    "uri": lambda identity: identity.uris,
    "dns": lambda identity: identity.dns_names,
    "email": lambda identity: identity.emails,
}


@dataclass(frozen=True, slots=True)
class Template:
    """``field`` is one of ``FIELDS`` or ``claim:NAME``, and empty where the text is the same for all callers."""

    key: str
    before: str
    field: str
    after: str

    @property
    def of_claim(self) -> bool:
        return self.field.startswith(_CLAIM)

    @property
    def of_certificate(self) -> bool:
        return bool(self.field) and not self.of_claim

    @property
    def needs(self) -> str:
        """The callers that a role with this template is for, if it has a field."""
        if self.of_claim:
            return f"callers whose token has a text as its claim {self.field.removeprefix(_CLAIM)}"
        return f"certificates with exactly one {self.field}"

    def filled(self, identity: Identity | None, claims: Mapping[str, Any]) -> Condition | None:
        """The condition; None without exactly one value of the field. ``claims``: those of a verified token."""
        if not self.field:
            return Condition(self.key, self.before)
        if self.of_claim:
            value = claim_at(claims, self.field.removeprefix(_CLAIM))
            text = value if isinstance(value, str) else ""
            return Condition(self.key, f"{self.before}{text}{self.after}") if text else None
        if identity is None or self.field in identity.doubted:
            return None
        values = FIELDS[self.field](identity)
        return Condition(self.key, f"{self.before}{values[0]}{self.after}") if len(values) == 1 else None


def parse_template(key: str, text: str) -> Template:
    """Raises ValueError."""
    if _KEY.fullmatch(key) is None:
        raise ValueError("a payload key of letters, digits, '_' and '-' is expected: a path could be read in two ways")
    match = _PARTS.fullmatch(text)
    if match is None or not text:
        raise ValueError('a text with at most one field is expected, for example "{cn}" or "team-{ou}"')
    before, field, after = match.groups(default="")
    if field and field not in FIELDS and not field.startswith(_CLAIM):
        raise ValueError(f"{{{field}}} is none of {', '.join(FIELDS)}, claim:NAME")
    return Template(key, before, field, after)
