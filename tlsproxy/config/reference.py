"""The configuration reference, generated from the model: a commented YAML file, and Markdown tables.

A description stands once, under its field in the model; the JSON Schema, the YAML and the tables repeat it. Keys that
have no usable default, and lists, get their values from :data:`EXAMPLES`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import yaml
from pydantic import SecretStr

from tlsproxy.config.callers import Section
from tlsproxy.config.descriptions import descriptions
from tlsproxy.config.model import Config
from tlsproxy.config.shape import NESTED, model_in

_WIDTH: Final = 118
_NO_LIMIT: Final = 10_000_000
"""Bounds of this size say nothing to a reader."""

EXAMPLES: Final[Mapping[str, Any]] = {
    "tls": {"cert": "../certs/server.pem", "key": "../certs/server.key", "ca_cert": "../certs/ca.pem"},
    "bundle": {"url": "https://config.example.org/gateways.bundle", "public_key": "../certs/bundle.pub"},
    "listeners": [
        {"port": 8443, "protocols": ["rest", "grpc"]},
        {"port": 8435, "mode": "tcp", "upstream": "127.0.0.1:16335", "allow": ["admin"]},
    ],
    "roles": {
        "admin": {"access": "m"},
        "search": {"access": "r", "limits": {"requests_per_second": 500, "max_body_mb": 4}},
        "ingest": {
            "access": [
                {"collection": "docs", "access": "rw", "operations": {"deny": ["delete_points"]}},
                {"collection": "docs.*", "access": "m"},
            ]
        },
        "tenant": {"access": [{"collection": "shared", "access": "rw"}], "filter": {"tenant": "{ou}"}},
        "analyst": {
            "access": [{"collection": "people", "access": "r"}],
            "queries": {"max_limit": 100, "vectors": "hide", "payload": {"hide": ["salary", "contact.email"]}},
        },
    },
    "identities": [
        {"name": "platform", "match": {"cn": "admin-*", "ou": "platform"}, "role": "admin"},
        {"name": "ingest-jobs", "match": {"cn": "ingest-*"}, "role": "ingest"},
        {"name": "search-service", "match": {"uri": "spiffe://example.org/search/*"}, "role": "search"},
        {"name": "tenants", "match": {"cn": "tenant-*"}, "role": "tenant"},
        {"name": "analysts", "match": {"ou": "analysts"}, "role": "analyst"},
    ],
    "keys": [
        {
            "name": "nightly-import",
            "sha256": "5d8c0c2a3fb94e0f6c3f0bb1a6d1b8e7f2a94c0de1375b26c8f0a4937d2e6b15",
            "role": "ingest",
            "expires": "2030-01-01T00:00:00Z",
            "require_certificate": {"cn": "ingest-*"},
        }
    ],
    "jwt_issuers": [
        {
            "name": "login",
            "issuer": "https://login.example.org/",
            "audience": "qdrant",
            "algorithm": "ES256",
            "pem": "../certs/login.pub.pem",
        }
    ],
    "revoked": [{"subject": "CN=contractor-7", "until": "2030-01-01T00:00:00Z", "reason": "laptop lost"}],
}

_YAML_HEAD: Final = """\
# The reference of tlsproxy's configuration: every key, with its default or an example.
# Generated from tlsproxy/config by `make reference`; docs/configuration.md has the same as tables.
#
# `service`, `tls` and `audit` use the keys of Qdrant's own config.yaml; its other keys are accepted and listed by
# `tlsproxy check`, but not used. QDRANT__SECTION__KEY in the environment wins over this file, for example
# QDRANT__SERVICE__HTTP_PORT=6333 or QDRANT__UPSTREAM__REST=http://127.0.0.1:16333; the sections
# `listeners`, `roles`, `identities`, `keys`, `jwt_issuers`, `revoked` and `include` are set in files only.
#
# Relative paths are relative to their file. A path may be `credential:NAME`: systemd's LoadCredential=NAME:… then names
# the file. Times are seconds. An edited file is applied while tlsproxy runs, except where it says "Needs a restart"."""

_MARKDOWN_HEAD: Final = """\
# Configuration reference

<!-- Generated from the model in tlsproxy/config by `make reference`: edit the descriptions there. -->

Every key of `tlsproxy.yaml`. [config/tlsproxy.yaml](../config/tlsproxy.yaml) is the same as a commented file; `tlsproxy
config reference` prints it for the installed version, `tlsproxy config schema` a JSON Schema for editors.

- **Qdrant's keys keep their names.** `service`, `tls` and `audit` use the keys of Qdrant's own `config.yaml`, so a
  Qdrant configuration is a good start. Keys of Qdrant that tlsproxy does not use are accepted, and `tlsproxy check`
  lists them. Any other unknown key is an error.
- **Environment.** `QDRANT__SECTION__KEY` wins over the file: `QDRANT__SERVICE__HTTP_PORT=6333`. The sections
  `listeners`, `roles`, `identities`, `keys`, `jwt_issuers`, `revoked` and `include` are set in files only.
- **Paths** are relative to the file that has them. A path may be `credential:NAME`: the file of systemd's
  `LoadCredential=NAME:…`.
- **Units.** Times are seconds, sizes bytes unless the key ends in `_mb` (MiB).
- **Reload.** An edited file is applied while tlsproxy runs, on open connections too, except where it says "Needs a
  restart". `tlsproxy check` finds all mistakes at once, as `file:line:column`, without repeating values."""


def as_yaml() -> str:
    """The whole configuration as a commented YAML file."""
    return commented(Config, _YAML_HEAD, EXAMPLES)


def commented(root: type[Section], head: str, examples: Mapping[str, Any]) -> str:
    """A commented YAML file with every key of the model ``root``."""
    return "\n".join([head, *_sections(root, examples)]) + "\n"


def as_markdown() -> str:
    """The whole configuration as Markdown tables, one for each section and nested mapping."""
    return "\n".join([_MARKDOWN_HEAD, *_tables()]) + "\n"


def _sections(root: type[Section], examples: Mapping[str, Any]) -> Iterator[str]:
    seen: set[type[Section]] = set()
    for name, field in root.model_fields.items():
        yield ""
        yield from _comment(_description(root, name), 0)
        model = model_in(field.annotation)
        example = examples.get(name)
        if model is None:
            yield f"{name}: {_flow(_plain(field.default))}"
        elif name not in NESTED:
            yield f"{name}:"
            yield from _mapping(model, example or {}, 2, seen)
        elif isinstance(example, dict):
            yield f"{name}:"
            (first, value), *rest = example.items()
            yield f"  {first}:"
            yield from _mapping(model, value, 4, seen)
            yield from (f"  {key}: {_flow(value)}" for key, value in rest)
        else:
            yield f"{name}:"
            yield from _entry(model, examples[name][0], seen)
            yield from (f"  - {_flow(value)}" for value in examples[name][1:])


def _entry(model: type[Section], values: Mapping[str, Any], seen: set[type[Section]]) -> Iterator[str]:
    """The first item of a list, with every key."""
    lines = list(_mapping(model, values, 4, seen))
    first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
    yield from (f"  {line.lstrip()}" for line in lines[:first])
    yield f"  - {lines[first].lstrip()}"
    yield from lines[first + 1 :]


def _mapping(model: type[Section], values: Mapping[str, Any], indent: int, seen: set[type[Section]]) -> Iterator[str]:
    """A mapping with every key. A nested model is spelt out where it comes first, and in one line from then on."""
    seen.add(model)
    for key, field in model.model_fields.items():
        yield from _comment(_description(model, key), indent)
        value = values.get(key, _plain(field.default))
        nested = model_in(field.annotation)
        if nested is None or nested in seen or not isinstance(value, dict):
            yield f"{' ' * indent}{key}: {_flow(value)}"
        else:
            yield f"{' ' * indent}{key}:"
            yield from _mapping(nested, value, indent + 2, seen)


def _comment(text: str, indent: int) -> Iterator[str]:
    lead = " " * indent + "# "
    for line in wrap(text, _WIDTH - len(lead), break_long_words=False, break_on_hyphens=False):
        yield lead + line


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    """A default as YAML and JSON have it."""
    match value:
        case Section():
            return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
        case Path():
            return str(value)
        case SecretStr():
            raise TypeError("a secret has no default")
        case tuple():
            return list(value)
        case _:
            return value


def _description(model: type[Section], key: str) -> str:
    nested = model_in(model.model_fields[key].annotation)
    return " ".join((descriptions(model).get(key) or (nested and nested.__doc__) or "").split())


def _tables() -> Iterator[str]:
    schema = Config.model_json_schema()
    yield from ["", "## Top level", ""]
    yield from _table(schema, [name for name in schema["properties"] if _reference(schema["properties"][name]) is None])
    models = _models(schema)
    for model, paths in models.items():
        depth = "##" if "." not in paths[0] else "###"
        yield from ["", f"{depth} {', '.join(f'`{path}`' for path in paths)}", ""]
        section = schema["properties"].get(paths[0].removesuffix("[]").removesuffix(".NAME"), {})
        yield from [_cell(section.get("description") or schema["$defs"][model]["description"]), ""]
        yield from _table(schema["$defs"][model])


def _models(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    """The models, each with the paths at which it stands, in the order of the file."""
    paths: dict[str, list[str]] = defaultdict(list)
    waiting: list[tuple[str, Any]] = list(schema["properties"].items())
    while waiting:
        path, value = waiting.pop(0)
        if model := _reference(value):
            path += {"array": "[]", "object": ".NAME"}.get(value.get("type", ""), "")
            if any(option.get("type") == "array" for option in value.get("anyOf", value.get("oneOf", ()))):
                path += "[]"
            if not paths[model]:
                inner = schema["$defs"][model]["properties"].items()
                waiting[:0] = [(f"{path}.{key}", each) for key, each in inner if _reference(each)]
            paths[model].append(path)
    return paths


def _reference(value: Any) -> str | None:
    """The name of the model that a property's schema refers to."""
    found = re.search(r'"#/\$defs/(\w+)"', json.dumps(value))
    return found and found.group(1)


def _table(schema: Mapping[str, Any], only: list[str] | None = None) -> Iterator[str]:
    yield "| key | values | default | |"
    yield "|---|---|---|---|"
    for key, value in schema["properties"].items():
        if only is None or key in only:
            default = "required" if key in schema.get("required", ()) else f"`{_default(value)}`"
            yield f"| `{key}` | {_values(value)} | {default} | {_cell(value.get('description', ''))} |"


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if _reference(value) and isinstance(default, dict):
        return "{}"
    return _flow(default)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _values(value: Mapping[str, Any]) -> str:
    """The values that a schema allows, for a reader."""
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(map(_values, options)))
    if "const" in value:
        return f"`{value['const'] if isinstance(value['const'], str) else _flow(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "$ref" in value:
        return "mapping"
    match value["type"]:
        case "array":
            return f"list of {_values(value['items'])}".replace("string", "strings").replace("mapping", "mappings")
        case "object":
            return "mapping"
        case "boolean":
            return "`true`, `false`"
        case "null":
            return "`null`"
        case "integer" | "number" as kind:
            return f"{kind}{_bounds(value)}"
        case kind:
            formats = {"path": "path", "password": "secret", "date-time": "time"}
            return formats.get(value.get("format", ""), str(kind))


def _bounds(value: Mapping[str, Any]) -> str:
    low, above = value.get("minimum"), value.get("exclusiveMinimum")
    high = value.get("maximum", _NO_LIMIT)
    least = f"> {above}" if above is not None else f"≥ {low}" if low is not None else ""
    most = f"≤ {high}" if high < _NO_LIMIT else ""
    return f" ({', '.join(filter(None, (least, most)))})" if least or most else ""
