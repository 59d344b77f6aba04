"""Verification of client certificates in the handshake: the judge's verdict is the alert, errors have words."""

from __future__ import annotations

import contextlib
import ctypes
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from snapshot_site import CLIENT, ROOT, client_context, handshake, site
from support.certificates import certified

from tlsproxy.proxy.transport.tls import handshake_failure
from tlsproxy.tls import openssl, verification
from tlsproxy.tls.peer import client_of, peer_of, presented_by
from tlsproxy.tls.pki import Authority
from tlsproxy.tls.trust import REFUSALS
from tlsproxy.tls.verification import shake_hands
from tlsproxy.tls.verify_errors import VERIFY_ERRORS, described

if TYPE_CHECKING:
    from pathlib import Path

    from tlsproxy.tls.verification import Judge

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
ALERTS = {
    "certificate_revoked": "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "certificate_expired": "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "certificate_not_yet_valid": "SSLV3_ALERT_BAD_CERTIFICATE",
    "crl_expired": "TLSV1_ALERT_INTERNAL_ERROR",
    "crl_missing": "TLSV1_ALERT_INTERNAL_ERROR",
    "issuer_not_trusted": "TLSV1_ALERT_UNKNOWN_CA",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return next(iter(site(tmp_path_factory.mktemp("site")).build().contexts.values()))


def failed(server: ssl.SSLContext, client: ssl.SSLContext, judge: Judge) -> tuple[BaseException, ssl.SSLObject, str]:
    """The server's error, its side of the handshake, and the alert that the client was told."""
    upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
    answerer, caller = server.wrap_bio(upward, downward, server_side=True), client.wrap_bio(downward, upward)
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            caller.do_handshake()
        try:
            shake_hands(answerer, judge)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, ZeroDivisionError, KeyboardInterrupt) as error:
            with pytest.raises(ssl.SSLError, match="alert") as told:
                caller.read(1)
            return error, answerer, str(told.value.reason)
    raise AssertionError("the handshake did not fail")


def admit(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
    del verified, sent
    return ""


@pytest.mark.parametrize("version", VERSIONS)
def test_each_refusal_has_its_alert_and_names_the_certificate(
    server: ssl.SSLContext, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    assert ALERTS.keys() == REFUSALS.keys()
    client = client_context(CLIENT, tmp_path, version)
    for refusal, expected in ALERTS.items():
        error, answerer, told = failed(server, client, lambda *_, refusal=refusal: refusal)
        assert told == expected
        assert handshake_failure(error) == (refusal, REFUSALS[refusal])  # type: ignore[arg-type]
        presented = presented_by(answerer)
        assert presented is not None
        assert presented.serial == f"{CLIENT.serial:x}"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_judge_sees_what_the_finished_handshake_shows(
    server: ssl.SSLContext, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    middle = ROOT.intermediate("middle")
    client = client_context(middle.issue(common_name="below", client=True), tmp_path, version)
    seen = []

    def judge(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        seen.append((verified, sent))
        return ""

    answerer, _ = handshake(server, client, judge=judge)
    ((verified, sent),) = seen
    assert (len(verified), len(sent)) == (3, 2)
    assert client_of(verified, sent) is peer_of(answerer)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_the_judge_refuses_and_is_raised(
    server: ssl.SSLContext, tmp_path: Path, kind: type[BaseException]
) -> None:
    """Raised into C it would admit: the callback's result would be garbage."""

    def judge(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        raise kind(len(verified) + len(sent))

    error, _, told = failed(server, client_context(CLIENT, tmp_path), judge)
    assert (type(error), told) == (kind, "TLSV1_ALERT_INTERNAL_ERROR")


def test_whom_openssl_refuses_the_judge_is_not_asked_about(server: ssl.SSLContext, tmp_path: Path) -> None:
    def judge(verified: tuple[bytes, ...], sent: tuple[bytes, ...]) -> str:
        raise AssertionError((verified, sent))

    stranger = Authority.create("test root").issue(common_name="alice", client=True)
    error, answerer, told = failed(server, client_context(stranger, tmp_path), judge)
    assert handshake_failure(error)[0] == "unknown_ca"  # type: ignore[arg-type]
    assert told == "TLSV1_ALERT_UNKNOWN_CA"
    presented = presented_by(answerer)
    assert presented is not None
    assert (presented.subject, presented.serial) == ("CN=alice", f"{stranger.serial:x}")


def test_an_authority_at_fault_is_named_and_the_gateways_own_is_no_fault_of_the_client(tmp_path: Path) -> None:
    """An intermediate that the client sends is its own to renew; the CAs of `tls.ca_cert` are not."""
    made = site(tmp_path)
    sound = next(iter(made.build().contexts.values()))
    middle = certified(ROOT.intermediate("middle"), ROOT, not_after=datetime.now(UTC) - timedelta(seconds=1))
    below = middle.issue(common_name="below", client=True)
    error, _, told = failed(sound, client_context(below, tmp_path), admit)
    reason, sentence = handshake_failure(error)  # type: ignore[arg-type]
    assert (reason, told) == ("certificate_expired", "SSLV3_ALERT_CERTIFICATE_EXPIRED")
    assert "that of CN=middle (OpenSSL error 10: certificate has expired)" in sentence

    own = Authority.create("old root", lifetime=timedelta(seconds=-1))
    client = own.issue(common_name="below", client=True)
    made.write("ca.pem", ROOT.certificate_pem + own.certificate_pem)
    context = next(iter(made.build().contexts.values()))
    error, _, told = failed(context, client_context(client, tmp_path), admit)
    reason, sentence = handshake_failure(error)  # type: ignore[arg-type]
    assert (reason, told) == ("certificate_expired", "TLSV1_ALERT_INTERNAL_ERROR")
    assert "that of CN=old root" in sentence


def test_without_a_certificate_none_is_presented(server: ssl.SSLContext, tmp_path: Path) -> None:
    error, answerer, _ = failed(server, client_context(None, tmp_path), admit)
    assert handshake_failure(error)[0] == "no_certificate"  # type: ignore[arg-type]
    assert presented_by(answerer) is None


def test_where_the_library_cannot_be_called_contexts_serve_without_a_judge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verification, "CAN_JUDGE", False)
    context = next(iter(site(tmp_path).build().contexts.values()))
    assert handshake(context, client_context(CLIENT, tmp_path), judge=lambda *_: "certificate_revoked")


def test_each_error_of_openssl_has_words() -> None:
    """All that this library knows, and those of later ones."""
    text = openssl.function("X509_verify_cert_error_string", ctypes.c_char_p, ctypes.c_long)
    unknown = text(100_000)
    known = {code for code in range(1, 1000) if text(code) != unknown}
    assert known <= VERIFY_ERRORS.keys()
    assert list(VERIFY_ERRORS) == list(range(1, 105))
    sentences = [sentence for _, sentence in VERIFY_ERRORS.values()]
    assert len(set(sentences)) == len(sentences)
    assert described(44, "Different CRL scope")[0] == "crl_invalid"
    assert described(11, "CRL is not yet valid")[0] == "crl_not_yet_valid"


def test_an_unknown_error_is_told_by_its_number_and_openssls_words() -> None:
    reason, sentence = described(4711, "new in 4.0")
    assert reason == "certificate_invalid"
    assert "4711" in sentence
    assert "new in 4.0" in sentence
