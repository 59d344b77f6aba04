"""Whatever YAML takes a secret for, no problem of a configuration repeats it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr
from support.rows import rows

from tlsproxy.config.endpoints import shown_url
from tlsproxy.config.loader import parse
from tlsproxy.config.problems import ConfigError
from tlsproxy.config.shape import sections

MARK = "zQ9xW7vKtB"
FILE = Path("/etc/tlsproxy/tlsproxy.yaml")
ROOT = "tls: {cert: a, key: b, ca_cert: c}\n"
KEYS = [
    (section, key)
    for section, model in sections()
    for key, field in model.model_fields.items()
    if SecretStr in getattr(field.annotation, "__args__", ())
]
LAYOUTS = [
    "{section}:\n  {key}: {secret}\n",
    "{section}:\n  {key}: {secret}\n  host: x\n",
    "{section}:\n  {key}:\n    {secret}\n",
    "{section}:\n  {key}:\n  {secret}\n",
    "{section}:\n  {key}:{secret}\n",
    "{section}: {{{key}: {secret}}}\n",
    "{section}: {{{key}:{secret}}}\n",
    "{section}: {{{key}, {secret}}}\n",
    "{section}: {{{key}: {secret}, {key}: {secret}}}\n",
    "{section}: {secret}\n",
    "{section}:\n{key}: {secret}\n",
    "{section}:\n  {key}: [{secret}]\n",
    "{section}:\n  {key}: {{{secret}: 1, {secret}: 2}}\n",
    "{section}:\n  {key}: !!{secret} x\n  x: !{secret} {{a: 1}}\n",
    "{section}:\n  {key}: {{x: !{secret} y, {secret}: !y {{a: 1}}}}\n",
    '{section}:\n  {key}: "{secret}\n',
    "keys:\n  - name: a\n    sha256: {secret}\n    role: r\n",
    "keys:\n  - {{name: a, {secret}: b}}\n",
    "jwt_issuers:\n  - jwks: https://host/keys?{secret}\n",
    "jwt_issuers:\n  - jwks: https:/host/keys?{secret}\n",
    "jwt_issuers:\n  - discovery: https:/host/?{secret}\n",
    "upstream:\n  rest: http://user:{secret}@127.0.0.1:6333\n",
]
BEFORE = [
    "",
    *"*&!%@`|>{[?-:,#'\"=~<",
    "!!",
    "!<",
    "- ",
    "? ",
    "!!bool ",
    "!!int ",
    "!!float ",
    "&a &",
    "*a ",
    "\\x",
    "%TAG !",
]
AFTER = [
    "",
    *"}],:#'\"|>&*!%@`=",
    ": x",
    " #x",
    "'x",
    '"x',
    "\n",
    "\t",
    "\\",
    "\\UFFFFFFFF",
    "!x",
    "\n---\n",
    "\x07",
    "é",
]


def told(text: str, environ: Mapping[str, str]) -> str:
    try:
        loaded = parse(text.encode(), FILE, environ)
    except ConfigError as error:
        return "".join(traceback.format_exception(error))
    return "\n".join(map(str, (*loaded.unused, *loaded.warnings)))


@rows("layout", LAYOUTS)
def test_no_problem_repeats_a_secret_whatever_yaml_takes_it_for(layout: str) -> None:
    for before in BEFORE:
        for after in ("", ": x"):
            text = ROOT + layout.format(section="service", key="api_key", secret=before + MARK + after)
            assert MARK.lower() not in told(text, {}).lower(), text


@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(KEYS),
    st.lists(st.sampled_from(BEFORE), max_size=3).map("".join),
    st.lists(st.sampled_from(AFTER), max_size=3).map("".join),
    st.sampled_from(["QDRANT__SERVICE__API_KEY", "QDRANT__TLS__CRL", "QDRANT__LIMITS__CONNECTIONS", "QDRANT__WORKERS"]),
)
@example(LAYOUTS[0], KEYS[0], "*", "", "QDRANT__TLS__CRL")
@example(LAYOUTS[6], KEYS[0], "", "", "QDRANT__TLS__CRL")
def test_nor_does_one_of_a_secret_that_is_mangled(
    layout: str, key: tuple[str, str], before: str, after: str, variable: str
) -> None:
    secret = before + MARK + after
    text = ROOT + layout.format(section=key[0], key=key[1], secret=secret)
    assert MARK.lower() not in told(text, {}).lower()
    assert MARK.lower() not in told(ROOT, {variable: secret}).lower()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://id.example.org/keys?token=s3cret", "https://id.example.org/keys"),
        ("https://u:s3cret@id.example.org:8443/keys#s3cret", "https://id.example.org:8443/keys"),
        ("http://[::1]:1/a/b", "http://[::1]:1/a/b"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown
