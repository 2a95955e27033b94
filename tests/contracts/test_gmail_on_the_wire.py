"""How a mail travels to Gmail: three shapes on two routes, once each, unaltered, and nothing secret beside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from gmail_rig import COMPOSE, METADATA, REFUSAL, SEND, GmailRig
from provider_rigs import BCC, CANARIES, RECIPIENTS, USER, Taken, bytes_of, deliver, digest, mail_of, new_mail, soon

from outtray_schema.outcome import Failed, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.deadline import Deadline, boottime
from outtray_worker.providers import Mail
from outtray_worker.providers.gmail import Sizes
from outtray_worker.providers.gmail.upload import GRAIN
from polling import until

DRAFT, DIRECT = (COMPOSE, METADATA), (SEND, METADATA)
SHAPES = {"json": Sizes(), "multipart": Sizes(json=1000), "resumable": Sizes(json=1000, multipart=2000)}
WAYS = [(scopes, shape) for scopes in (DRAFT, DIRECT) for shape in SHAPES]


def way_id(way: tuple[tuple[str, ...], str]) -> str:
    return f"{'draft' if COMPOSE in way[0] else 'send'}-{way[1]}"


def sized_mail(size: int, piece: int = 100_000) -> Mail:
    head = f"Message-ID: <{uuid4()}@sender.example>\r\nTo: {RECIPIENTS[0]}\r\nCc: {RECIPIENTS[1]}\r\nSubject: s\r\n\r\n"
    text = b"0123456789abcd\r\n" * (size // 16)
    return mail_of(head.encode() + text, piece=piece)


@pytest.fixture(params=WAYS, ids=way_id)
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GmailRig]:
    scopes, shape = request.param
    with GmailRig(tmp_path, scopes, sizes=SHAPES[shape]) as rig:
        yield rig


def handover_stage(rig: GmailRig) -> str:
    """Where the handover goes: a draft's is always the same, a message's depends on its shape."""
    if rig.by_draft:
        return "drafts.send"
    return {SHAPES["json"]: "messages.send", SHAPES["multipart"]: "upload.messages.send"}.get(
        rig.sizes, "upload.put.messages.send"
    )


def upload_stage(rig: GmailRig) -> str:
    """Where the mail's bytes go."""
    method = "drafts.create" if rig.by_draft else "messages.send"
    return {SHAPES["json"]: method, SHAPES["multipart"]: f"upload.{method}"}.get(rig.sizes, f"upload.put.{method}")


def fault_at_handover(rig: GmailRig, **fault: Any) -> None:
    """A fault of the handover alone: of an uploaded message that is the last of its pieces."""
    last = handover_stage(rig) == "upload.put.messages.send"
    rig.server.add_rule(stage=handover_stage(rig), skip=1 if last else 0, times=1, **fault)


# ── unaltered, whatever the shape ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [2_100, GRAIN - 200, GRAIN * 3 - 250, 1_500_000])
def test_a_mail_arrives_once_and_unaltered_in_every_shape(way: GmailRig, size: int) -> None:
    mail = sized_mail(size)
    outcome = way.run(deliver(way, mail))
    assert isinstance(outcome, Sent)
    sent = way.run(bytes_of(mail))
    assert way.taken() == [Taken(mail.rfc_message_id, USER, RECIPIENTS, digest(sent), len(sent))]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
def test_it_is_unaltered_wherever_the_pieces_were_cut(way: GmailRig, piece: int) -> None:
    mail = sized_mail(2_500, piece=piece)
    assert isinstance(way.run(deliver(way, mail)), Sent)
    assert [taken.sha256 for taken in way.taken()] == [digest(way.run(bytes_of(mail)))]


def test_bcc_and_our_key_stand_in_front_and_only_recipients_of_bcc_are_in_it(way: GmailRig) -> None:
    mail = sized_mail(2_100)
    way.run(deliver(way, mail))
    (raw,) = way.received()
    assert raw.startswith(f"X-Outtray-Key: {mail.message_id}\r\nBcc: {BCC}\r\n".encode())


def test_many_hidden_recipients_stand_in_lines_of_bounded_length(tmp_path: Path) -> None:
    hidden = tuple(f"person-{number}@department-{number}.third.example" for number in range(400))
    with GmailRig(tmp_path, (SEND,)) as rig:
        mail = replace(new_mail(), recipients=(*RECIPIENTS[:2], *hidden), bcc=hidden)
        assert isinstance(rig.run(deliver(rig, mail)), Sent)
        (raw,) = rig.received()
    assert max(len(line) for line in raw.split(b"\r\n")) <= 998
    assert rig.house.sent[0].recipients == (*RECIPIENTS[:2], *hidden)


def test_an_address_that_would_break_out_of_its_header_is_refused(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:
        outcome = rig.run(deliver(rig, replace(new_mail(), bcc=("a@b.example\r\nSubject: other",))))
        assert isinstance(outcome, Failed)
        assert rig.taken() == []


def test_more_than_gmail_takes_fails_before_anything_is_sent(way: GmailRig) -> None:
    outcome = way.run(deliver(way, replace(new_mail(), size=36_700_160)))
    assert isinstance(outcome, Failed)
    assert dict(way.server.seen) == {}


# ── one attempt is one request ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("drop", ["early", "before", "after", "half"])
def test_a_server_that_closes_without_an_answer_has_seen_one_handover(way: GmailRig, drop: str) -> None:
    fault_at_handover(way, drop=drop)
    stage, before = handover_stage(way), 1 if handover_stage(way) == "upload.put.messages.send" else 0
    outcome = way.run(deliver(way, sized_mail(GRAIN * 2)))
    assert isinstance(outcome, Unknown)
    assert way.server.seen[stage] - before == 1
    assert len(way.server.ledger.read()) == (1 if drop in ("after", "half") else 0)


@pytest.mark.parametrize("drop", ["early", "before", "after", "half"])
@pytest.mark.parametrize("way", [(DRAFT, "json"), (DRAFT, "multipart")], ids=way_id, indirect=True)
def test_a_server_that_closes_in_the_preparation_has_seen_one_request_of_its_kind(way: GmailRig, drop: str) -> None:
    """A resumable upload asks how much came and goes on, as shown below; nothing else is asked twice."""
    way.server.add_rule(stage=upload_stage(way), drop=drop, times=1)
    outcome = way.run(deliver(way, sized_mail(GRAIN * 2)))
    assert isinstance(outcome, Retry), "the mail was on its way, so it may be the mail's fault"
    assert way.server.seen[upload_stage(way)] == 1
    assert way.server.ledger.read() == []


def test_a_kept_connection_that_died_while_idle_costs_no_second_request(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:

        async def two() -> list[Outcome]:
            session = rig.provider.open(rig.account)
            first = await (await session.prepare(new_mail())).hand_over(soon(), soon())
            prepared = await session.prepare(new_mail())
            rig.server.drop_idle()
            return [first, await prepared.hand_over(soon(), soon())]

        first, second = rig.run(two())
        assert isinstance(first, Sent)
        # Whether the client has heard of the end is chance; it must never have sent twice.
        assert isinstance(second, Sent | Unknown)
        assert rig.server.seen["messages.send"] == (2 if isinstance(second, Sent) else 1)


def test_the_put_that_commits_goes_over_a_connection_of_its_own(tmp_path: Path) -> None:
    connections: list[Any] = []
    with GmailRig(tmp_path, (SEND,), sizes=SHAPES["resumable"]) as rig:
        put = rig.server.gmail.uploads.put

        async def noting(request: Any, finish: Any) -> Any:
            connections.append((id(request.transport), request.headers.get("Connection")))
            return await put(request, finish)

        rig.server.gmail.uploads.put = noting  # type: ignore[method-assign]
        assert isinstance(rig.run(deliver(rig, sized_mail(GRAIN * 2))), Sent)
    assert [header for _, header in connections] == [None, "close"]
    assert len({transport for transport, _ in connections}) == 2


# ── breaks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scopes", [DRAFT, DIRECT], ids=["draft", "send"])
@pytest.mark.parametrize("after", [1, GRAIN + 5, GRAIN * 3])
def test_an_upload_goes_on_where_it_broke_off(scopes: tuple[str, ...], after: int, tmp_path: Path) -> None:
    with GmailRig(tmp_path, scopes, sizes=SHAPES["resumable"]) as rig:
        mail = sized_mail(GRAIN * 5 + 77)
        read = [0]

        def counted() -> AsyncIterator[bytes]:
            read[0] += 1
            return mail.body()

        cut = _cut_after(rig, after)
        assert isinstance(rig.run(deliver(rig, replace(mail, body=counted))), Sent)
        assert cut == [True]
        assert [taken.sha256 for taken in rig.taken()] == [digest(rig.run(bytes_of(mail)))]
        assert read[0] == (2 if rig.by_draft else 3)


def _cut_after(rig: GmailRig, after: int) -> list[bool]:
    """Break the first piece's connection once so much of it is kept."""
    put, cut = rig.server.gmail.uploads.put, []

    async def breaking(request: Any, finish: Any) -> Any:
        if cut:
            return await put(request, finish)
        cut.append(True)
        session = rig.server.gmail.uploads.sessions[request.query["upload_id"]]
        while len(session.data) < after:
            session.data += await request.content.read(after - len(session.data))
        request.transport.abort()
        raise ConnectionResetError

    rig.server.gmail.uploads.put = breaking  # type: ignore[method-assign]
    return cut


def test_an_upload_that_breaks_off_each_time_gives_up_for_now(tmp_path: Path) -> None:
    with GmailRig(tmp_path, DRAFT, sizes=SHAPES["resumable"]) as rig:
        rig.server.add_rule(stage="upload.put.drafts.create", drop="early", after_bytes=1000)
        outcome = rig.run(deliver(rig, sized_mail(GRAIN * 2)))
        assert isinstance(outcome, Retry)
        assert rig.server.seen["drafts.send"] == 0


def test_a_draft_whose_upload_was_whole_but_unanswered_is_learnt_by_asking(tmp_path: Path) -> None:
    with GmailRig(tmp_path, DRAFT, sizes=SHAPES["resumable"]) as rig:
        rig.server.add_rule(stage="upload.put.drafts.create", drop="after", times=1)
        assert isinstance(rig.run(deliver(rig, sized_mail(GRAIN * 2))), Sent)
        assert len(rig.taken()) == 1
        assert rig.house.users[USER].mailbox.drafts == {}


def test_a_draft_whose_upload_session_is_forgotten_is_found_by_our_key(tmp_path: Path) -> None:
    with GmailRig(tmp_path, DRAFT, sizes=SHAPES["resumable"]) as rig:
        rig.server.add_rule(stage="upload.put.drafts.create", drop="after", times=1)
        rig.server.add_rule(stage="upload.put.drafts.create", status=404, body="Not Found", times=1)
        mail = sized_mail(GRAIN * 2)
        first = rig.run(deliver(rig, mail))
        second = rig.run(deliver(rig, mail))
        assert isinstance(first, Retry), first
        assert isinstance(second, Sent)
        assert len(rig.taken()) == 1
        assert rig.house.users[USER].mailbox.drafts == {}, "the draft that was made is the one that was sent"


def test_an_early_look_at_the_last_piece_shows_nothing_sent(tmp_path: Path) -> None:
    """All but the last piece of a message's upload sends nothing, however often it is prepared and given up."""
    with GmailRig(tmp_path, (SEND,), sizes=SHAPES["resumable"]) as rig:

        async def prepare_and_give_up() -> None:
            session = rig.provider.open(rig.account)
            await (await session.prepare(sized_mail(GRAIN * 3))).abandon()
            await session.close()

        rig.run(prepare_and_give_up())
        assert rig.taken() == []
        (session,) = rig.server.gmail.uploads.sessions.values()
        assert len(session.data) == GRAIN * 3


# ── content and time ────────────────────────────────────────────────────────────────────────────────────────────────


class Broken(Exception):
    pass


def failing(mail: Mail, at_reading: int) -> Mail:
    """A mail whose content breaks off in its n-th reading."""
    readings = [0]

    async def pieces() -> AsyncIterator[bytes]:
        readings[0] += 1
        mine = readings[0]
        async for piece in mail.body():
            yield piece
        if mine >= at_reading:
            raise Broken("content")

    return replace(mail, body=pieces)


def test_content_that_proves_damaged_at_its_end_is_never_sent(way: GmailRig) -> None:
    mail = failing(sized_mail(1_500_000), at_reading=1)
    with pytest.raises(Broken):
        way.run(deliver(way, mail))
    assert way.server.ledger.read() == []
    assert way.house.users[USER].mailbox.messages == {}


@pytest.mark.parametrize("shape", ["json", "multipart"])
def test_content_lost_in_the_middle_of_a_handover_ends_it_before_its_last_byte(shape: str, tmp_path: Path) -> None:
    sizes = Sizes() if shape == "json" else Sizes(json=1000)
    with GmailRig(tmp_path, DIRECT, sizes=sizes) as rig:
        outcome = rig.run(deliver(rig, failing(sized_mail(1_500_000), at_reading=2)))
        assert isinstance(outcome, NotBegun)
        assert rig.server.ledger.read() == []


def test_a_deadline_that_passes_while_the_connection_is_made_is_not_begun(tmp_path: Path) -> None:
    with GmailRig(tmp_path, (SEND,)) as rig:

        async def slow_connection() -> Outcome:
            prepared = await rig.provider.open(rig.account).prepare(new_mail())
            names = rig.provider.web._resolver._names
            lookup = names.addresses
            begin_by = Deadline(boottime() + 0.2)

            async def late(host: str, port: int) -> list[str]:
                await until(lambda: begin_by.passed)
                return await lookup(host, port)

            names.addresses = late  # type: ignore[method-assign]
            rig.provider.api._base = rig.provider.api._base._replace(netloc=f"localhost:{rig.server.port}")
            return await prepared.hand_over(begin_by, soon())

        assert isinstance(rig.run(slow_connection()), NotBegun)
        assert rig.server.seen["messages.send"] == 0


def test_nobody_there_parks_the_connection(way: GmailRig) -> None:
    way.server.down()
    outcome = way.run(deliver(way, sized_mail(2_100)))
    assert isinstance(outcome, Parked) and outcome.scope == "connection"


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_expired_token_is_renewed_once_and_the_handover_made_once_more(way: GmailRig) -> None:
    fresh = way.house.access(USER, *way.scopes)
    way.tokens.next = [fresh]

    async def expire_before_the_handover() -> Outcome:
        prepared = await way.provider.open(way.account).prepare(sized_mail(GRAIN * 2))
        way.house.expire_access(USER)
        way.house.tokens.access[fresh].until = float("inf")
        return await prepared.hand_over(soon(), soon())

    assert isinstance(way.run(expire_before_the_handover()), Sent)
    assert way.tokens.renewals == 1
    assert len(way.taken()) == 1


def test_a_token_that_is_refused_again_waits_for_a_person(way: GmailRig) -> None:
    way.house.expire_access(USER)
    outcome = way.run(deliver(way, sized_mail(2_100)))
    assert isinstance(outcome, Held) and outcome.status == "reconnect"
    assert way.tokens.renewals == 1
    assert sum(way.server.seen.values()) == 2


@pytest.mark.parametrize("at", ["access", "renewed"])
def test_without_a_token_its_outcome_is_ours(way: GmailRig, at: str) -> None:
    wait = Parked("another worker refreshes it", scope="app")
    if at == "access":
        way.tokens.refuse = [wait]
    else:
        way.tokens.next = [wait]
        way.house.expire_access(USER)
    assert way.run(deliver(way, sized_mail(2_100))) == wait
    assert way.taken() == []


# ── what is never shown ─────────────────────────────────────────────────────────────────────────────────────────────

FAULTS: dict[str, Callable[[GmailRig], dict[str, Any]]] = {
    "quotes": lambda rig: {"status": 400, "body": quoting(rig)},
    "quotes oddly": lambda rig: {"status": 499, "body": quoting(rig)},
    "is no JSON": lambda rig: {"status": 503, "body": f"<html>{USER} {rig.tokens.token}"},
    "breaks": lambda _: {"drop": "after", "reset": True},
    "is cut short": lambda _: {"drop": "half"},
    "redirects": lambda _: {"status": 302, "headers": {"Location": "https://elsewhere.example/canary-redirect"}},
    "never comes": lambda _: {"silent": True},
    "is refused": lambda _: {"status": 400, "body": REFUSAL},
}


def quoting(rig: GmailRig) -> dict[str, Any]:
    text = f"to {RECIPIENTS[0]} by {USER} (canary-user), token {rig.tokens.token}, https://x/?upload_id=canary-url"
    return {"error": {"code": 400, "message": text, "errors": [{"reason": f"for {USER}", "message": text}]}}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["handover", "preparation"])
def test_no_error_path_shows_a_secret(way: GmailRig, fault: str, at: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    rule = FAULTS[fault](way)
    if at == "handover":
        fault_at_handover(way, **rule)
    else:
        way.server.add_rule(stage=upload_stage(way), times=1, **rule)
    seen: list[str] = []
    begin = way.server.gmail.uploads.begin

    def noting(*given: Any) -> str:
        seen.append(begin(*given))
        return seen[-1]

    way.server.gmail.uploads.begin = noting  # type: ignore[method-assign]
    mail = sized_mail(GRAIN * 2)
    outcome = way.run(deliver(way, mail, answer_within=0.3))
    counted = repr(way.provider.signals.take())
    said = repr(outcome) + repr(mail) + repr(way.account) + repr(way.provider) + counted + caplog.text
    assert [canary for canary in (*CANARIES, *seen) if canary in said] == []


def test_asyncio_is_left_with_nothing_to_complain_of(way: GmailRig, caplog: pytest.LogCaptureFixture) -> None:
    """A broken upload must leave no task or future whose error somebody logs later, URL and all."""
    complaints: list[dict[str, Any]] = []
    way.server.add_rule(stage=upload_stage(way), drop="early", after_bytes=10_000, reset=True, times=1)

    async def attempt() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await deliver(way, sized_mail(4_000_000))
        import gc

        gc.collect()

    way.run(attempt())
    assert complaints == []
