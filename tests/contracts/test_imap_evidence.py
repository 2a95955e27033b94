"""What a look by IMAP shows, over the wire. One table says what each case proves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from imap_rig import NOBODY, ImapRig, lost, renamed
from provider_rigs import SmtpRig, account_of, deliver, new_mail

from outtray_worker.providers import Trace
from outtray_worker.providers.smtp.imap.folders import NAMES
from outtray_worker.providers.smtp.imap.look import NEWEST


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ImapRig]:
    with ImapRig(tmp_path) as imap_rig:
        yield imap_rig


# ── what each case proves ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """`sends`: whether the mail that is looked for was taken; `before`: what lies in Sent already."""

    finding: str
    sends: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    imap: dict[str, Any] = field(default_factory=dict)
    before: Callable[[ImapRig], None] = lambda rig: None
    says: str = ""


def ours(**fields: Any) -> Callable[[ImapRig], None]:
    return lambda rig: rig.other(**fields)


def many(rig: ImapRig) -> None:
    for _ in range(NEWEST + 1):
        rig.other()


GMAIL = {"gmail": True}
FINDINGS = {
    "its copy is there": Case("sent", sends=True),
    "its copy is there although nobody said so": Case("sent", sends=True, imap={"files_sent": False}),
    "its copy is there under another Message-ID": Case("sent", sends=True, options={"replaces_ids": True}),
    "Gmail filed it": Case("sent", sends=True, options=GMAIL),
    "it is listed, and no index knows it": Case("sent", sends=True, options={"index_lag": 60.0}, says="the newest 1"),
    "no search for our key": Case("sent", sends=True, options={"searches_headers": False, "replaces_ids": True}),
    "it is not there, and the provider files copies": Case("absent", imap={"files_sent": True}),
    "it is not there, among more than are read": Case(
        "nothing", imap={"files_sent": True}, before=many, says="not back to the handover"
    ),
    "it is not there yet": Case("absent", sends=True, options={"lag": 60.0}, imap={"files_sent": True}),
    "it is not there, and the provider files none": Case(
        "nothing", imap={"files_sent": False}, says="the provider files no copies there"
    ),
    "it is not there, and nobody knows": Case("nothing", says="no sign that the provider files copies"),
    "another mail of ours is there": Case("absent", before=ours(), says="copies of other mails of ours lie there"),
    "another mail of ours is there, an old one": Case("nothing", before=ours(ago=timedelta(days=8))),
    "a person's own mail is there": Case("nothing", before=ours(key=False)),
    "no folder of sent mail": Case(
        "nothing", options={"folders": (("INBOX", ""),)}, imap={"files_sent": True}, says="no folder of sent mail"
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_case_proves_what_the_table_says(name: str, tmp_path: Path) -> None:
    case = FINDINGS[name]
    with ImapRig(tmp_path, imap=case.imap, **case.options) as rig:
        case.before(rig)
        trace = rig.send() if case.sends else lost()
        found = rig.look(trace)
    assert found.kind == case.finding, found
    assert case.says in found.looked
    assert (found.sent is None) is (case.finding != "sent")


def test_without_imap_settings_there_is_no_way_to_look(smtp: SmtpRig) -> None:
    found = smtp.run(smtp.provider.open(smtp.account).find_evidence(lost()))
    assert (found.kind, smtp.server.seen["connections"]) == ("no_way", 0)


@pytest.mark.parametrize("tls", ["clear", "starttls", "implicit"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_is_found_by_every_way_to_connect(tls: str, loop: str, tmp_path: Path) -> None:
    with ImapRig(tmp_path, tls, loop) as rig:
        trace = rig.send()
        found = rig.look(trace)
        assert found.kind == "sent", found
        assert found.sent is not None and found.sent.rfc_message_id == trace.rfc_message_id
        assert rig.post.seen["connections"] == 1


# ── which copy ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_whose_message_id_only_contains_ours_is_not_ours(rig: ImapRig) -> None:
    trace = lost()
    rig.post.add(rig.account.address, "Sent", f"Message-ID: <x{NOBODY}x@sender.example>\r\n".encode())
    rig.post.add(rig.account.address, "Sent", f"X-Outtray-Key: {trace.message_id}0\r\n".encode())
    assert rig.look(trace, rig.account_with(files_sent=True)).kind == "absent"


def test_a_copy_with_our_key_tells_the_message_id_that_it_left_with(tmp_path: Path) -> None:
    with ImapRig(tmp_path, replaces_ids=True) as rig:
        trace = rig.send()
        found = rig.look(trace)
    assert found.sent is not None and found.sent.rfc_message_id is not None
    assert found.sent.rfc_message_id.endswith("@mx.google.com>")
    assert "our key" in str(found.sent.evidence["found"])


def test_a_replaced_message_id_is_recognized_without_our_key_too(rig: ImapRig) -> None:
    headers = f"Message-ID: <new@mx.google.com>\r\nX-Google-Original-Message-ID:\r\n {NOBODY}\r\n"
    rig.post.add(rig.account.address, "Sent", headers.encode())
    found = rig.look(lost())
    assert found.kind == "sent"
    assert found.sent is not None and found.sent.rfc_message_id == "<new@mx.google.com>"


def test_gmail_tells_the_ids_of_its_api(tmp_path: Path) -> None:
    with ImapRig(tmp_path, gmail=True) as rig:
        trace = rig.send()
        found = rig.look(trace)
        (mail,) = rig.post.listed(rig.post.box(rig.account.address)[1])
    assert found.sent is not None
    assert found.sent.provider_id == found.sent.conversation_id == f"{mail.gmail_id:x}"


def test_a_copy_that_was_moved_is_found_among_all_mail_at_gmail(tmp_path: Path) -> None:
    with ImapRig(tmp_path, gmail=True) as rig:
        trace = rig.send()
        rig.post.box(rig.account.address)[1].mails.clear()
        found = rig.look(trace, rig.account_with(files_sent=True))
        assert found.kind == "sent"
        assert "all mail" in found.looked
        rig.post.box(rig.account.address)[2].mails.clear()
        assert rig.look(trace, rig.account_with(files_sent=True)).kind == "absent"


def test_our_key_travels_only_where_somebody_can_look_for_it(smtp: SmtpRig, tmp_path: Path) -> None:
    mail = new_mail()
    smtp.run(deliver(smtp, mail))
    (body,) = smtp.server.house.bodies.values()
    assert b"X-Outtray-Key" not in body
    (tmp_path / "other").mkdir()
    with ImapRig(tmp_path / "other") as rig:
        trace = rig.send(mail)
        (keyed,) = rig.smtp.server.house.bodies.values()
    assert keyed == f"X-Outtray-Key: {trace.message_id}\r\n".encode() + body


def test_a_mail_with_its_key_is_the_same_at_every_attempt(rig: ImapRig) -> None:
    mail = new_mail(piece=11)
    rig.send(mail)
    rig.send(mail)
    assert len({taken.sha256 for taken in rig.smtp.taken()}) == 1
    assert len(rig.smtp.taken()) == 2


# ── which folder ────────────────────────────────────────────────────────────────────────────────────────────────────

ODD = {
    "marked, whatever it is called": {"folders": (("INBOX", ""), ("Sent", ""), ('Büro "A" \\ ☎ & (x)', "\\Sent"))},
    "marked only when asked": {"special_use": "asked", "folders": (("INBOX", ""), ("Ausgang", "\\Sent"))},
    "not marked, under INBOX": {"special_use": "never", "delimiter": ".", "folders": (("INBOX.Sent", "\\Sent"),)},
    "not marked, in German": {"special_use": "never", "folders": (("Gesendete Objekte", "\\Sent"),)},
    "not marked, in Russian": {"special_use": "never", "folders": (("Отправленные", "\\Sent"),)},
    "its name is a literal": {"literal_names": True, "folders": (("INBOX", ""), ("Zwei Wörter {3}", "\\Sent"))},
    "its name is a number": {"folders": (("INBOX", ""), ("2026", "\\Sent"))},
}


@pytest.mark.parametrize("name", ODD)
def test_the_folder_of_sent_mail_is_found(name: str, tmp_path: Path) -> None:
    with ImapRig(tmp_path, **ODD[name]) as rig:
        found = rig.look(rig.send())
    assert found.kind == "sent", found


def test_every_folder_that_is_named_like_it_is_looked_into_before_anything_is_absent(tmp_path: Path) -> None:
    folders = (("Sent", ""), ("Archive/Sent Items", "\\Sent"))
    with ImapRig(tmp_path, special_use="never", folders=folders) as rig:
        assert rig.look(rig.send()).kind == "sent"
        assert rig.look(lost()).kind == "absent"


def test_a_folder_that_cannot_be_opened_is_none(tmp_path: Path) -> None:
    with ImapRig(tmp_path, special_use="never", folders=(("Sent", ""), ("Gesendet", "\\Sent"))) as rig:
        rig.post.box(rig.account.address)[0].selectable = False
        assert rig.look(rig.send()).kind == "sent"


def test_many_names_are_known_and_none_is_a_draft_folder() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert not {"Drafts", "Entwürfe", "INBOX", "Outbox"} & set(NAMES)


def test_nothing_is_changed_by_a_look(rig: ImapRig) -> None:
    rig.look(rig.send())
    assert rig.post.seen["append"] == 0
    assert {name for name in rig.post.seen if name not in ("connections", "connect", "logins", "errors")} == {
        "capability", "login", "list", "select", "search", "fetch", "logout",
    }  # fmt: skip


# ── time passes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_lags_is_found_once_it_is_there(tmp_path: Path) -> None:
    with ImapRig(tmp_path, imap={"files_sent": True}, lag=60.0) as rig:
        trace = rig.send()
        assert rig.look(trace).kind == "absent"
        rig.post.shift_clock(61)
        assert rig.look(trace).kind == "sent"


def test_looks_of_one_session_share_its_connection(rig: ImapRig) -> None:
    trace = rig.send()

    async def both() -> list[str]:
        session = rig.smtp.provider.open(rig.account)
        kinds = [(await session.find_evidence(each)).kind for each in (trace, lost())]
        await session.close()
        return kinds

    assert rig.run(both()) == ["sent", "absent"]
    assert (rig.post.seen["connections"], rig.post.seen["logout"]) == (1, 1)


def test_more_mails_than_are_read_are_no_hindrance_when_they_reach_back_to_the_handover(rig: ImapRig) -> None:
    for _ in range(NEWEST + 5):
        rig.other(ago=timedelta(hours=1))
    trace = Trace(uuid4(), NOBODY, lost().handed_at, ())
    assert rig.look(trace).kind == "absent"
    assert rig.look(renamed(trace, handed_at=trace.handed_at - timedelta(hours=2))).kind == "nothing"


def test_settings_that_name_no_imap_server_are_no_way(smtp: SmtpRig) -> None:
    account = account_of(smtp.where(imap=None))
    assert smtp.run(smtp.provider.open(account).find_evidence(lost())).kind == "no_way"
