"""What every provider does, run over all of them. The queue believes nothing else of a provider."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from provider_rigs import (
    BCC,
    CANARIES,
    RECIPIENTS,
    USER,
    Fault,
    Rig,
    Taken,
    bytes_of,
    deliver,
    digest,
    kept,
    new_mail,
    soon,
)

from outtray_schema.outcome import Failed, NotBegun, Outcome, Sent, Unknown
from outtray_worker.deadline import Deadline, boottime
from polling import until

LATE: dict[Fault, int] = {
    "never answers": 0,
    "takes, never answers": 1,
    "takes, loses the answer": 1,
    "breaks": 0,
}


def test_a_mail_arrives_once_unaltered_and_with_its_envelope(rig: Rig) -> None:
    mail = new_mail()
    outcome = rig.run(deliver(rig, mail))
    assert isinstance(outcome, Sent)
    delivered_as_given = outcome.rfc_message_id == mail.rfc_message_id
    assert delivered_as_given is rig.differs.keeps_message_id
    assert (outcome.rfc_message_id is not None) is rig.differs.reads_back
    sent = kept(rig, rig.run(bytes_of(mail)))
    assert rig.taken() == [Taken(mail.rfc_message_id, USER, RECIPIENTS, digest(sent), len(sent))]
    assert rig.handovers() == 1


def test_bytes_arrive_unaltered_wherever_the_pieces_were_cut(rig: Rig) -> None:
    async def all_cuts() -> list[str]:
        digests = []
        session = rig.provider.open(rig.account)
        for piece in (1, 2, 3, 5, 8, 1000):
            mail = new_mail(piece)
            digests.append(digest(kept(rig, await bytes_of(mail))))
            assert isinstance(await (await session.prepare(mail)).hand_over(soon(), soon()), Sent)
        await session.close()
        return digests

    assert rig.run(all_cuts()) == [mail.sha256 for mail in rig.taken()]


def test_bcc_stands_in_the_envelope_only(rig: Rig) -> None:
    mail = new_mail()
    rig.run(deliver(rig, mail))
    (taken,) = rig.taken()
    body = rig.run(bytes_of(mail))
    assert BCC in taken.recipients
    assert BCC.encode() not in body
    assert taken.sha256 == digest(kept(rig, body))


def test_a_refusal_before_the_handover_is_definite_and_nothing_was_handed_over(rig: Rig) -> None:
    rig.misbehave("refuses early")
    assert isinstance(rig.run(deliver(rig, new_mail())), Failed)
    assert (rig.handovers(), rig.taken()) == (0, [])


def test_a_refusal_of_the_handover_is_definite(rig: Rig) -> None:
    rig.misbehave("refuses late")
    assert isinstance(rig.run(deliver(rig, new_mail())), Failed)
    assert (rig.handovers(), rig.taken()) == (1, [])


@pytest.mark.parametrize("fault", LATE)
def test_a_handover_without_an_answer_is_unknown_and_never_made_again(rig: Rig, fault: Fault) -> None:
    rig.misbehave(fault)
    begun = boottime()
    outcome = rig.run(deliver(rig, new_mail(), answer_within=0.3))
    assert isinstance(outcome, Unknown)
    assert boottime() - begun < 4
    assert (rig.handovers(), len(rig.taken())) == (1, LATE[fault])


@pytest.mark.parametrize("fault", ["refuses early", "refuses late", *LATE])
def test_the_session_serves_the_next_mail_after_any_fault(rig: Rig, fault: Fault) -> None:
    async def two() -> tuple[Outcome, Outcome]:
        session = rig.provider.open(rig.account)
        outcomes = []
        for _ in range(2):
            prepared = await session.prepare(new_mail())
            outcomes.append(await prepared.hand_over(soon(), soon(0.3)) if hasattr(prepared, "hand_over") else prepared)
        await session.close()
        return outcomes[0], outcomes[1]

    rig.misbehave(fault)
    first, second = rig.run(two())
    assert not isinstance(first, Sent)
    assert isinstance(second, Sent)
    assert len(rig.taken()) == LATE.get(fault, 0) + 1


def test_a_handover_that_comes_too_late_is_not_begun(rig: Rig) -> None:
    async def late() -> Outcome:
        session = rig.provider.open(rig.account)
        prepared = await session.prepare(new_mail())
        outcome = await prepared.hand_over(Deadline(boottime() - 0.001), soon())
        again = await session.prepare(new_mail())
        assert isinstance(await again.hand_over(soon(), soon()), Sent)
        await session.close()
        return outcome

    assert isinstance(rig.run(late()), NotBegun)
    assert (rig.handovers(), len(rig.taken())) == (1, 1)


def test_an_abandoned_mail_is_never_sent_and_the_next_one_is(rig: Rig) -> None:
    async def abandon() -> str:
        session = rig.provider.open(rig.account)
        await (await session.prepare(new_mail())).abandon()
        mail = new_mail()
        assert isinstance(await (await session.prepare(mail)).hand_over(soon(), soon()), Sent)
        await session.close()
        return mail.rfc_message_id

    assert [rig.run(abandon())] == [mail.rfc_message_id for mail in rig.taken()]
    assert rig.handovers() == 1


def test_a_turn_that_ends_with_a_prepared_mail_sends_nothing(rig: Rig) -> None:
    async def end() -> None:
        session = rig.provider.open(rig.account)
        await session.prepare(new_mail())
        await session.close()

    rig.run(end())
    assert (rig.handovers(), rig.taken()) == (0, [])


def test_content_that_cannot_be_read_is_the_callers_error_and_sends_nothing(rig: Rig) -> None:
    class Broken(Exception):
        pass

    async def breaks_off() -> AsyncIterator[bytes]:
        yield b"Subject: half\r\n\r\n" + b"x" * 70_000
        yield b"x"
        yield b"y"
        raise Broken("content")

    async def attempt() -> None:
        session = rig.provider.open(rig.account)
        with pytest.raises(Broken):
            await session.prepare(replace(new_mail(), body=breaks_off))
        assert isinstance(await (await session.prepare(new_mail())).hand_over(soon(), soon()), Sent)
        await session.close()

    rig.run(attempt())
    assert len(rig.taken()) == 1


def test_preparing_is_repeatable_and_hands_nothing_over(rig: Rig) -> None:
    async def thrice() -> None:
        mail = new_mail()
        session = rig.provider.open(rig.account)
        for _ in range(2):
            await (await session.prepare(mail)).abandon()
        assert isinstance(await (await session.prepare(mail)).hand_over(soon(), soon()), Sent)
        await session.close()

    rig.run(thrice())
    assert (rig.handovers(), len(rig.taken())) == (1, 1)


def test_opening_and_closing_a_session_does_nothing(rig: Rig) -> None:
    async def open_close() -> None:
        await rig.provider.open(rig.account).close()

    rig.run(open_close())
    if hasattr(rig, "server"):
        assert rig.server.seen["connections"] == 0


@pytest.mark.parametrize("fault", [None, "refuses early", "refuses late", *LATE])
def test_no_outcome_and_no_log_line_holds_a_secret(
    rig: Rig, fault: Fault | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if fault:
        rig.misbehave(fault)
    mail = new_mail()
    said = repr(rig.run(deliver(rig, mail, answer_within=0.3))) + repr(mail) + repr(rig.account) + caplog.text
    said = said.replace(repr(rig.account.address), "")
    assert [canary for canary in CANARIES if canary in said] == []


def test_two_sessions_of_one_provider_do_not_mix_their_mails(rig: Rig) -> None:
    async def both() -> None:
        one, two = rig.provider.open(rig.account), rig.provider.open(rig.account)
        first, second = await one.prepare(new_mail()), await two.prepare(new_mail())
        assert isinstance(await second.hand_over(soon(), soon()), Sent)
        await first.abandon()
        await until(lambda: len(rig.taken()) == 1)
        await one.close()
        await two.close()

    rig.run(both())
    assert (rig.handovers(), len(rig.taken())) == (1, 1)
