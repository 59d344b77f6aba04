"""Each setting counts at its publication, for open connections too, or is named as one that needs a restart."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Final, Union, get_args, get_origin

from support.rows import rows

from tlsproxy.config.callers import Section
from tlsproxy.config.model import Config, ListenerConfig
from tlsproxy.snapshot.generation import restart_needed

RESTART: Final = {
    "service": {"host", "http_port", "grpc_port"},
    "listeners": {"host", "port", "unix", "unix_mode", "mode", "protocols"},
    "audit": {
        "enabled",
        "dir",
        "rotation",
        "max_log_files",
        "group",
        "on_full",
        "queue_size",
        "flush_interval",
    },
    "admin": {"listen"},
    "health": {"listen", "tls"},
    "logger": {"format", "color", "output"},
    "shared": {"url", "prefix", "gateways", "timeout"},
    "": {"workers"},
}
WHOLE: Final = {"logger"}
"""Sections of which all settings need a restart: they say so once."""
KEPT: Final = {"limits": {"max_streams", "max_head_size", "inspection_timeout"}}
"""Open connections, or waits that go on, keep theirs."""
FIXED: Final = {"service": {"enable_tls"}, "audit": {"trust_forwarded_headers"}}
"""There is one value."""
AT_ONCE: Final = {
    "service": {
        "verify_https_client_certificate",
        "api_key",
        "api_key_file",
        "alt_api_key",
        "alt_api_key_file",
        "read_only_api_key",
        "read_only_api_key_file",
        "jwt_rbac",
        "jwt_full_access_without_claim",
        "jwt_require_exp",
        "unmapped_certificate",
        "enable_cors",
        "allowed_origins",
        "max_request_size_mb",
        "proxy_protocol",
    },
    "listeners": {"upstream", "upstream_tls", "allow", "proxy_protocol", "send_proxy_protocol"},
    "audit": {"log_api", "probes"},
    "health": {"metrics", "probe_networks", "proxy_protocol"},
    "shared": {"user", "password_file", "ca_cert", "cert", "key"},
    "": {"log_level", "include"},
}
"""For open connections and those that come; and every setting of these sections that is named nowhere above."""
SECTIONS_AT_ONCE: Final = {
    "tls",
    "upstream",
    "limits",
    "roles",
    "identities",
    "keys",
    "jwt_issuers",
    "revoked",
    "bundle",
}

SCHEMA: Final = Config.model_json_schema()
CONFIG: Final = Config.model_validate({"tls": {"cert": "/c", "key": "/k"}, "listeners": [{"port": 1}]})


def model_of(annotation: Any) -> type[Section] | None:
    """The model of a section, or of the entries of one."""
    if get_origin(annotation) in {tuple, dict, Union, types.UnionType}:
        return next(filter(None, map(model_of, get_args(annotation))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def settings() -> Iterator[tuple[str, str]]:
    """(section, name), of settings that stand alone with an empty section."""
    for section, field in Config.model_fields.items():
        model = model_of(field.annotation)
        if model is None:
            yield "", section
        else:
            yield from ((section, name) for name in model.model_fields)


def groups(section: str, name: str) -> list[str]:
    named = {"restart": RESTART, "kept": KEPT, "fixed": FIXED, "at once": AT_ONCE}
    found = [group for group, table in named.items() if name in table.get(section, ())]
    return found or (["at once"] if section in SECTIONS_AT_ONCE else [])


def description(section: str, name: str) -> str:
    """As editors and the reference have it."""
    properties = SCHEMA["properties"]
    if section:
        model = model_of(Config.model_fields[section].annotation)
        assert model is not None
        properties = SCHEMA["$defs"][model.__name__]["properties"]
    return " ".join(str(properties[name].get("description", "")).split())


def changed(section: str, name: str) -> Config:
    other = object()
    if not section:
        return CONFIG.model_copy(update={name: other})
    value = getattr(CONFIG, section)
    if section == "listeners":
        entry = value[0].model_copy(update={name: [] if name == "protocols" else other})
        entry = entry.model_copy(update={name: ("grpc",)}) if name == "protocols" else entry
        return CONFIG.model_copy(update={section: (entry,)})
    if not isinstance(value, Section):
        return CONFIG.model_copy(update={section: other})
    return CONFIG.model_copy(update={section: value.model_copy(update={name: other})})


@rows("section, name", list(settings()))
def test_each_setting(section: str, name: str) -> None:
    (group,) = groups(section, name)
    needed = restart_needed(changed(section, name), CONFIG)
    text = description(section, name)
    if group == "restart":
        told = section if section in {"listeners", "logger"} else f"{section}.{name}".lstrip(".")
        assert needed == (told,)
        assert text.endswith("Needs a restart.") or section in WHOLE
    else:
        assert needed == ()
        assert "restart" not in text.lower()
        assert ("keeps" in text and "open" in text) == (group == "kept")
        assert text.startswith("Must be") == (group == "fixed")


def test_sections_of_which_all_settings_need_a_restart_say_so() -> None:
    for section in WHOLE:
        model = model_of(Config.model_fields[section].annotation)
        assert model is not None
        assert RESTART[section] == model.model_fields.keys()
        assert " ".join((model.__doc__ or "").split()).endswith("All need a restart.")


def test_the_tables_name_settings_that_exist() -> None:
    there = set(settings())
    for table in (RESTART, KEPT, FIXED, AT_ONCE):
        assert {(section, name) for section, names in table.items() for name in names} <= there
    assert Config.model_fields.keys() >= SECTIONS_AT_ONCE


def test_another_order_of_listeners_is_no_change() -> None:
    one, other = ListenerConfig(port=1, protocols=("rest", "grpc")), ListenerConfig(port=2, protocols=("rest",))
    before = CONFIG.model_copy(update={"listeners": (one, other)})
    after = CONFIG.model_copy(update={"listeners": (other, one.model_copy(update={"protocols": ("grpc", "rest")}))})
    assert restart_needed(after, before) == ()
