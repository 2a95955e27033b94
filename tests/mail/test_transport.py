"""SMTP's width against Debian's Postfix, and the copy in Sent against its Dovecot, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from mail.desk import Desk, mail_with
from mail.mail_servers import BUSY, GONE, SIZE_LIMIT, MailServers
from outtray_schema.outcome import Failed, Parked, Retry, Sent
from outtray_worker.providers import Mail
from outtray_worker.providers.smtp import Check
from outtray_worker.providers.smtp.trust import fingerprints
from polling import eventually

OK, HIDDEN = "ok@receiver.example", "hidden@receiver.example"


def bytes_of(mail: Mail) -> bytes:
    async def whole() -> bytes:
        return b"".join([piece async for piece in mail.body()])

    return asyncio.run(whole())


def as_kept(data: bytes) -> bytes:
    """Maildir keeps line ends as LF."""
    return data.replace(b"\r\n", b"\n")


# ── the envelope ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_partial_delivery_leaves_out_whom_postfix_refuses(not_filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(not_filing, tmp_path)
    mail = mail_with("to some", (OK, GONE, BUSY, HIDDEN), partial=True)
    outcome, refused = desk.hand_over(mail)
    assert isinstance(outcome, Sent), (outcome, not_filing.log())
    assert [(each.n, each.again) for each in refused] == [(1, False), (2, True)]
    assert "the recipient does not exist (localhost:" in refused[0].reason and "550 5.1.1" in refused[0].reason
    queue_id = outcome.provider_id
    eventually(lambda: not_filing.log().count(f"{queue_id}: to=<") == 2, 30)
    for address, times in ((OK, 1), (HIDDEN, 1), (GONE, 0), (BUSY, 0)):
        assert not_filing.log().count(f"{queue_id}: to=<{address}>") == times


@pytest.mark.parametrize(("recipients", "kind"), [((OK, BUSY), Retry), ((OK, GONE, BUSY), Failed)])
def test_by_default_postfix_gets_no_mail_for_some_of_them(
    not_filing: MailServers, tmp_path: Path, recipients: tuple[str, ...], kind: type
) -> None:
    outcome, _ = Desk(not_filing, tmp_path).hand_over(mail_with("to all or none", recipients))
    assert isinstance(outcome, kind)
    none = mail_with("to none", (GONE, BUSY), partial=True)
    assert isinstance(Desk(not_filing, tmp_path).hand_over(none)[0], Failed)


def test_a_mail_above_postfix_limit_fails_before_its_body_and_names_it(not_filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(not_filing, tmp_path)
    found = asyncio.run(desk.provider.check(desk.account))
    assert isinstance(found, Check) and found.size_limit == SIZE_LIMIT
    assert {"8bitmime", "smtputf8", "pipelining", "size"} <= set(found.extensions)
    outcome, _ = desk.hand_over(mail_with("x" * 70 + ("\r\n" + "x" * 70) * (SIZE_LIMIT // 72)))
    assert isinstance(outcome, Failed) and f"takes {SIZE_LIMIT} at most" in outcome.reason


@pytest.mark.parametrize("recipient", ["jörg@receiver.example", "ann@xn--bcher-kva.example", "ann@bücher.example"])
def test_addresses_of_any_script_are_taken_by_postfix(not_filing: MailServers, tmp_path: Path, recipient: str) -> None:
    outcome, _ = Desk(not_filing, tmp_path).hand_over(mail_with("grüße", (recipient,)))
    assert isinstance(outcome, Sent), (outcome, not_filing.log())


def test_what_arrives_is_what_was_sent_byte_by_byte(filing: MailServers, tmp_path: Path) -> None:
    mail = mail_with("grüße\r\n.\r\n..two dots\r\n.begins with one\r\n" + "x" * 998 + "\r\n\r\nend")
    before = set(filing.sent())
    outcome, _ = Desk(filing, tmp_path).hand_over(mail)
    assert isinstance(outcome, Sent), (outcome, filing.log())
    eventually(lambda: len(set(filing.sent()) - before) == 1, 30)
    (arrived,) = set(filing.sent()) - before
    kept = arrived.read_bytes()
    ours = as_kept(f"X-Outtray-Key: {mail.message_id}\r\n".encode() + bytes_of(mail))
    assert kept.endswith(ours), "Postfix puts its own fields before ours, and changes none"
    assert HIDDEN.encode() not in ours


# ── trust ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pin_opens_both_servers_without_any_authority(not_filing: MailServers, tmp_path: Path) -> None:
    shown = fingerprints(ssl.PEM_cert_to_DER_cert(not_filing.tls.certificate.read_text()))
    for pin in shown:
        desk = Desk(not_filing, tmp_path, pin=pin)
        desk.server |= {"ca_file": None, "pin": pin}
        assert isinstance(desk.hand_over(mail_with("pinned"))[0], Sent)
        assert desk.file_copy(mail_with("pinned")).kind == "filed"
    desk.server |= {"pin": f"cert:{'0' * 64}"}
    refused, _ = desk.hand_over(mail_with("to a stranger"))
    assert isinstance(refused, Parked) and shown[0] in refused.reason


# ── the copy in Sent ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_copy_is_the_mail_itself_with_bcc_and_there_is_one(not_filing: MailServers, tmp_path: Path) -> None:
    desk = Desk(not_filing, tmp_path, files_sent=False)
    mail = mail_with("a line\r\n.\r\n.with dots, and grüße\r\n" + "y" * 200_000)
    outcome, _ = desk.hand_over(mail)
    assert isinstance(outcome, Sent) and outcome.evidence["sent_copy"] == "due"
    before = set(not_filing.copies())
    assert [desk.file_copy(mail, (HIDDEN,)).kind for _ in range(3)] == ["filed", "found", "found"]
    (copy,) = set(not_filing.copies()) - before
    assert copy.read_bytes() == as_kept(f"Bcc: {HIDDEN}\r\n".encode() + bytes_of(mail))
    assert copy.name.endswith(",S"), "it is marked as read"


def test_a_copy_that_the_provider_filed_is_found_and_no_other_is_put_beside_it(
    filing: MailServers, tmp_path: Path
) -> None:
    desk = Desk(filing, tmp_path)
    mail = mail_with("filed by the provider")
    before = set(filing.copies())
    outcome, _ = desk.hand_over(mail)
    assert isinstance(outcome, Sent) and outcome.evidence["sent_copy"] == "look"
    eventually(lambda: len(set(filing.copies()) - before) == 1, 30)
    assert desk.file_copy(mail).kind == "found"
    assert len(set(filing.copies()) - before) == 1
