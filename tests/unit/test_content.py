"""Stored content: sealed, bound to its row, streamed in chunks, and known to be complete."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.address import Address
from outtray_schema.attachment import Attachment
from outtray_schema.content import CHUNK, BodyCheck, Head, open_body, open_chunk, open_head, sealed_content
from outtray_schema.errors import CannotOpen, InvalidMessage
from outtray_schema.ids import new_id
from outtray_schema.keyfile import new_keys
from outtray_schema.message import Message
from outtray_schema.mime import Apart, FrozenMime, freeze
from outtray_schema.vault import vault_of

VAULT = vault_of(new_keys(), "test")
SENDER = Address("me@example.com", "Me")
MESSAGE_ID = new_id()


def frozen(**fields: Any) -> tuple[Head, FrozenMime]:
    message = Message(**{"to": "ann@example.com", "text": "Hello", **fields})
    mime = freeze(message, sender=SENDER, rfc_message_id="<a@example.com>", date=datetime(2027, 1, 1, tzinfo=UTC))
    return Head.of(message, SENDER), mime


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3))
def test_a_head_is_read_as_it_was_stored(subject: str, metadata: dict[str, Any]) -> None:
    try:
        head, mime = frozen(to="a@x.com", cc="b@x.com", bcc="jörg@x.com", subject=subject, metadata=metadata)
    except InvalidMessage:
        return
    sealed = sealed_content(VAULT, MESSAGE_ID, head, mime)
    read = open_head(VAULT, MESSAGE_ID, sealed.head)
    assert read == head
    assert read.recipients == (("to", "a@x.com"), ("cc", "b@x.com"), ("bcc", "jörg@x.com"))
    assert read.needs_smtputf8
    assert (read.sender, read.sender_name, read.metadata) == ("me@example.com", "Me", metadata)


def test_a_small_body_is_inline_and_a_large_one_in_chunks_of_one_mebibyte() -> None:
    head, mime = frozen()
    small = sealed_content(VAULT, MESSAGE_ID, head, mime)
    assert small.body is not None and list(small.chunks()) == []
    assert open_body(VAULT, MESSAGE_ID, small.body) == b"".join(mime.pieces())
    head, mime = frozen(attachments=[Attachment("a.bin", bytes(2_000_000))])
    large = sealed_content(VAULT, MESSAGE_ID, head, mime)
    chunks = [open_chunk(VAULT, MESSAGE_ID, n, data) for n, data in large.chunks()]
    assert large.body is None
    assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK] * (len(chunks) - 1) and len(chunks) == 3
    assert b"".join(chunks) == b"".join(mime.pieces())


@pytest.mark.parametrize("extra", [0, 1])
def test_the_bound_between_inline_and_chunks_is_exact(extra: int) -> None:
    def pieces() -> Any:
        yield from (b"x" * CHUNK, b"y" * extra)

    sealed = sealed_content(VAULT, MESSAGE_ID, frozen()[0], FrozenMime(CHUNK + extra, bytes(32), pieces))
    assert (sealed.body is None) == bool(extra)
    assert len(list(sealed.chunks())) == 2 * extra


def test_a_head_with_files_apart_is_one_that_the_release_before_cannot_take_for_a_whole_message() -> None:
    head = replace(frozen()[0], apart=(Apart(7, new_id(), 8), Apart(9, new_id(), 10)))
    text = head.to_json()
    assert Head.from_json(text) == head
    with pytest.raises(ValueError, match="unpack"):  # what it did with a head: it tries again later, and sends nothing
        _, _, _, _, _, *_ = json.loads(text)


def test_nothing_sealed_shows_what_it_holds() -> None:
    head, mime = frozen(subject="canary-subject", text="canary-text", metadata={"id": "canary-id"}, to="canary@x.com")
    sealed = sealed_content(VAULT, MESSAGE_ID, head, mime)
    assert b"canary" not in sealed.head + (sealed.body or b"") + sealed.body_hash
    assert "canary" not in repr(head) + repr(sealed) + repr(mime)


def test_content_of_another_message_or_place_does_not_open() -> None:
    head, mime = frozen(attachments=[Attachment("a.bin", bytes(2_000_000))])
    sealed = sealed_content(VAULT, MESSAGE_ID, head, mime)
    first = dict(sealed.chunks())[0]
    with pytest.raises(CannotOpen):
        open_head(VAULT, new_id(), sealed.head)
    with pytest.raises(CannotOpen):
        open_body(VAULT, MESSAGE_ID, sealed.head)
    with pytest.raises(CannotOpen):
        open_chunk(VAULT, MESSAGE_ID, 1, first)
    with pytest.raises(CannotOpen):
        open_chunk(VAULT, new_id(), 0, first)


def test_a_missing_piece_is_noticed_before_the_end() -> None:
    head, mime = frozen(attachments=[Attachment("a.bin", bytes(2_000_000))])
    sealed = sealed_content(VAULT, MESSAGE_ID, head, mime)
    chunks = [open_chunk(VAULT, MESSAGE_ID, n, data) for n, data in sealed.chunks()]
    whole = BodyCheck(VAULT, MESSAGE_ID, sealed.body_hash)
    for chunk in chunks:
        whole.add(chunk)
    whole.verify()
    cut = BodyCheck(VAULT, MESSAGE_ID, sealed.body_hash)
    for chunk in chunks[:-1]:
        cut.add(chunk)
    with pytest.raises(CannotOpen, match="not complete"):
        cut.verify()


def test_two_messages_with_one_content_have_different_hashes() -> None:
    head, mime = frozen()
    assert (
        sealed_content(VAULT, new_id(), head, mime).body_hash != sealed_content(VAULT, new_id(), head, mime).body_hash
    )
