"""config/tlsproxy.yaml names every key of the model, and nothing else, with the values that are its defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import PydanticUndefined
from support.rows import rows

from tlsproxy.config.callers import CaConstraint, JwtIssuer, Match, NamedKey, Section
from tlsproxy.config.descriptions import descriptions
from tlsproxy.config.grants import CollectionGrant, Operations
from tlsproxy.config.limits import MassCut, PerAddress, Quota, RoleLimits
from tlsproxy.config.loader import parse
from tlsproxy.config.model import Config, IdentityRule, ListenerConfig, Role
from tlsproxy.config.qdrant_keys import KEYS, SECTIONS
from tlsproxy.config.reference import as_markdown, as_yaml
from tlsproxy.config.shape import sections

REFERENCE = Path(__file__).parents[2] / "config" / "tlsproxy.yaml"
EXAMPLES = {("tls", "cert"), ("tls", "key"), ("tls", "ca_cert"), ("bundle", "url"), ("bundle", "public_key")}
"""Keys without a default that one could use as it is."""


@cache
def tree() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(REFERENCE.read_text())
    return content


def test_the_documents_are_those_of_the_model() -> None:
    """After a change of the model: `make reference`."""
    assert REFERENCE.read_text() == as_yaml()
    assert (REFERENCE.parents[1] / "docs" / "configuration.md").read_text() == as_markdown()


def test_the_tables_have_every_key_with_its_default() -> None:
    text = as_markdown()
    for name, model in sections():
        table = text.partition(f"\n## `{name}`\n")[2].partition("\n#")[0]
        rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (?:`([^`]*)`|required) \| .* \|$", table, re.MULTILINE))
        assert rows.keys() == model.model_fields.keys()
        for key, shown in rows.items():
            if shown and shown != "{}":
                assert yaml.safe_load(shown) == as_written(model.model_fields[key].default)


def as_written(default: object) -> object:
    if isinstance(default, tuple):
        return list(default)
    return str(default) if isinstance(default, Path) else default


def test_it_loads() -> None:
    loaded = parse(REFERENCE.read_bytes(), REFERENCE, {})
    assert loaded.unused == ()
    assert loaded.warnings == ()


def test_it_names_every_section_and_key() -> None:
    shown = tree()
    assert shown.keys() == Config.model_fields.keys()
    for name, model in sections():
        assert shown[name].keys() == model.model_fields.keys(), name
    assert shown["identities"][0].keys() == IdentityRule.model_fields.keys()
    assert shown["identities"][0]["match"].keys() == Match.model_fields.keys()
    assert shown["listeners"][0].keys() == ListenerConfig.model_fields.keys()
    assert shown["keys"][0].keys() == NamedKey.model_fields.keys()
    assert shown["jwt_issuers"][0].keys() == JwtIssuer.model_fields.keys()
    assert shown["roles"]["admin"].keys() == Role.model_fields.keys()
    assert shown["roles"]["admin"]["limits"].keys() == RoleLimits.model_fields.keys()
    assert shown["roles"]["ingest"]["access"][0].keys() == CollectionGrant.model_fields.keys()


def defaults() -> Iterator[tuple[str, str, object]]:
    for section, model in sections():
        for key, field in model.model_fields.items():
            if (section, key) not in EXAMPLES:
                yield section, key, field.default


@rows("section, key, default", list(defaults()))
def test_it_shows_the_default(section: str, key: str, default: object) -> None:
    assert default is not PydanticUndefined
    shown = tree()[section][key]
    if isinstance(default, Path):
        assert Path(shown) == default
    elif isinstance(default, Section):
        assert shown == default.model_dump()
    else:
        assert (tuple(shown) if isinstance(shown, list) else shown) == default
        assert isinstance(shown, list) or type(shown) is type(default)


def test_every_key_has_a_description() -> None:
    models: list[type[Section]] = [ListenerConfig, Role, CollectionGrant, IdentityRule, Match, NamedKey, JwtIssuer]
    models += [CaConstraint, Operations]
    models += [MassCut, PerAddress, Quota, RoleLimits]
    models += [model for _, model in sections()]
    for model in models:
        assert descriptions(model).keys() == model.model_fields.keys(), model.__name__


def test_no_key_is_both_ours_and_unused() -> None:
    assert SECTIONS.isdisjoint(Config.model_fields)
    for name, model in sections():
        assert KEYS.get(name, frozenset()).isdisjoint(model.model_fields)
