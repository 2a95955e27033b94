"""A file that many messages carry is stored once, for as long as one of them needs it, and leaves whole with each."""

from __future__ import annotations

import asyncio
import hashlib
from email import message_from_bytes
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from crm import ADDRESS, ask, count, crm, hello
from inside import inside
from outtray import Attachment
from outtray.attachments import LEAST
from outtray_schema.attachment import Attachment as Stored
from outtray_schema.database import conninfo
from outtray_worker.content import Content
from outtray_worker.prune import prune
from world import run

PLAN = hashlib.shake_256(b"plan").digest(2 * 1024 * 1024)


def stored_bytes(settings: Any) -> int:
    """Bytes of all that is stored of contents and files, sealed."""
    (row,) = ask(
        settings,
        "SELECT (SELECT sum(octet_length(head) + octet_length(body)) FROM outtray.content)"
        " + (SELECT sum(octet_length(data)) FROM outtray.attachment_chunk) AS bytes",
    )
    return int(row["bytes"])


def pruned(settings: Any) -> int:
    async def steps() -> int:
        async with await AsyncConnection.connect(conninfo(settings), autocommit=True) as connection:
            return (await prune(connection, settings))["attachments"]

    return asyncio.run(steps())


def test_a_thousand_messages_store_their_file_once(database, tmp_path, monkeypatch):
    path = tmp_path / "plan.pdf"
    path.write_bytes(PLAN)
    rows = ({"to": f"p{n}@elsewhere.example", "subject": "s", "text": "t",
             "attachments": [Attachment("plan.pdf", PLAN) if n % 2 else {"filename": "p.pdf", "content": PLAN}]}
            for n in range(1000))  # fmt: skip
    with crm(database.settings) as client:
        client.enqueue(hello(attachments=[Attachment("other name.pdf", path=path)]))
        read = []
        monkeypatch.setattr(Stored, "read", lambda self: read.append(1) or iter(()))
        assert client.enqueue_many(rows).accepted == 1000
        assert not read, "it was there already, and its bytes are known by their hash"
    assert (count(database.settings, "attachment"), count(database.settings, "content_attachment")) == (1, 1001)
    assert stored_bytes(database.settings) < 5_000_000
    (size,) = ask(database.settings, "SELECT sum(size)::bigint AS size FROM outtray.message")
    assert size["size"] > 2_000_000_000


def test_each_message_leaves_with_the_whole_file_which_is_read_once(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            small = Attachment("small.bin", b"s" * (LEAST - 1))
            files = [Attachment("plan.bin", PLAN), small, Attachment("plan again.bin", PLAN)]
            ids = office.enqueue(box, 6, attachments=files, html="<b>x</b>")
            reads = _counted(office.process.content)
            mails = [await _whole(office, message_id) for message_id in ids]
            for mail in mails:
                parts = [
                    part.get_payload(decode=True) for part in message_from_bytes(mail).walk() if part.get_filename()
                ]
                assert parts == [PLAN, small.content, PLAN]
            await office.until_idle()
            taken = {each.message_id: (each.sha256, each.size) for each in office.provider.accepted}
            assert taken == {
                id: (hashlib.sha256(mail).hexdigest(), len(mail)) for id, mail in zip(ids, mails, strict=True)
            }
            assert {(await office.message(each))["size"] for each in ids} == {len(mails[0])}
            assert len(reads) == 3, "three pieces of 1 MiB, read once for all"

    run(scene())


def _counted(reader: Any) -> list[Any]:
    read, seen = reader._files._read, []

    async def counting(key: Any) -> bytes:
        seen.append(key)
        return await read(key)

    reader._files._read = counting
    return seen


async def _whole(office: Any, message_id: Any) -> bytes:
    from outtray_worker.claim import DueMessage  # noqa: F401 - what `load` takes

    row = await office.message(message_id)
    due = type("Due", (), {"id": message_id, "size": row["size"]})
    content: Content = await office.process.content.load(due)
    try:
        return b"".join([piece async for piece in content.body()])
    finally:
        content.release()


def test_a_file_goes_with_the_last_content_that_needs_it(database):
    with crm(database.settings) as client:
        first, second = (client.enqueue(hello(attachments=[Attachment("a.bin", PLAN)])).id for _ in range(2))
        ask(database.settings, "DELETE FROM outtray.content WHERE message_id = %s", first)
        assert pruned(database.settings) == 0
        ask(database.settings, "DELETE FROM outtray.message WHERE id = %s", second)
        with psycopg.connect(conninfo(database.settings)) as connection, client.transaction(connection):
            third = client.enqueue(hello(attachments=[Attachment("b.bin", PLAN)]), connection=connection).id
            assert pruned(database.settings) == 0, "somebody is just about to need it"
        assert pruned(database.settings) == 0 and count(database.settings, "attachment") == 1
        ask(database.settings, "DELETE FROM outtray.content WHERE message_id = %s", third)
        assert pruned(database.settings) == 1
    assert count(database.settings, "attachment_chunk") == 0


def test_one_who_pruned_while_another_was_about_to_need_it_did_no_harm(database, monkeypatch):
    """Found before its transaction, gone when it begins: it is stored again, under the id that the head names."""
    with crm(database.settings) as client:
        first = client.enqueue(hello(attachments=[Attachment("a.bin", PLAN)])).id
        ask(database.settings, "DELETE FROM outtray.content WHERE message_id = %s", first)
        hold = __import__("outtray.enqueue").enqueue.hold_files

        def late(*given: Any) -> Any:
            assert pruned(database.settings) == 1
            return (yield from hold(*given))

        monkeypatch.setattr("outtray.enqueue.hold_files", late)
        client.enqueue(hello(attachments=[Attachment("a.bin", PLAN)]))
    assert (count(database.settings, "attachment"), count(database.settings, "attachment_chunk")) == (1, 3)


def test_two_who_bring_one_new_file_at_once_wait_for_nobody(database):
    with crm(database.settings) as client, psycopg.connect(conninfo(database.settings)) as connection:
        with client.transaction(connection):
            client.enqueue(hello(attachments=[Attachment("a.bin", PLAN)]), connection=connection)
            client.enqueue(hello(attachments=[Attachment("a.bin", PLAN)]))
        client.enqueue(hello(attachments=[Attachment("a.bin", PLAN)]))
    assert count(database.settings, "attachment") == 2 and count(database.settings, "content_attachment") == 3


def test_two_apps_share_nothing_and_no_hash_is_a_plain_one(database):
    from outtray import Outtray

    with crm(database.settings) as client, Outtray(database.settings, app="other", actor="x") as other:
        other.apps.add("other")
        other.mailboxes.add_smtp("eve@sender.example", host="smtp.sender.example", password="x", default=True)
        for each in (client, other):
            each.enqueue(hello(attachments=[Attachment("a.bin", PLAN)]))
    rows = ask(database.settings, "SELECT digest FROM outtray.attachment")
    digests = {bytes(row["digest"]) for row in rows}
    assert len(digests) == 2 and hashlib.sha256(PLAN).digest() not in digests
    chunks = ask(database.settings, "SELECT data FROM outtray.attachment_chunk")
    assert not any(PLAN[:32] in bytes(row["data"]) for row in chunks)


def test_a_message_id_leaves_a_mailbox_once(database):
    raw = f"From: {ADDRESS}\r\nTo: ann@elsewhere.example\r\nMessage-ID: <own@sender.example>\r\n\r\nHi\r\n".encode()
    from outtray import InvalidMessage, Message

    with crm(database.settings) as client:
        first = client.enqueue(Message(raw=raw, idempotency_key="k"))
        assert client.enqueue(Message(raw=raw, idempotency_key="k")).id == first.id
        with pytest.raises(InvalidMessage, match="raw: another message of this mailbox has this Message-ID"):
            client.enqueue(Message(raw=raw))
        many = client.enqueue_many(
            [{"raw": raw.replace(b"own@", b"two@")}, {"raw": raw.replace(b"own@", b"two@")}], keep_going=True
        )
        assert (many.accepted, [each.index for each in many.refused]) == (1, [1])
        with pytest.raises(InvalidMessage, match="from: is neither"):
            client.enqueue(Message(raw=raw.replace(ADDRESS.encode(), b"eve@elsewhere.example")))
        with pytest.raises(InvalidMessage, match="raw: has a header X-Outtray-Key"):
            client.enqueue(Message(raw=b"X-Outtray-Key: 1\r\n" + raw))
    assert ask(database.settings, "SELECT rfc_message_id FROM outtray.message WHERE id = %s", first.id) == [
        {"rfc_message_id": "<own@sender.example>"}
    ]


def test_a_file_on_disk_is_stored_as_it_was_hashed(database, tmp_path: Path):
    path = tmp_path / "a.bin"
    path.write_bytes(PLAN)
    with crm(database.settings) as client:
        ids = [client.enqueue(hello(attachments=[Attachment("a.bin", path=path)])).id for _ in range(2)]
        path.write_bytes(PLAN[::-1])
        ids.append(client.enqueue(hello(attachments=[Attachment("a.bin", path=path)])).id)
    needed = ask(database.settings, "SELECT message_id, attachment_id FROM outtray.content_attachment")
    by = {row["message_id"]: row["attachment_id"] for row in needed}
    assert by[ids[0]] == by[ids[1]] != by[ids[2]]
