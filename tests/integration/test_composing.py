"""Answering a message: what is known is frozen at once, the rest before the first gate, and then never again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast
from uuid import UUID

import pytest

from inside import Inside, inside
from outtray import Attachment, InvalidMessage
from outtray_schema.content import open_body, open_chunk, open_file_chunk, open_head, put_together
from outtray_schema.outcome import Failed, Parked, Retry, Sent
from outtray_worker import compose
from outtray_worker.providers import NoToken, Original, OriginalFile, OriginalMail
from outtray_worker.providers.memory import Answer, MemoryProvider
from polling import until
from world import run

HOUR = timedelta(hours=1)
ANN, BOB, CARL = ("Ann", "ann@elsewhere.example"), ("Bob", "bob@elsewhere.example"), ("", "carl@elsewhere.example")


def foreign(**fields: Any) -> OriginalMail:
    """A mail in the mailbox that somebody else wrote."""
    values: dict[str, Any] = {
        "message_id": "theirs-1", "conversation_id": "thread-1", "rfc_message_id": "<theirs@elsewhere.example>",
        "references": ("<first@elsewhere.example>",), "subject": "AW: RE: Offer", "sender": ANN, "reply_to": (),
        "to": (("", "box@example.org"), BOB), "cc": (CARL,), "date": datetime(2026, 11, 2, 9, 30, tzinfo=UTC),
        "text": "Is it still valid?\n", "html": None, "attachments": (),
    }  # fmt: skip
    return OriginalMail(**(values | fields))


def file(name: str, content: bytes, claims: int | None = None, **fields: Any) -> OriginalFile:
    async def fetch() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    return OriginalFile(name, "application/pdf", len(content) if claims is None else claims, fetch, **fields)


async def stored(office: Inside, message_id: UUID) -> bytes:
    """The MIME of a message as it stands in the tables."""
    vault = office.process.vault
    (row,) = await office.w.rows("SELECT head, body FROM outtray.content WHERE message_id = %s", message_id)
    if row["body"] is not None:
        around = open_body(vault, message_id, row["body"])
    else:
        chunks = await office.w.rows(
            "SELECT n, data FROM outtray.content_chunk WHERE message_id = %s ORDER BY n", message_id
        )
        around = b"".join(open_chunk(vault, message_id, each["n"], each["data"]) for each in chunks)
    pieces = await office.w.rows("SELECT attachment_id, n, data FROM outtray.attachment_chunk ORDER BY n")
    files: dict[UUID, bytes] = defaultdict(bytes)
    for each in pieces:
        files[each["attachment_id"]] += open_file_chunk(vault, each["attachment_id"], each["n"], each["data"])
    return put_together(around, open_head(vault, message_id, row["head"]).apart, files)


async def mail(office: Inside, message_id: UUID) -> EmailMessage:
    return cast(EmailMessage, message_from_bytes(await stored(office, message_id), policy=policy.default))


async def recipients(office: Inside, message_id: UUID) -> list[tuple[str, str]]:
    return [(each.role, each.address) for each in office.client.get(message_id).recipients]


def answer(office: Inside, box: UUID, original: UUID | str, **fields: Any) -> UUID:
    (message_id,) = office.enqueue(box, **{"to": (), "subject": "", "reply_to_message": original} | fields)
    return message_id


# ── one of ours ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_to_one_of_ours_that_was_sent_is_final_at_the_door(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (first,) = office.enqueue(box, to=["Ann <ann@elsewhere.example>", "bob@elsewhere.example"], subject="Offer")
            await office.until_idle()
            second = answer(office, box, first)
            before = await stored(office, second)
            await office.until_idle()
            assert office.accepted == [first, second] and await stored(office, second) == before
            assert "composed" not in await office.journal(second)
            taken, row = office.provider.accepted[1], await office.message(first)
            assert taken.original == Original("reply", row["provider_id"], row["conversation_id"])
            written = await mail(office, second)
            assert written["Subject"] == "Re: Offer"
            assert written["In-Reply-To"] == written["References"] == row["rfc_message_id"]
            assert written["To"] == "Ann <ann@elsewhere.example>, bob@elsewhere.example", "it follows up"
            third = answer(office, box, second)
            assert (await mail(office, third))["References"].split() == [
                row["rfc_message_id"],
                (await office.message(second))["rfc_message_id"],
            ]

    run(scene())


def test_an_answer_to_one_that_has_not_left_waits_for_it_and_joins_it_by_what_was_delivered(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (first,) = office.enqueue(box, subject="Offer")
            second = answer(office, box, first)
            office.answers(Retry("451 try again"))
            await office.until_idle()
            row = await office.message(second)
            assert (row["state"], row["attempt"], row["reason"]) == (
                "queued",
                0,
                f"waits until message {first} has left",
            )
            assert office.accepted == []
            assert office.client.explain(second).code == "follows"
            await office.later(HOUR)
            await office.until_idle()
            await office.later(HOUR)
            await office.until_idle()
            assert office.accepted == [first, second]
            assert await office.journal(second) == ["enqueued", "composed", "gate", "sent"]
            written = await mail(office, second)
            assert (written["Subject"], written["To"]) == ("Re: Offer", "to@example.net")
            assert written["In-Reply-To"] == (await office.message(first))["rfc_message_id"]
            assert len(await stored(office, second)) == (await office.message(second))["size"]

    run(scene())


def test_both_leave_in_one_go_where_nothing_hinders_the_first(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (first,) = office.enqueue(box)
            second = answer(office, box, first)
            await office.until_idle()
            assert office.accepted == [first, second]

    run(scene())


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_an_answer_to_what_never_left_fails_and_says_so(database, end):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            (first,) = office.enqueue(box, send_at=await office.w.now() + HOUR)
            second = answer(office, box, first)
            if end == "failed":
                office.answers(Failed("550 no"))
                await office.later(HOUR)
            else:
                office.client.cancel(first)
            await office.until_idle()
            await office.later(HOUR)
            await office.until_idle()
            row = await office.message(second)
            assert (row["state"], row["reason"]) == ("failed", f"the message that it answers never left: it is {end}")
            with pytest.raises(InvalidMessage, match=r"reply_to_message.*never left"):
                answer(office, box, first)

    run(scene())


def test_a_forward_of_ours_carries_its_text_html_and_files(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            logo = Attachment("logo.png", b"\x89PNG", inline_id="logo")
            offer = Attachment("offer.pdf", b"%PDF" * 400_000)
            (first,) = office.enqueue(
                box, subject="Offer", text="See below", html='<html><body><img src="cid:logo"></body></html>',
                attachments=[logo, offer],
            )  # fmt: skip
            known = {"to": "dora@elsewhere.example", "answering": "forward", "text": "For you"}
            late = answer(office, box, first, **known)
            await office.until_idle()
            early = answer(office, box, first, **known)
            await office.until_idle()
            for message_id in (late, early):
                written = await mail(office, message_id)
                assert (written["Subject"], written["To"]) == ("Fwd: Offer", "dora@elsewhere.example")
                text = written.get_body(("plain",)).get_content()
                assert text.splitlines()[:3] == ["For you", "", "---------- Forwarded message ---------"]
                assert "See below" in text and written["References"] is None
                html = written.get_body(("html",)).get_content()
                assert "For you" in html and 'src="cid:logo"' in html
                files = {part.get_filename(): part for part in written.walk() if part.get_filename()}
                assert files["offer.pdf"].get_payload(decode=True) == offer.content
                assert files["logo.png"]["Content-ID"] == "<logo>"
            assert office.accepted == [first, late, early]
            assert "composed" in await office.journal(late) and "composed" not in await office.journal(early)

    run(scene())


# ── a message of the mailbox ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ref", ["theirs-1", "<theirs@elsewhere.example>"])
def test_a_reply_to_all_leaves_out_the_mailbox_and_its_aliases(database, ref):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            own = office.client.mailboxes.list()[0].address
            office.client.mailboxes.set(box, aliases=["sales@example.org"])
            others = (("", own.upper()), ("", "SALES@example.org"), BOB, ("Ann again", "ANN@elsewhere.example"))
            office.provider.originals.append(foreign(to=others))
            message_id = answer(office, box, ref, answering="reply_all", bcc="crm@example.org")
            await office.until_idle()
            assert await recipients(office, message_id) == [
                ("to", "ann@elsewhere.example"), ("to", "bob@elsewhere.example"), ("cc", "carl@elsewhere.example"),
                ("bcc", "crm@example.org"),
            ]  # fmt: skip
            row = await office.message(message_id)
            assert (row["state"], row["recipients"], row["external"]) == ("sent", 4, 3)
            rows = await office.w.rows("SELECT n FROM outtray.recipient WHERE message_id = %s ORDER BY n", message_id)
            assert [each["n"] for each in rows] == [0, 1, 2, 3]
            (taken,) = office.provider.accepted
            assert taken.original == Original("reply_all", "theirs-1", "thread-1")
            assert set(taken.recipients) == {address for _, address in await recipients(office, message_id)}
            written = await mail(office, message_id)
            assert written["Subject"] == "Re: Offer" and written["Bcc"] is None
            assert written["References"].split() == ["<first@elsewhere.example>", "<theirs@elsewhere.example>"]

    run(scene())


def test_the_same_bytes_go_out_at_every_attempt_though_the_original_changes(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1")
            office.answers(Retry("451"), Retry("451"))
            for _ in range(3):
                await office.until_idle()
                office.provider.originals[:] = [foreign(subject="Other", sender=BOB)]
                await office.later(HOUR)
            assert office.provider.seen["read"] == 1 and office.provider.seen["prepare"] == 3
            (taken,) = office.provider.accepted
            assert taken.recipients == ("ann@elsewhere.example",)
            assert (await office.message(message_id))["size"] == taken.size == len(await stored(office, message_id))

    run(scene())


def test_a_forward_quotes_the_original_and_carries_its_files(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            evil = file("../../a\r\nb.pdf", b"%PDF" * 1000)
            office.provider.originals.append(foreign(html="<p>Is it <b>still</b> valid?</p>", attachments=(evil,)))
            message_id = answer(
                office, box, "theirs-1", to="dora@elsewhere.example", answering="forward", text="What do you say?"
            )
            await office.until_idle()
            written = await mail(office, message_id)
            assert written["Subject"] == "Fwd: Offer"
            text = written.get_body(("plain",)).get_content()
            assert text.startswith("What do you say?") and "From: Ann <ann@elsewhere.example>" in text
            assert "<b>still</b>" in written.get_body(("html",)).get_content()
            (part,) = written.iter_attachments()
            assert part.get_payload(decode=True) == b"%PDF" * 1000 and "/" not in str(part.get_filename())
            assert await recipients(office, message_id) == [("to", "dora@elsewhere.example")]

    run(scene())


@pytest.mark.parametrize("claims", [26 * 1024 * 1024, 10])
def test_an_original_that_is_too_large_to_be_forwarded_fails_with_its_size(database, monkeypatch, claims):
    async def scene() -> None:
        monkeypatch.setattr(compose, "MOST", 20_000)
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign(attachments=(file("a.pdf", b"x" * 30_000, claims),)))
            message_id = answer(office, box, "theirs-1", to="dora@elsewhere.example", answering="forward")
            await office.until_idle()
            row = await office.message(message_id)
            assert row["state"] == "failed" and "at most 20000 can be forwarded" in row["reason"]
            assert office.provider.seen["prepare"] == 0

    run(scene())


def test_what_the_provider_says_while_it_is_read_is_heeded(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1")
            office.answers(Answer("read", Parked("429 slow down", after=HOUR)))
            await office.until_idle()
            row, mailbox = await office.message(message_id), await office.box(box)
            assert (row["state"], row["attempt"], mailbox["parked_reason"]) == ("queued", 0, "429 slow down")
            await office.later(2 * HOUR)
            await office.until_idle()
            gone = answer(office, box, "theirs-2")
            await office.until_idle()
            assert office.accepted == [message_id]
            assert (await office.message(gone))["reason"] == "the message that it answers is not in the mailbox"

    run(scene())


def test_what_the_provider_says_while_a_file_is_fetched_is_heeded(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()

            async def fetch() -> AsyncIterator[bytes]:
                yield b"x"
                raise NoToken(Parked("429 slow down", after=HOUR))

            broken = OriginalFile("a.pdf", "application/pdf", 2, fetch)
            office.provider.originals.append(foreign(attachments=(broken,)))
            message_id = answer(office, box, "theirs-1", to="dora@elsewhere.example", answering="forward")
            await office.until_idle()
            row, mailbox = await office.message(message_id), await office.box(box)
            assert (row["state"], row["attempt"], mailbox["parked_reason"]) == ("queued", 0, "429 slow down")
            office.provider.originals[:] = [foreign(attachments=(file("a.pdf", b"xy"),))]
            await office.later(2 * HOUR)
            await office.until_idle()
            assert office.accepted == [message_id]

    run(scene())


def test_a_reply_that_is_left_with_nobody_fails(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            own = office.client.mailboxes.list()[0].address
            office.provider.originals.append(foreign(sender=("", own), to=(("", own), ("", "no address")), cc=()))
            message_id = answer(office, box, "theirs-1")
            await office.until_idle()
            row = await office.message(message_id)
            assert row["state"] == "failed" and "it names nobody else" in row["reason"] and own not in row["reason"]

    run(scene())


def test_an_answer_can_be_left_as_a_draft_with_its_ids_and_counts_nowhere(database):
    async def scene() -> None:
        async with inside(database.settings, MemoryProvider(drafts=True)) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1", mode="draft")
            await office.until_idle()
            view, row = office.client.get(message_id), await office.message(message_id)
            assert (view.state, row["counted_at"], office.accepted) == ("drafted", None, [])
            assert (view.provider_id, view.conversation_id) == ("draft-1", f"thread-{message_id}")
            (event,) = [each for each in office.client.events().events if each.kind == "drafted"]
            assert event.data["provider_id"] == "draft-1" and event.data["rfc_message_id"] == view.rfc_message_id
            with pytest.raises(InvalidMessage, match="left as a draft"):
                answer(office, box, message_id)

    run(scene())


def test_an_original_whose_delivered_id_nobody_told_is_read_for_it(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.answers(Sent("at-1", None, "thread-1", {"rfc_message_id": "Gmail did not answer in time"}))
            (first,) = office.enqueue(box, subject="Offer")
            await office.until_idle()
            office.provider.originals.append(foreign(message_id="at-1", rfc_message_id="<CAF=x1@mail.gmail.com>"))
            second = answer(office, box, first)
            await office.until_idle()
            assert (await mail(office, second))["In-Reply-To"] == "<CAF=x1@mail.gmail.com>"
            office.provider.originals.clear()  # its person deleted the copy
            third = answer(office, box, first)
            await office.until_idle()
            assert (await mail(office, third))["In-Reply-To"] == (await office.message(first))["rfc_message_id"]
            assert office.accepted == [second, third]

    run(scene())


# ── meanwhile ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_composed_recipient_who_is_suppressed_cancels_it_at_the_gate(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.client.suppress(BOB[1], "asked")
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1", answering="reply_all")
            await office.until_idle()
            row = await office.message(message_id)
            assert (row["state"], row["reason"]) == ("cancelled", "suppressed") and office.accepted == []

    run(scene())


def test_composed_recipients_count_before_the_gate(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox({"recipients": 2})
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1", answering="reply_all")
            await office.until_idle()
            row = await office.message(message_id)
            assert (row["state"], row["recipients"], office.accepted) == ("failed", 4, [])
            assert "limit of recipients" in row["reason"]

    run(scene())


def test_a_cancel_while_it_is_composed_wins(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            reading, go_on = asyncio.Event(), asyncio.Event()

            async def fetch() -> AsyncIterator[bytes]:
                reading.set()
                await go_on.wait()
                yield b"x"

            office.provider.originals.append(foreign(attachments=(OriginalFile("a.pdf", "application/pdf", 1, fetch),)))
            message_id = answer(office, box, "theirs-1", to="dora@elsewhere.example", answering="forward")
            await office.begin()
            await until(reading.is_set)
            before = await stored(office, message_id)
            assert office.client.cancel(message_id).answer == "cancelled"
            go_on.set()
            await office.process.engine.drain()
            await office.until_idle()
            assert (await office.message(message_id))["state"] == "cancelled" and office.accepted == []
            assert await stored(office, message_id) == before, "what is cancelled is not written to any more"

    run(scene())


def test_of_two_workers_that_compose_at_once_one_stores_and_its_bytes_go_out(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1", answering="reply_all")
            first, second = await _claimed_twice(office, box)
            final = await _compose(office, *first, "Theirs")
            assert isinstance(final, compose.Composed)
            before, row = await stored(office, message_id), await office.message(message_id)
            await _compose(office, *second, "Mine")
            assert await stored(office, message_id) == before and await office.message(message_id) == row
            assert b"Subject: Re: Theirs" in before
            await office.w.db.execute("UPDATE outtray.mailbox SET turn_until = NULL, next_at = outtray.outtray_now()")
            await office.until_idle()
            (taken,) = office.provider.accepted
            assert taken.size == len(before)

    run(scene())


async def _claimed_twice(office: Inside, box: UUID) -> list[Any]:
    """Two turns that both read the message before either composed it."""
    held = []
    for _ in range(2):
        await office.w.db.execute(
            "UPDATE outtray.mailbox SET next_at = outtray.outtray_now(),"
            " turn_until = CASE WHEN turn_fence > 0 THEN outtray.outtray_now() END"
        )
        claimed = await office.w.claim(box)
        assert claimed is not None
        (message,) = await office.w.due(box)
        held.append((claimed, message, await office.process.content.load(message)))
    return held


async def _compose(office: Inside, claimed: Any, message: Any, content: Any, subject: str) -> Any:
    office.provider.originals[:] = [foreign(subject=subject)]
    session = office.process.open_session(claimed)
    try:
        return await compose.make_final(office.process, session, claimed, message, message.version, content)
    finally:
        content.release()


def test_an_answer_with_a_large_file_gets_its_headers_and_the_file_stays_where_it_is_stored(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            plan = bytes(range(256)) * 12_000
            message_id = answer(office, box, "theirs-1", attachments=[Attachment("plan.bin", plan)])
            query = "SELECT attachment_id, n, data FROM outtray.attachment_chunk ORDER BY n"
            before = await office.w.rows(query)
            await office.until_idle()
            assert await office.w.rows(query) == before and len(before) > 3
            written = await mail(office, message_id)
            assert (written["To"], written["Subject"]) == ("Ann <ann@elsewhere.example>", "Re: Offer")
            (part,) = written.iter_attachments()
            assert part.get_payload(decode=True) == plan
            (taken,) = office.provider.accepted
            assert taken.size == len(await stored(office, message_id)) == (await office.message(message_id))["size"]

    run(scene())


def test_a_large_answer_gets_its_headers_without_its_body_being_written_again(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            plan = "Is it still valid?\n" * 200_000
            message_id = answer(office, box, "theirs-1", text=plan)
            query = "SELECT n, data FROM outtray.content_chunk WHERE message_id = %s ORDER BY n"
            before = await office.w.rows(query, message_id)
            await office.until_idle()
            after = await office.w.rows(query, message_id)
            assert before[0] != after[0] and before[1:] == after[1:] and len(after) > 3
            written = await mail(office, message_id)
            assert (written["To"], written["Subject"]) == ("Ann <ann@elsewhere.example>", "Re: Offer")
            assert written.get_content().replace("\r\n", "\n") == plan
            (taken,) = office.provider.accepted
            assert taken.size == len(await stored(office, message_id)) == (await office.message(message_id))["size"]

    run(scene())


def test_after_a_turn_that_died_it_is_composed_under_the_version_that_was_counted(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            message_id = answer(office, box, "theirs-1")
            await office.w.db.execute("UPDATE outtray.mailbox SET dead_turns = 1")
            await office.round()
            row = await office.message(message_id)
            assert (row["state"], row["version"], row["prepares"]) == ("queued", 2, 1)
            await office.until_idle()
            assert office.accepted == [message_id] and office.provider.seen["read"] == 1

    run(scene())


def test_nothing_of_an_original_stands_in_a_table_unsealed(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals += [
                foreign(),
                foreign(message_id="theirs-2", attachments=(file("canary", b"x", 1 << 40),)),
            ]
            answer(office, box, "theirs-1", answering="reply_all")
            answer(office, box, "theirs-2", to="dora@elsewhere.example", answering="forward")
            await office.until_idle()
            assert await office.states() == {"sent": 1, "failed": 1}
            tables = ("message", "recipient", "content", "content_chunk", "journal", "event")
            shown = str([await office.w.rows(f"SELECT t::text FROM outtray.{table} t") for table in tables])
            for canary in ("elsewhere.example", "Offer", "still valid", "Ann", "Bob", "canary"):
                assert canary not in shown and canary.encode().hex() not in shown

    run(scene())


def test_what_was_composed_keeps_its_metadata_its_sender_and_its_own_words(database):
    async def scene() -> None:
        async with inside(database.settings) as office:
            box = await office.mailbox()
            office.provider.originals.append(foreign())
            message_id = answer(
                office, box, "theirs-1", metadata={"deal": 7}, headers={"X-Campaign": "spring"}, importance="high",
                request_read_receipt=True, reply_to="Desk <desk@example.org>", subject="Own words", html="<p>t</p>",
            )  # fmt: skip
            await office.until_idle()
            view, written = office.client.get(message_id), await mail(office, message_id)
            assert view.metadata == {"deal": 7} and view.subject == written["Subject"] == "Own words"
            assert (written["X-Campaign"], written["Importance"], written["X-Priority"]) == ("spring", "high", "1")
            assert view.sender is not None and written["Disposition-Notification-To"] == view.sender.email
            assert written["Reply-To"] == "Desk <desk@example.org>"
            assert written["Message-ID"] == view.rfc_message_id
            assert written.get_body(("html",)).get_content().strip() == "<p>t</p>"
            (row,) = await office.w.rows("SELECT head FROM outtray.content WHERE message_id = %s", message_id)
            assert open_head(office.process.vault, message_id, row["head"]).asked is None

    run(scene())
