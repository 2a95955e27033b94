"""What is read of a Gmail mailbox besides evidence: originals to answer, From addresses, whether it works at all."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from gmail_rig import COMPOSE, METADATA, MODIFY, READONLY, SEND, GmailRig
from provider_rigs import USER, deliver, mail_of, new_mail

from outtray_schema.outcome import Failed, Held, Parked, Sent
from outtray_worker.providers import OriginalFile, OriginalMail, Reader
from outtray_worker.providers.gmail import Check, Identity

FILE = bytes(range(256)) * 9000


@pytest.fixture
def gmail(tmp_path: Path) -> Iterator[GmailRig]:
    with GmailRig(tmp_path, (MODIFY,)) as rig:
        yield rig


def received(*, attach: bool = True) -> bytes:
    message = EmailMessage()
    message["From"] = "Jürgen Groß <j.gross@first.example>"
    message["To"] = f"Ann <{USER}>, Bo <bo@second.example>"
    message["Cc"] = "cy@third.example"
    message["Reply-To"] = "answers@first.example"
    message["Subject"] = "Angebot für März"
    message["Message-ID"] = "<original@first.example>"
    message["References"] = "<one@first.example> <two@first.example>"
    message["Date"] = "Fri, 20 Nov 2026 10:00:00 +0100"
    message.set_content("Grüße\n", charset="iso-8859-1")
    message.add_alternative("<p>Grüße</p>", subtype="html")
    if attach:
        message.add_attachment(FILE, maintype="application", subtype="pdf", filename="Angebot März.pdf")
    return message.as_bytes().replace(b"\n", b"\r\n")


def read(rig: GmailRig, ref: str) -> OriginalMail:
    found = rig.run(rig.provider.open(rig.account).read_original(ref))
    assert isinstance(found, OriginalMail), found
    return found


def test_a_session_is_a_reader(gmail: GmailRig) -> None:
    assert isinstance(gmail.provider.open(gmail.account), Reader)


def test_an_original_is_read_by_its_id(gmail: GmailRig) -> None:
    stored = gmail.house.users[USER].mailbox.add(received(), ("INBOX",), None)
    found = read(gmail, stored.id)
    assert (found.message_id, found.conversation_id) == (stored.id, stored.thread_id)
    assert found.rfc_message_id == "<original@first.example>"
    assert found.references == ("<one@first.example>", "<two@first.example>")
    assert found.subject == "Angebot für März"
    assert found.sender == ("Jürgen Groß", "j.gross@first.example")
    assert found.reply_to == (("", "answers@first.example"),)
    assert found.to == (("Ann", USER), ("Bo", "bo@second.example"))
    assert found.cc == (("", "cy@third.example"),)
    assert found.date is not None and found.date.isoformat() == "2026-11-20T10:00:00+01:00"
    assert found.text == "Grüße\r\n"
    assert found.html is not None and "<p>Grüße</p>" in found.html


def test_its_files_are_fetched_when_they_are_wanted(gmail: GmailRig) -> None:
    stored = gmail.house.users[USER].mailbox.add(received(), ("INBOX",), None)

    async def both() -> tuple[OriginalFile, bytes]:
        found = await gmail.provider.open(gmail.account).read_original(stored.id)
        assert isinstance(found, OriginalMail)
        assert gmail.server.seen["messages.attachments.get"] == 0
        (file,) = found.attachments
        pieces = [piece async for piece in file.fetch()]
        assert max(map(len, pieces)) <= 1 << 20
        return file, b"".join(pieces)

    file, data = gmail.run(both())
    assert (file.filename, file.content_type, file.size) == ("Angebot März.pdf", "application/pdf", len(FILE))
    assert data == FILE


def test_a_plain_message_without_parts_is_read(gmail: GmailRig) -> None:
    stored = gmail.house.users[USER].mailbox.add(b"Subject: x\r\nIn-Reply-To: <a@b>\r\n\r\nHello\r\n", (), None)
    found = read(gmail, stored.id)
    assert (found.text, found.html, found.attachments) == ("Hello\r\n", None, ())
    assert (found.sender, found.rfc_message_id, found.references) == (None, None, ("<a@b>",))


def test_an_original_is_found_by_its_message_id_once_the_search_knows_it(gmail: GmailRig) -> None:
    gmail.house.users[USER].mailbox.add(received(attach=False), ("INBOX",), None)
    early = gmail.run(gmail.provider.open(gmail.account).read_original("<original@first.example>"))
    assert isinstance(early, Failed)
    assert "does not know it yet" in early.reason
    gmail.house.shift_clock(gmail.house.search_lag)
    assert read(gmail, "<original@first.example>").subject == "Angebot für März"


def test_one_of_ours_is_read_by_the_message_id_that_gmail_gave_it(gmail: GmailRig) -> None:
    outcome = gmail.run(deliver(gmail, new_mail()))
    assert isinstance(outcome, Sent)
    gmail.house.shift_clock(gmail.house.search_lag)
    assert read(gmail, outcome.rfc_message_id or "").message_id == outcome.provider_id


@pytest.mark.parametrize("ref", ["18f0000000000000", "<none@first.example>", "../drafts", "x" * 100, ""])
def test_what_is_not_there_is_a_refusal(gmail: GmailRig, ref: str) -> None:
    found = gmail.run(gmail.provider.open(gmail.account).read_original(ref))
    assert isinstance(found, Failed)
    assert found.evidence["rule"] == "not-found"


@pytest.mark.parametrize("scopes", [(SEND,), (COMPOSE,), (COMPOSE, METADATA)])
def test_without_the_scope_it_is_refused_in_plain_words(scopes: tuple[str, ...], tmp_path: Path) -> None:
    with GmailRig(tmp_path, scopes) as rig:
        found = rig.run(rig.provider.open(rig.account).read_original("18f0000000000000"))
        assert isinstance(found, Failed)
        assert "gmail.readonly" in found.reason
        assert dict(rig.server.seen) == {}


def test_a_server_in_trouble_is_no_refusal(gmail: GmailRig) -> None:
    gmail.server.add_rule(stage="messages.get", status=503)
    found = gmail.run(gmail.provider.open(gmail.account).read_original("18f0000000000000"))
    assert isinstance(found, Parked)


# ── From addresses ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_from_addresses_are_listed_with_what_gmail_would_replace(gmail: GmailRig) -> None:
    gmail.house.add_alias(USER, "team@sender.example")
    gmail.house.add_alias(USER, "new@sender.example", "pending")
    found = gmail.run(gmail.provider.identities(gmail.account))
    assert isinstance(found, tuple) and all(isinstance(each, Identity) for each in found)
    assert {each.address: each.verified for each in found} == {
        USER: True,
        "team@sender.example": True,
        "new@sender.example": False,
    }
    assert [each.is_primary for each in found] == [True, False, False]
    assert USER not in repr(found)


def test_the_from_addresses_need_a_scope(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:
        found = rig.run(rig.provider.identities(rig.account))
    assert isinstance(found, Held)
    assert "settings.basic" in found.reason


def test_an_unverified_from_is_replaced_without_an_error(gmail: GmailRig) -> None:
    """Why the addresses are checked before the handover: Gmail says nothing."""
    gmail.house.add_alias(USER, "team@sender.example")
    gmail.house.add_alias(USER, "new@sender.example", "pending")
    for sender in ("team@sender.example", "new@sender.example"):
        body = f"From: {sender}\r\nTo: canary-to@first.example\r\n\r\nx\r\n".encode()
        mail = mail_of(body, recipients=("canary-to@first.example",), sender=sender)
        assert isinstance(gmail.run(deliver(gmail, mail)), Sent)
    assert [mail.sender for mail in gmail.taken()] == ["team@sender.example", USER]


# ── whether it works ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("scopes", "route", "can_look", "matches"),
    [
        ((SEND,), "by send", "nothing", None),
        ((SEND, METADATA), "by send", "what was sent", True),
        ((COMPOSE,), "by draft", "the draft alone", True),
        ((COMPOSE, READONLY), "by draft", "the draft and what was sent", True),
    ],
)
def test_a_check_says_what_the_scopes_give_and_sends_nothing(
    scopes: tuple[str, ...], route: str, can_look: str, matches: bool | None, tmp_path: Path
) -> None:
    with GmailRig(tmp_path, scopes) as rig:
        found = rig.run(rig.provider.check(rig.account))
        assert found == Check(f"127.0.0.1:{rig.server.port}", route, can_look, matches)
        assert (rig.handovers(), rig.server.seen["drafts.create"]) == (0, 0)


def test_a_token_of_another_mailbox_is_noticed(gmail: GmailRig) -> None:
    gmail.house.add_user("other@sender.example")
    gmail.house.tokens.access[gmail.tokens.token].email = "other@sender.example"
    found = gmail.run(gmail.provider.check(gmail.account))
    assert isinstance(found, Check)
    assert found.address_matches is False


def test_a_check_of_a_withdrawn_consent_is_the_outcome_of_a_mail(gmail: GmailRig) -> None:
    gmail.house.revoke_user(USER)
    found = gmail.run(gmail.provider.check(gmail.account))
    assert isinstance(found, Held) and found.status == "reconnect"
