"""A role's `filter`: templates of payload conditions, filled in from the caller's certificate or token.

A template is a number, a boolean, or a text with at most one ``{field}``: with two, `{o}{ou}` would be `abc` for `a`
and `bc` as for `ab` and `c`, another tenant. If the certificate has no or several values of the field, or the token has
no non-empty claim for ``{claim:NAME}``, the template cannot be filled in, and the role gives no rights. A claim that is
a list gives a condition that any of its values meets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tlsproxy.authz.access import Condition, Value
from tlsproxy.authz.claim_paths import values_at
from tlsproxy.authz.identity import Identity

MOST_VALUES: Final = 1000
"""Values of one claim; with more it fills no template."""
MOST_KEYS: Final = 8
"""Keys in one path."""
LARGEST: Final = 1 << 63
"""Qdrant compares integers of 64 bits with a sign."""

_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,64}}(?:(?:\[\])?\.[A-Za-z0-9_-]{{1,64}}){{0,{MOST_KEYS - 1}}}")
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
    """``field`` is one of ``FIELDS`` or ``claim:NAME``, between the texts ``before`` and ``after``. ``fixed`` is the
    condition where it is the same for all callers, and there is no field.
    """

    key: str
    before: str
    field: str
    after: str
    fixed: Condition | None = None

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
            return f"callers whose token has a value as its claim {self.field.removeprefix(_CLAIM)}"
        return f"certificates with exactly one {self.field}"

    def filled(self, identity: Identity | None, claims: Mapping[str, Any]) -> Condition | None:
        """The condition; None without exactly one value of the field. ``claims``: those of a verified token."""
        if self.fixed is not None:
            return self.fixed
        if self.of_claim:
            values = _values_at(claims, self.field.removeprefix(_CLAIM))
            if self.before or self.after:
                texts = (f"{self.before}{value}{self.after}" for value in values if not isinstance(value, bool))
                values = tuple(dict.fromkeys(texts))
            return Condition(self.key, values) if values else None
        if identity is None or self.field in identity.doubted:
            return None
        found = FIELDS[self.field](identity)
        return Condition(self.key, (f"{self.before}{found[0]}{self.after}",)) if len(found) == 1 else None


def _values_at(claims: Mapping[str, Any], path: str) -> tuple[Value, ...]:
    """Values of a claim that a condition can name; none where there are too many."""
    values = tuple(value for value in values_at(claims, path) if _is_comparable(value))
    return values if len(values) <= MOST_VALUES else ()


def _is_comparable(value: Value) -> bool:
    return isinstance(value, str) or -LARGEST <= value < LARGEST


def parse_template(key: str, value: Value) -> Template:
    """Raises ValueError."""
    check_key(key)
    if not isinstance(value, str):
        if not _is_comparable(value):
            raise ValueError("an integer of at most 64 bits is expected: Qdrant compares no others")
        return Template(key, "", "", "", Condition(key, (value,)))
    match = _PARTS.fullmatch(value)
    if match is None or not value:
        raise ValueError('a text with at most one field is expected, for example "{cn}" or "team-{ou}"')
    before, field, after = match.groups(default="")
    if not field:
        return Template(key, "", "", "", Condition(key, (before,)))
    if field not in FIELDS and not field.startswith(_CLAIM):
        raise ValueError(f"{{{field}}} is none of {', '.join(FIELDS)}, claim:NAME")
    return Template(key, before, field, after)


def check_key(key: str) -> None:
    """Raises ValueError for anything but a path such as `a`, `a.b` or `a[].b`."""
    if _KEY.fullmatch(key) is None:
        raise ValueError(
            "a payload key of letters, digits, '_' and '-' is expected, or a path of them: \"a.b\", or \"a[].b\" where "
            "the payload has a list of objects"
        )
