"""Whom TLS trusts and how a token logs in: authorities of a mailbox's own, pinned certificates, OAUTHBEARER."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from imap_rig import ImapRig, lost
from provider_rigs import TOKEN, SmtpRig, account_of, deliver, new_mail

from outtray_sandbox.smtp import TlsFiles, make_certificates
from outtray_schema.errors import InvalidMailbox
from outtray_schema.mailbox import normal_pin, smtp_server
from outtray_schema.outcome import Held, Parked, Sent
from outtray_worker.providers.smtp import Check
from outtray_worker.providers.smtp.auth import oauthbearer
from outtray_worker.providers.smtp.trust import fingerprints

TOKEN_USER = "token@sender.example"
BEARER = {"username": TOKEN_USER, "access_token": TOKEN}


def untrusted(folder: Path) -> TlsFiles:
    """A certificate that nothing speaks for: no known authority, another name, and over."""
    return make_certificates(folder / "odd", ("elsewhere.example",), timedelta(days=-30))


def pins(files: TlsFiles) -> tuple[str, str]:
    return fingerprints(ssl.PEM_cert_to_DER_cert(files.certificate.read_text()))


# ── trust ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("tls", "loop"), [("starttls", "uvloop"), ("implicit", "asyncio")])
def test_a_pin_is_the_verification_of_a_certificate_that_nothing_else_speaks_for(
    tmp_path: Path, tls: str, loop: str
) -> None:
    files = untrusted(tmp_path)
    with SmtpRig(tmp_path, tls, loop, options={"tls_files": files}) as rig:
        for pin in pins(files):
            rig.account = account_of(rig.where(ca_file=None, pin=pin))
            assert isinstance(rig.run(deliver(rig, new_mail())), Sent)
        for wrong in (f"cert:{'0' * 64}", pins(files)[0].replace("cert:", "key:")):
            logins = rig.server.seen["auth"]
            rig.account = account_of(rig.where(pin=wrong))
            outcome = rig.run(deliver(rig, new_mail()))
            assert isinstance(outcome, Parked) and outcome.evidence["rule"] == "tls-pin"
            assert pins(files)[0] in outcome.reason and "pin that one" in outcome.reason
            assert rig.server.seen["auth"] == logins, "a login was tried at a stranger's"


def test_a_pin_holds_even_where_an_authority_speaks_for_another_certificate(tmp_path: Path) -> None:
    with SmtpRig(tmp_path, "implicit") as rig:
        rig.account = account_of(rig.where(pin=f"cert:{'1' * 64}"))
        assert isinstance(rig.run(deliver(rig, new_mail())), Parked)


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_imap_has_a_pin_of_its_own(tmp_path: Path, tls: str) -> None:
    with ImapRig(tmp_path, tls) as rig:
        assert rig.smtp.server._files is not None
        right, _ = pins(rig.smtp.server._files)
        for pin, kind in ((right, "absent"), (f"cert:{'0' * 64}", "failed")):
            found = rig.look(lost(), rig.account_with(pin=pin, files_sent=True))
            assert found.kind == kind, found
        assert isinstance(found.outcome, Parked) and "not the pinned one" in found.outcome.reason
        assert rig.post.seen["logins"] == 1


def test_an_authority_travels_with_the_mailbox_and_not_as_a_path(tmp_path: Path) -> None:
    with SmtpRig(tmp_path, "starttls") as rig:
        pem = Path(str(rig.server.ca_file)).read_text()
        server = smtp_server(host="localhost", ca=f"a comment\n{pem}")
        assert server.ca is not None and server.ca.startswith("-----BEGIN") and "comment" not in server.ca
        rig.account = account_of(rig.where(ca_file=None, ca=server.ca))
        assert isinstance(rig.run(deliver(rig, new_mail())), Sent)
        rig.account = account_of(rig.where(ca_file=None))
        refused = rig.run(deliver(rig, new_mail()))
        assert isinstance(refused, Parked) and "an authority this machine does not know" in refused.reason


def test_pins_are_read_as_openssl_and_curl_write_them() -> None:
    digest = bytes(range(32)).hex()
    colons = ":".join(digest[n : n + 2] for n in range(0, 64, 2)).upper()
    for text in (digest, colons, f"sha256 Fingerprint={colons}", f"cert:{digest}"):
        assert normal_pin(text) == f"cert:{digest}"
    assert normal_pin("sha256//AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == f"key:{digest}"
    for wrong in ("", "abc", digest[:-2], "sha256//AAEC", "sha256//!", "none"):
        with pytest.raises(InvalidMailbox, match=r"pin: is no SHA-256 .* openssl x509"):
            smtp_server(host="mx.example", pin=wrong)
    for wrong in ("", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "x" * 70_000):
        with pytest.raises(InvalidMailbox, match="ca: holds no certificates in PEM"):
            smtp_server(host="mx.example", ca=wrong)


# ── OAUTHBEARER ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_said_as_rfc_7628_writes_it() -> None:
    said = oauthbearer("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", "server.example.com", 587)
    assert said == (
        "n,a=user@example.com,\x01host=server.example.com\x01port=587\x01"
        "auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    )
    assert oauthbearer("a,b=c", "t", "h", 1).startswith("n,a=a=2Cb=3Dc,\x01")


@pytest.mark.parametrize(
    ("offered", "auth", "by"),
    [
        (("PLAIN", "OAUTHBEARER"), "auto", "oauthbearer"),
        (("XOAUTH2", "OAUTHBEARER"), "auto", "xoauth2"),
        (("XOAUTH2", "OAUTHBEARER"), "oauthbearer", "oauthbearer"),
    ],
)
def test_what_the_server_offers_decides_how_a_token_is_said(
    tmp_path: Path, offered: tuple[str, ...], auth: str, by: str
) -> None:
    with SmtpRig(tmp_path, options={"mechanisms": offered}) as rig:
        rig.account = account_of(rig.where(auth=auth), **BEARER)
        found = rig.run(rig.provider.check(rig.account))  # type: ignore[arg-type]
        assert isinstance(found, Check) and found.mechanism == by


@pytest.mark.parametrize("auth", ["oauthbearer", "xoauth2"])
def test_a_refused_token_is_answered_as_the_mechanism_wants_it(smtp: SmtpRig, auth: str) -> None:
    smtp.account = account_of(smtp.where(auth=auth), username=TOKEN_USER, access_token="stale")
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Held)
    assert (outcome.evidence["rule"], outcome.evidence["oauth_status"]) == ("credentials-refused", "400")
    assert smtp.server.seen["auth"] == 1


@pytest.mark.parametrize(("token", "kind"), [(TOKEN, "absent"), ("stale", "failed")])
def test_imap_takes_it_too_and_its_refusal_is_answered(tmp_path: Path, token: str, kind: str) -> None:
    with ImapRig(tmp_path, mechanisms=("OAUTHBEARER",)) as rig:
        account = rig.account_with({"username": TOKEN_USER, "access_token": token}, files_sent=True)
        found = rig.look(lost(), account)
        assert found.kind == kind
        if kind == "failed":
            assert isinstance(found.outcome, Held) and "refuses the login" in found.outcome.reason
        assert rig.post.seen["logins"] == 1


def test_a_server_without_either_says_what_it_lacks(tmp_path: Path) -> None:
    with SmtpRig(tmp_path, options={"mechanisms": ("PLAIN",)}) as rig:
        rig.account = account_of(rig.where(), **BEARER)
        outcome: Any = rig.run(deliver(rig, new_mail()))
        assert isinstance(outcome, Held) and "the server offers PLAIN here, not XOAUTH2" in outcome.reason
