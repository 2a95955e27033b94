"""Idempotency: the same request is recognised, another one is told by its fields, and nothing of it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from outtray_schema.errors import InvalidMessage
from outtray_schema.keyfile import new_keys
from outtray_schema.message import Attachment, Message
from outtray_schema.request_hash import FIELDS, differing_fields, request_hash
from outtray_schema.vault import vault_of

APP = UUID(int=1)
VAULT = vault_of(new_keys(), "test")
BASE: dict[str, Any] = {
    "to": "ann@example.com",
    "subject": "Hello",
    "html": "<img src='cid:a'>",
    "idempotency_key": "k",
}
INVITATION = "\n".join(
    ["BEGIN:VCALENDAR", "METHOD:REQUEST", "BEGIN:VEVENT", "UID:1", "DTSTAMP:20270101T000000Z",
     "DTSTART:20270101T000000Z", "ORGANIZER:mailto:a@b.cc", "ATTENDEE:mailto:c@d.ee", "END:VEVENT", "END:VCALENDAR"]
)  # fmt: skip
OTHER: dict[str, Any] = {
    "from_": "me@example.com", "to": "bob@example.com", "cc": "bob@example.com", "bcc": "bob@example.com",
    "reply_to": "me@example.com", "subject": "Hi", "text": "x", "html": "y", "attachments": [Attachment("a", b"1")],
    "headers": {"X-A": "1"}, "in_reply_to": "<a@b.c>", "references": ["<a@b.c>"], "tags": ["t"], "metadata": {"a": 1},
    "priority": "low", "send_at": "2027-01-01T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z", "give_up_after": "1h",
    "on_unknown": "resend", "mailbox": "me@example.com", "importance": "high", "request_read_receipt": True,
    "mode": "draft", "reply_to_message": "theirs-1", "answering": "reply_all",
    "follows": "k1", "after": "3d", "on_predecessor": {"failed": "go_on"}, "thread": False,
    "window": "mon 09:00-10:00 UTC", "recipients": "accepted",
    "unsubscribe_url": "https://example.com/u", "unsubscribe_mailto": "u@example.com",
    "invitation": INVITATION, "raw": b"From: me@example.com\r\nTo: ann@example.com\r\n\r\nHello\r\n",
}  # fmt: skip


def hashed(**fields: Any) -> bytes:
    return request_hash(VAULT, APP, Message(**{**BASE, **fields}))


def test_every_field_of_a_message_but_the_key_is_compared() -> None:
    fields = {field.alias or name for name, field in Message.model_fields.items()}
    assert set(FIELDS) == fields - {"idempotency_key"} == {name.removesuffix("_") for name in OTHER}


@pytest.mark.parametrize("field", OTHER)
def test_the_field_that_differs_is_named_both_ways(field: str) -> None:
    if field == "raw":  # nothing goes beside it
        mails = [Message(raw=OTHER["raw"] + more, idempotency_key="k") for more in (b"", b"Bye\r\n")]
        assert differing_fields(*(request_hash(VAULT, APP, mail) for mail in mails)) == ["raw"]
        return
    about = {"answering": {"reply_to_message": "theirs-2"}}
    about |= {name: {"follows": "k0"} for name in ("after", "on_predecessor", "thread")}
    base = about.get(field, {})  # it needs what it is about
    first, second = hashed(**base), hashed(**base, **{field: OTHER[field]})
    assert differing_fields(first, second) == differing_fields(second, first) == [field.removesuffix("_")]


def test_all_fields_that_differ_are_named() -> None:
    assert differing_fields(hashed(), hashed(subject="x", tags=["a"], metadata={"b": 1})) == [
        "subject",
        "tags",
        "metadata",
    ]


def test_the_same_request_written_differently_is_the_same() -> None:
    first = hashed(tags=["a", "b"], headers={"X-A": "1", "X-B": "2"}, send_at="2027-01-01T10:00:00+00:00")
    second = hashed(tags=["b", "a"], headers={"X-B": "2", "X-A": "1"}, send_at="2027-01-01T12:00:00+02:00")
    assert differing_fields(first, second) == []
    assert first == second


def test_the_same_moment_in_another_zone_is_the_same_request() -> None:
    here, there = hashed(send_at="2027-01-01T02:00:00+02:00"), hashed(send_at="2027-01-01T00:00:00Z")
    assert differing_fields(here, there) == []


def test_an_attachment_is_compared_by_its_content_not_by_where_it_lies(tmp_path: Path) -> None:
    file = tmp_path / "somewhere"
    file.write_bytes(b"1")
    first = hashed(attachments=[Attachment("a", b"1")])
    assert first == hashed(attachments=[Attachment("a", path=file)])
    for other in (
        Attachment("a", b"2"),
        Attachment("b", b"1"),
        Attachment("a", b"1", content_type="text/csv"),
        Attachment("a", b"1", inline_id="a"),
    ):
        assert differing_fields(first, hashed(attachments=[other])) == ["attachments"]
    gone = Message(**BASE, attachments=[Attachment("a", path=file)])
    file.unlink()
    with pytest.raises(InvalidMessage, match=r"attachments\[0\]\.path"):
        request_hash(VAULT, APP, gone)


def test_what_is_stored_is_small_and_tells_nothing() -> None:
    stored = hashed(subject="secret")
    assert len(stored) == 5 + 3 * 8
    elsewhere = [
        request_hash(VAULT, UUID(int=2), Message(**{**BASE, "subject": "secret"})),
        hashed(subject="secret", idempotency_key="other"),
        request_hash(vault_of(new_keys(), "test"), APP, Message(**{**BASE, "subject": "secret"})),
    ]
    digests = {each[at : at + 8] for each in (stored, *elsewhere) for at in range(5, len(each), 8)}
    assert len(digests) == 4 * 3
    assert request_hash(VAULT, APP, Message(to="a@b.de", text="x")) == request_hash(
        VAULT, APP, Message(to="c@d.de", text="y")
    )
