"""The reply table as data, redaction, dot-stuffing, and the strict reading of replies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outtray_schema.outcome import Failed, Held, Parked, Retry
from outtray_worker.providers.redact import Redactor
from outtray_worker.providers.smtp.body import DotStuffing
from outtray_worker.providers.smtp.dialogue import path
from outtray_worker.providers.smtp.replies import ROWS, Phase, classify, enhanced_code
from outtray_worker.providers.smtp.wire import Garbled, Wire

PHASES: tuple[Phase, ...] = get_args(Phase)
SPENDS_AN_ATTEMPT = ("message", "recipient")


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_row_ids_are_unique_and_every_row_says_where_it_is_known_from() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.source and re.fullmatch(r"20\d\d-\d\d", row.as_of), row.id
        assert row.phases and set(row.phases) <= set(PHASES), row.id
        assert set(row.codes) <= set(range(400, 600)), row.id


def test_unknown_rows_stand_last() -> None:
    known = [not row.id.startswith("unknown-") for row in ROWS]
    assert known == sorted(known, reverse=True)


@given(st.sampled_from(PHASES), st.integers(400, 599), st.text(max_size=60))
def test_every_refusal_in_every_phase_has_a_verdict(phase: Phase, code: int, text: str) -> None:
    verdict = classify(phase, code, enhanced_code(text), text)
    outcome = verdict.outcome("why", {})
    assert isinstance(outcome, Retry | Parked | Held | Failed)


@given(st.integers(400, 599), st.text(max_size=60))
def test_nothing_before_the_sender_was_named_spends_a_messages_attempt(code: int, text: str) -> None:
    for phase in ("connect", "ehlo", "starttls", "auth"):
        assert isinstance(classify(phase, code, enhanced_code(text), text).outcome("", {}), Parked | Held)


@given(st.sampled_from(PHASES), st.integers(400, 499))
def test_a_temporary_reply_never_fails_a_message_by_its_code_alone(phase: Phase, code: int) -> None:
    assert isinstance(classify(phase, code, "", "later").outcome("", {}), Parked | Retry)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_parked_rows_name_who_waits_and_others_spend_an_attempt_of_their_own(row: object) -> None:
    assert hasattr(row, "becomes") and hasattr(row, "scope")
    if row.becomes == "parked":
        assert row.scope not in SPENDS_AN_ATTEMPT
    if row.becomes in ("retry", "failed"):
        assert row.scope in SPENDS_AN_ATTEMPT


@pytest.mark.parametrize("code", [200, 250, 354, 399, 600])
def test_what_is_no_refusal_is_never_classified(code: int) -> None:
    with pytest.raises(LookupError):
        classify("dot", code, "", "")


def test_an_enhanced_code_decides_nothing_without_its_base_code_and_text() -> None:
    assert classify("dot", 550, "5.2.252", "5.2.252 Sender throttled").id == "sender-throttled"
    assert classify("dot", 554, "5.2.252", "5.2.252 SendAsDenied").id == "send-as-denied"
    assert classify("dot", 554, "5.2.0", "5.2.0 something new").id == "unknown-refusal"
    assert classify("auth", 454, "4.7.0", "4.7.0 Too many login attempts").id == "too-many-logins"
    assert classify("auth", 454, "4.7.0", "4.7.0 Cannot authenticate").id == "auth-temporary"


def test_a_sentence_that_runs_over_two_lines_is_read_whole() -> None:
    text = "5.4.5 Daily user sending\n5.4.5 limit exceeded. For more information on Gmail"
    assert classify("dot", 550, enhanced_code(text), text).id == "daily-limit"


@pytest.mark.parametrize(
    ("text", "code"),
    [("5.7.8 no", "5.7.8"), ("5.7.139", "5.7.139"), ("no 5.7.8", ""), ("5.7.8x", ""), ("3.1.1 x", ""), ("", "")],
)
def test_the_enhanced_code_is_the_texts_first_word(text: str, code: str) -> None:
    assert enhanced_code(text) == code


# ── redaction ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.text(max_size=40), st.from_regex(r"[a-z.]{1,12}@[a-z]{1,9}\.[a-z]{2,5}", fullmatch=True), st.text(max_size=40)
)
def test_no_address_survives_redaction(before: str, address: str, after: str) -> None:
    assert "@" not in Redactor()(f"{before} {address} {after}")


@given(st.from_regex(r"[A-Za-z0-9!$%&()*+,.:;_-]{3,80}", fullmatch=True), st.sampled_from(["", "so ", "password="]))
def test_no_secret_survives_redaction_in_any_case(secret: str, before: str) -> None:
    redact = Redactor(secret)
    for said in (secret, secret.upper(), secret.lower()):
        left = redact(f"550 {before}{said} is wrong").casefold().replace("<…>", "")
        assert secret.casefold() not in left.replace("550", "").replace("is wrong", "").replace(before.strip(), "")


def test_a_log_in_link_loses_its_token() -> None:
    text = "5.7.14 <https://accounts.example/signin?sarp=1&plt=AKgnsbtXy> Please log in, or https://x.example/a?b=c#d"
    assert Redactor()(text) == "5.7.14 <…> Please log in, or https://x.example/a?…"


@given(st.text(max_size=2000))
def test_evidence_is_short_and_printable(text: str) -> None:
    left = Redactor()(text)
    assert len(left) <= 300
    assert not re.search(r"[\x00-\x1f\x7f]", left)


# ── dot-stuffing ────────────────────────────────────────────────────────────────────────────────────────────────────

lines = st.lists(st.sampled_from([b"", b".", b"..", b".a", b"a.", b"text", b"." * 5]), max_size=12)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(marks)]


@given(lines, st.lists(st.integers(0, 200)))
def test_dot_stuffing_is_the_same_wherever_the_pieces_were_cut(texts: list[bytes], places: list[int]) -> None:
    body = b"".join(text + b"\r\n" for text in texts)
    stuffing = DotStuffing()
    wire = b"".join(stuffing.feed(piece) for piece in cut(body, places)) + stuffing.end()
    expected = b"".join((b"." + text if text.startswith(b".") else text) + b"\r\n" for text in texts)
    assert wire == expected
    assert not stuffing.bare_breaks
    assert b"\r\n.\r\n" not in b"\r\n" + wire


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"a"]), max_size=12), st.lists(st.integers(0, 50)))
def test_a_bare_cr_or_lf_is_seen_wherever_the_pieces_were_cut(parts: list[bytes], places: list[int]) -> None:
    body = b"".join(parts)
    stuffing = DotStuffing()
    for piece in cut(body, places):
        stuffing.feed(piece)
    assert stuffing.bare_breaks == bool(re.search(rb"\r(?!\n)|(?<!\r)\n", body))


@given(st.text(max_size=20), st.text(max_size=20))
def test_an_address_is_one_path_or_none(local: str, domain: str) -> None:
    try:
        written = path(f"{local}@{domain}")
    except ValueError:
        return
    assert not re.search(rb"[\x00-\x1f\x7f<>]", written)


# ── reading replies ─────────────────────────────────────────────────────────────────────────────────────────────────


def read_all(pieces: Sequence[bytes], count: int) -> list[tuple[int, str]]:
    async def read() -> list[tuple[int, str]]:
        wire = Wire(asyncio.get_running_loop())
        for piece in pieces:
            wire.data_received(piece)
        return [tuple(await wire.read_response(timeout=0)) for _ in range(count)]  # type: ignore[misc]

    return asyncio.run(read())


@given(st.lists(st.integers(0, 300)))
def test_replies_are_read_in_order_however_they_arrive(places: list[int]) -> None:
    said = b"220 hello\r\n250-one\r\n250-two\r\n250 three\r\n354\r\n550 5.1.1 no\n"
    replies = [(220, "hello"), (250, "one\ntwo\nthree"), (354, ""), (550, "5.1.1 no")]
    assert read_all(cut(said, places), 4) == replies


@pytest.mark.parametrize(
    "garbage",
    [b"hello\r\n", b"25 0\r\n", b"2500 x\r\n", b"150 x\r\n", b"650 x\r\n", b"250x\r\n", b"\r\n", b"250-a\r\n251 b\r\n",
     b"x" * 9000, b"250-" + b"x" * 9000 + b"\r\n250 x\r\n", b"250-x\r\n" * 600 + b"250 x\r\n"],
)  # fmt: skip
def test_what_is_no_reply_is_garbled_and_stays_so(garbage: bytes) -> None:
    with pytest.raises(Garbled):
        read_all([garbage, b"250 fine again\r\n"], 1)


def test_a_reply_that_came_before_garbage_still_counts() -> None:
    assert read_all([b"250 taken\r\nnonsense\r\n"], 1) == [(250, "taken")]


def test_half_a_reply_is_no_reply() -> None:
    with pytest.raises(TimeoutError):
        read_all([b"250 2.0.0 Ok: que"], 1)
