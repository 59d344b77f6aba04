"""A role's `filter`: templates of payload conditions, filled in from the certificate of whoever has the role.

A template is a text with at most one ``{field}``: two of them side by side could spell one tenant's value with parts of
another's. A field that the certificate does not have, or has twice, gives no condition, and the role then no rights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tlsproxy.authz.access import Condition
from tlsproxy.authz.identity import Identity

_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PARTS = re.compile(r"([^{}]*)(?:\{([a-z]+)\}([^{}]*))?")

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
    """``field`` is empty where the text is the same for everybody."""

    key: str
    before: str
    field: str
    after: str

    def filled(self, identity: Identity) -> Condition | None:
        """None where the certificate does not have exactly one value of the field."""
        if not self.field:
            return Condition(self.key, self.before)
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
    if field and field not in FIELDS:
        raise ValueError(f"{{{field}}} is none of {', '.join(FIELDS)}")
    return Template(key, before, field, after)
