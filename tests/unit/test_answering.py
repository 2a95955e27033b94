"""Answering, by itself: subjects, threads and recipients, whatever a stranger wrote into the mail that is answered."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes, policy
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.address import Address, normalise_address
from outtray_schema.answering import (
    MOST_REFERENCES,
    Original,
    answered_subject,
    asked_of,
    base_subject,
    compose,
    message_asked,
    original_of,
    thread_of,
)
from outtray_schema.errors import InvalidMessage
from outtray_schema.message import Attachment, Message, parse_message
from outtray_schema.mime import freeze, header_block

OWN = ("Me@Sender.example", "sales@sender.example")
SENDER = Address("me@sender.example", "Me")
DATE = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)
EVIL = st.text(alphabet=st.sampled_from("aäß:;,<>@\r\n\t\0\x0b\x1c\x85\u2028\u2029\ud800 =?\"'()[]"), max_size=60)
ADDRESSES = st.sampled_from(
    [
        "ME@sender.example",
        "me@SENDER.example",
        "Sales@sender.example",
        "ann@x.example",
        "ANN@x.example",
        "bob@x.example",
    ]
)
PEOPLE = st.lists(st.tuples(st.sampled_from(["", "Ann", "Lee, Bob"]), ADDRESSES), max_size=5)


def asks(**fields: Any) -> Message:
    return Message(**{"reply_to_message": "theirs-1", "text": "Yes", **fields})


def original(**fields: Any) -> Original:
    values: dict[str, Any] = {"rfc_message_id": "<a@x.example>", "subject": "Offer", "sender": ("Ann", "ann@x.example")}
    return original_of(**(values | fields))


def emails(addresses: tuple[Address, ...]) -> list[str]:
    return [each.email for each in addresses]


# ── the subject ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "subject",
    ["Offer", "Re: Offer", "RE:Offer", "re : Offer", "AW: Re: Offer", "Fwd: RE: Offer", "WG: Offer", "SV: VS: Offer",
     "Re[2]: Offer", "AW(3): Offer", "回复：Offer", "RE: FW: TR: RV: Odp: Offer", "Antw:  Re: Offer", "ΑΠ: Offer"],
)  # fmt: skip
def test_a_prefix_stands_once_in_whatever_language_it_came(subject: str) -> None:
    assert answered_subject(subject, forward=False) == "Re: Offer"
    assert answered_subject(subject, forward=True) == "Fwd: Offer"


@pytest.mark.parametrize(
    "subject", ["Reply: Offer", "Regarding: Offer", "R: Offer", "[list] Re: Offer", "Retro:spective"]
)
def test_what_only_looks_like_a_prefix_stays(subject: str) -> None:
    assert answered_subject(subject, forward=False) == f"Re: {subject}"


@given(st.lists(st.sampled_from(["Re: ", "AW:", "fwd : ", "WG: ", "RE[4]: ", "SV:  "]), max_size=6), EVIL)
def test_a_prefix_is_never_doubled_and_a_second_answer_changes_nothing(prefixes: list[str], rest: str) -> None:
    for forward, prefix in ((False, "Re:"), (True, "Fwd:")):
        subject = answered_subject("".join(prefixes) + rest, forward=forward)
        assert subject.startswith(prefix)
        base = subject.removeprefix(prefix).strip()
        assert base_subject(base) == base
        assert answered_subject(subject, forward=forward) == subject


def test_a_subject_that_the_app_gives_stays_as_it_is() -> None:
    assert compose(asks(subject="AW: Offer"), original(), OWN).subject == "AW: Offer"
    assert compose(asks(), original(subject=""), OWN).subject == "Re:"


# ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_references_are_the_originals_and_then_its_own_id() -> None:
    chain = ["<1@x.example>", "<2@x.example>", "<1@x.example>", "no id", "<a@x.example>"]
    composed = compose(asks(), original(references=chain), OWN)
    assert composed.in_reply_to == "<a@x.example>"
    assert composed.references == ("<1@x.example>", "<2@x.example>", "<a@x.example>")


def test_a_long_chain_keeps_its_beginning_and_its_latest() -> None:
    chain = [f"<{n}@x.example>" for n in range(500)]
    _, references = thread_of(original(references=chain))
    assert len(references) == MOST_REFERENCES
    assert (references[0], references[-2], references[-1]) == (chain[0], chain[-1], "<a@x.example>")


def test_an_original_without_a_usable_id_is_answered_without_naming_it() -> None:
    for bad in (None, "", "no id", "<a b@x.example>", "<a@x.example>\r\nBcc: eve@x.example"):
        composed = compose(asks(), original(rfc_message_id=bad, references=["<1@x.example>"]), OWN)
        assert (composed.in_reply_to, composed.references) == (None, ())


# ── the recipients ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reply_goes_to_reply_to_or_from_and_to_nobody_else() -> None:
    others: dict[str, Any] = {"to": [("", "me@sender.example"), ("", "bob@x.example")], "cc": [("", "carl@x.example")]}
    assert emails(compose(asks(), original(**others), OWN).to) == ["ann@x.example"]
    desk = compose(asks(cc="dora@x.example"), original(reply_to=[("Desk", "desk@x.example")], **others), OWN)
    assert (emails(desk.to), emails(desk.cc)) == (["desk@x.example"], ["dora@x.example"])
    given_to = compose(asks(to="eve@x.example"), original(**others), OWN)
    assert emails(given_to.to) == ["eve@x.example"]


def test_an_answer_to_what_the_mailbox_itself_sent_follows_up_to_its_recipients() -> None:
    sent = original(sender=("", "sales@sender.example"), reply_to=[("", "desk@x.example")],
                    to=[("", "ann@x.example"), ("", "me@sender.example")], cc=[("", "bob@x.example")])  # fmt: skip
    assert emails(compose(asks(), sent, OWN).to) == ["ann@x.example"]
    to_all = compose(asks(answering="reply_all"), sent, OWN)
    assert (emails(to_all.to), emails(to_all.cc)) == (["ann@x.example"], ["bob@x.example"])


@given(
    PEOPLE,
    PEOPLE,
    PEOPLE,
    st.one_of(st.none(), st.tuples(st.just(""), ADDRESSES)),
    st.sampled_from(["reply", "reply_all"]),
)
def test_no_answer_goes_to_the_mailbox_itself_nor_to_anybody_twice(
    to: list[Any], cc: list[Any], reply_to: list[Any], sender: Any, answering: Any
) -> None:
    seen, own = original(to=to, cc=cc, reply_to=reply_to, sender=sender), {normalise_address(each) for each in OWN}
    try:
        composed = compose(asks(answering=answering), seen, OWN)
    except InvalidMessage as error:
        assert [problem.field for problem in error.problems] == ["to"]
        follows_up = sender is not None and normalise_address(sender[1]) in own
        reached = [*to, *cc] if follows_up else [*reply_to, *([sender] if sender else []), *to]
        reached += cc if answering == "reply_all" else []
        assert {normalise_address(email) for _, email in reached} <= own, "somebody else was there to be answered"
        return
    found = [normalise_address(each.email) for each in (*composed.to, *composed.cc)]
    assert len(set(found)) == len(found) > 0
    assert not set(found) & own


def test_people_whose_address_is_none_are_left_out() -> None:
    to = [
        ("", ""),
        ("", "undisclosed-recipients:;"),
        ("x" * 500, "bob@x.example"),
        ("Eve\r\nBcc: e@x.example", "e@x.example"),
    ]
    composed = compose(asks(answering="reply_all"), original(to=to), OWN)
    assert emails(composed.to) == ["ann@x.example", "bob@x.example", "e@x.example"]
    assert composed.to[2].name == "Eve Bcc: e@x.example" and len(composed.to[1].name) == 256


# ── what a stranger wrote ───────────────────────────────────────────────────────────────────────────────────────────


@given(EVIL, EVIL, EVIL, EVIL, st.sampled_from(["reply_all", "forward"]))
def test_nothing_of_an_original_becomes_a_header_of_ours(
    subject: str, name: str, reference: str, filename: str, answering: Any
) -> None:
    from outtray_schema.quoting import foreign_file

    seen = original(
        subject=f"{subject}\r\nX-Evil: 1", sender=(f"{name}\r\nX-Evil: 1", "ann@x.example"),
        references=[f"<{reference}>", reference, "<b@x.example>\r\nX-Evil: 1"], text=f"{subject}\0", html=f"<p>{name}",
        attachments=[foreign_file(f"{filename}\r\nX-Evil: 1", b"x", f"text/x\r\nX-Evil: 1{filename}", reference)],
    )  # fmt: skip
    message = compose(asks(answering=answering, to="bob@x.example", html="<p>Hi"), seen, OWN)
    mime = freeze(message, sender=SENDER, rfc_message_id="<o@sender.example>", date=DATE)
    parsed = message_from_bytes(b"".join(mime.pieces()), policy=policy.default)
    for part in parsed.walk():
        assert "X-Evil" not in part and "Bcc" not in part
    assert parsed["In-Reply-To"] in ("<a@x.example>", None)
    assert [part.get_content_maintype() for part in parsed.walk() if not part.is_multipart()].count("text") >= 2


# ── what is asked, until it can be final ────────────────────────────────────────────────────────────────────────────


def test_what_was_asked_comes_back_as_it_was_with_bodies_and_files() -> None:
    asked = asks(
        to="Bob Lee <bob@x.example>", cc="carl@x.example", bcc="dora@x.example", reply_to="Desk <desk@x.example>",
        subject="Ä", headers={"X-Campaign": "spring"}, importance="low", request_read_receipt=True, answering="forward",
        text="Grüße\nAnn\n", html="<p>Grüße</p>", reply_to_message=uuid4(),
        attachments=[Attachment("offer.pdf", b"%PDF" * 5000), Attachment("ä.png", b"\x89", inline_id="logo"),
                     Attachment("a.csv", b"a;b", content_type='text/csv; charset="utf-8"')],
    )  # fmt: skip
    mime = freeze(asked, sender=SENDER, rfc_message_id="<o@sender.example>", date=DATE)
    whole = b"".join(mime.pieces())
    assert whole[: mime.headers] == header_block(asked, SENDER, "<o@sender.example>", DATE)
    assert isinstance(asked.reply_to_message, UUID)
    again = message_asked(asked_of(asked, asked.reply_to_message, mime.headers, DATE), whole)
    for field in ("to", "cc", "bcc", "reply_to", "subject", "headers", "importance", "request_read_receipt",
                  "answering", "reply_to_message", "html"):  # fmt: skip
        assert getattr(again, field) == getattr(asked, field), field
    found = {each.filename: each for each in again.attachments}
    for each in asked.attachments:
        assert (found[each.filename].content, found[each.filename].inline_id) == (each.content, each.inline_id)
    assert found["a.csv"].mime_type.startswith("text/csv")
    frozen_again = freeze(again, sender=SENDER, rfc_message_id="<o@sender.example>", date=DATE)
    assert len(b"".join(frozen_again.pieces())) == mime.size


# ── the door ────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(**fields: Any) -> set[str]:
    with pytest.raises(InvalidMessage) as caught:
        Message(**fields)
    return {problem.field for problem in caught.value.problems}


def test_an_answer_may_leave_its_recipients_and_subject_to_its_original_but_a_forward_names_whom() -> None:
    assert asks().to == () and asks(answering="reply_all").recipients == ()
    assert refused(reply_to_message="theirs-1", answering="forward") == {"to"}
    assert asks(answering="forward", to="a@x.example", text=None).text is None
    assert refused(reply_to_message="theirs-1") == {"text"}


def test_what_contradicts_itself_is_refused_by_its_field() -> None:
    assert refused(to="a@x.example", text="x", answering="reply_all") == {"answering"}
    assert refused(reply_to_message="x-1234", text="x", in_reply_to="<a@x.example>", references="<a@x.example>") == {
        "in_reply_to", "references",
    }  # fmt: skip
    for bad in ("", "no id", "<no id>", "a\r\nb", "x/../y?", 5, "../../users/other"):
        assert refused(reply_to_message=bad, text="x") == {"reply_to_message"}, bad
    assert refused(to="a@x.example", text="x", mode="sketch", importance="urgent", request_read_receipt="yes") == {
        "mode", "importance", "request_read_receipt",
    }  # fmt: skip


def test_a_reference_is_one_of_ours_a_message_id_or_the_providers_id() -> None:
    ours = uuid4()
    assert asks(reply_to_message=str(ours).upper()).reply_to_message == ours
    for theirs in ("<CAF=x1_@mail.gmail.com>", "18c0ffee18c0ffee", "AAMkAGI2TG93AAA=", ours.hex):
        assert asks(reply_to_message=theirs).reply_to_message == theirs
    message = parse_message({"reply_to_message": str(ours), "answering": "reply_all", "text": "x", "mode": "draft"})
    assert (message.reply_to_message, message.answering, message.mode) == (ours, "reply_all", "draft")


def test_importance_and_receipt_stand_in_the_headers_and_cannot_stand_there_twice() -> None:
    plain = Message(to="a@x.example", text="x")
    high = Message(to="a@x.example", text="x", importance="high", request_read_receipt=True)
    low = Message(to="a@x.example", text="x", importance="low")
    blocks = [header_block(each, SENDER, "<o@sender.example>", DATE).decode() for each in (plain, high, low)]
    assert "Importance" not in blocks[0] and "Disposition" not in blocks[0]
    assert "Importance: high\r\nX-Priority: 1\r\nDisposition-Notification-To: me@sender.example\r\n" in blocks[1]
    assert "Importance: low\r\nX-Priority: 5\r\n" in blocks[2]
    for name in ("Importance", "x-priority", "Disposition-Notification-To"):
        assert refused(to="a@x.example", text="x", headers={name: "x"}) == {f"headers[{name}]"}
