"""SMTP phase by phase: what breaks where, what was written by then, and that nothing is ever sent by a hidden retry."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from provider_rigs import (
    CANARIES,
    PASSWORD,
    TOKEN,
    USER,
    SmtpRig,
    account_of,
    deliver,
    digest,
    large_mail,
    mail_of,
    new_mail,
    quick_settings,
    soon,
)

from outtray_sandbox.smtp import make_certificates
from outtray_schema.outcome import Failed, Held, NotBegun, Outcome, Parked, Retry, Sent, Unknown
from outtray_worker.providers import Mail
from outtray_worker.providers.smtp import Check, SmtpProvider
from polling import until

BEFORE_BODY = ("connect", "ehlo", "auth", "mail", "rcpt", "data")
BREAKS: dict[str, dict[str, Any]] = {
    "closes": {"drop": "before"},
    "closes after its work": {"drop": "after"},
    "resets": {"drop": "before", "reset": True},
    "half-closes": {"drop": "half", "reply": ""},
    "says nothing": {"silent": True},
    "says garbage": {"reply": "\x00\xff\xfe hello"},
    "says HTTP": {"reply": "HTTP/1.1 200 OK"},
    "breaks off in mid-reply": {"reply": "250 2.0.0 Ok: que", "raw": True, "drop": "reply"},
    "continues with another code": {"reply": "250-one\n550 two"},
    "never ends its reply": {"reply": "250-more\n" * 2, "raw": True, "silent": False, "drop": "half"},
    "floods": {"reply": "250-" + "x" * 40_000},
}


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("stage", BEFORE_BODY)
def test_what_breaks_before_the_body_parks_the_mailbox_and_sends_nothing(smtp: SmtpRig, stage: str, how: str) -> None:
    smtp.server.add_rule(stage=stage, **BREAKS[how])
    outcome = smtp.run(deliver(smtp, new_mail()))
    spent = stage == "data"
    assert isinstance(outcome, Retry if spent else Parked), outcome
    assert outcome.scope == ("message" if spent else "connection")
    assert f"{smtp.server.host}:{smtp.server.port}" in outcome.reason
    assert (smtp.server.seen["connections"], smtp.handovers(), smtp.taken()) == (1, 0, [])


@pytest.mark.parametrize("how", BREAKS)
def test_what_breaks_in_mid_body_spends_an_attempt_and_sends_nothing(smtp: SmtpRig, how: str) -> None:
    smtp.server.add_rule(stage="body", after_bytes=200_000, **BREAKS[how])
    outcome = smtp.run(deliver(smtp, large_mail()))
    assert isinstance(outcome, Retry), outcome
    assert (smtp.server.seen["connections"], smtp.handovers(), smtp.taken()) == (1, 0, [])


@pytest.mark.parametrize("how", BREAKS)
def test_from_the_dot_on_all_but_a_whole_reply_is_unknown(every_smtp: SmtpRig, how: str) -> None:
    rule = BREAKS[how]
    if every_smtp.tls != "clear" and rule.get("drop") == "half":
        rule = {**rule, "drop": "reply"}
    every_smtp.server.add_rule(stage="dot", take=True, **rule)
    outcome = every_smtp.run(deliver(every_smtp, new_mail(), answer_within=0.3))
    assert isinstance(outcome, Unknown), outcome
    assert (every_smtp.server.seen["connections"], every_smtp.handovers(), len(every_smtp.taken())) == (1, 1, 1)


def test_a_reply_out_of_place_to_the_dot_is_unknown(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="dot", reply="354 go on", take=False)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Unknown)


def test_a_refusal_that_an_acceptance_follows_is_unknown(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="dot", reply="451 4.3.0 hm\n250 2.0.0 taken after all", take=True)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Unknown)
    assert len(smtp.taken()) == 1


def test_an_acceptance_that_a_goodbye_follows_is_an_acceptance(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="dot", reply="250 2.0.0 Ok: queued as ABC123\n421 4.3.2 closing", drop="reply", times=1)
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Sent)
    assert outcome.provider_id == "ABC123"


@pytest.mark.parametrize("stage", ["connect", "ehlo", "auth", "mail", "rcpt", "data", "dot"])
def test_a_reply_in_pieces_is_one_reply(smtp: SmtpRig, stage: str) -> None:
    whole = {
        "connect": "220-first\n220 second",
        "ehlo": "250-sandbox\n250-AUTH PLAIN LOGIN\n250 SIZE 1000000",
        "auth": "235 2.7.0 Accepted",
        "data": "354 Go ahead",
    }
    smtp.server.add_rule(stage=stage, reply=whole.get(stage, "250-2.0.0 two\n250 2.0.0 lines"), pieces=0.001)
    if stage == "connect":
        smtp.server.forget()
        smtp.server.add_rule(stage=stage, pieces=0.001, reply=" 220"[1:] + " one line", raw=False, drop=None)
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Sent), outcome
    assert len(smtp.taken()) == 1


def test_an_early_answer_in_mid_body_ends_the_attempt_before_the_dot(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="body", reply="552 5.3.4 enough", times=1)

    async def wait_then_hand_over() -> Outcome:
        session = smtp.provider.open(smtp.account)
        prepared = await session.prepare(new_mail())
        if not hasattr(prepared, "hand_over"):
            return prepared
        await until(lambda: prepared._link.wire.unread)
        return await prepared.hand_over(soon(), soon())

    outcome = smtp.run(wait_then_hand_over())
    assert isinstance(outcome, Failed)
    assert outcome.evidence["rule"] == "too-large"
    assert (smtp.handovers(), smtp.taken()) == (0, [])


@pytest.mark.parametrize("reply", ["250 2.0.0 taken already", "250 2.0"])
def test_an_early_acceptance_is_no_acceptance(smtp: SmtpRig, reply: str) -> None:
    smtp.server.add_rule(stage="body", reply=reply, raw=len(reply) < 10, times=1)

    async def wait_then_hand_over() -> Outcome:
        session = smtp.provider.open(smtp.account)
        prepared = await session.prepare(new_mail())
        if not hasattr(prepared, "hand_over"):
            return prepared
        await until(lambda: prepared._link.wire.unread)
        return await prepared.hand_over(soon(), soon())

    assert isinstance(smtp.run(wait_then_hand_over()), Retry)
    assert (smtp.handovers(), smtp.taken()) == (0, [])


def test_a_server_that_leaves_while_the_gate_is_waited_for_gets_no_dot(smtp: SmtpRig) -> None:
    async def leave() -> Outcome:
        session = smtp.provider.open(smtp.account)
        prepared = await session.prepare(new_mail())
        await asyncio.to_thread(smtp.server.down)
        await until(lambda: not prepared._link.wire.alive)
        return await prepared.hand_over(soon(), soon())

    assert isinstance(smtp.run(leave()), Retry)
    assert (smtp.handovers(), smtp.taken()) == (0, [])


def test_a_cancelled_handover_leaves_no_connection_behind(smtp: SmtpRig) -> None:
    smtp.misbehave("takes, never answers")

    async def cancel() -> None:
        session = smtp.provider.open(smtp.account)
        prepared = await session.prepare(new_mail())
        task = asyncio.create_task(prepared.hand_over(soon(), soon()))
        await until(lambda: smtp.handovers() == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: smtp.server.seen["open"] == 0)

    smtp.run(cancel())
    assert len(smtp.taken()) == 1


def test_a_prepared_mail_is_handed_over_once_however_often_it_is_asked(smtp: SmtpRig) -> None:
    async def twice() -> tuple[Outcome, Outcome]:
        session = smtp.provider.open(smtp.account)
        prepared = await session.prepare(new_mail())
        outcomes = await prepared.hand_over(soon(), soon()), await prepared.hand_over(soon(), soon())
        await session.close()
        return outcomes

    first, second = smtp.run(twice())
    assert isinstance(first, Sent)
    assert isinstance(second, NotBegun)
    assert (smtp.handovers(), len(smtp.taken())) == (1, 1)


# ── the verdict and RSET ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stalled_rset_cannot_hide_a_verdict(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="dot", reply="550 5.7.1 spam", times=1)
    smtp.server.add_rule(stage="rset", silent=True, times=1)

    async def two() -> list[Outcome]:
        session = smtp.provider.open(smtp.account)
        first = await (await session.prepare(new_mail())).hand_over(soon(), soon())
        second = await (await session.prepare(new_mail())).hand_over(soon(), soon())
        await session.close()
        return [first, second]

    first, second = smtp.run(two())
    assert isinstance(first, Failed)
    assert first.evidence["rule"] == "policy-refused"
    assert isinstance(second, Sent)
    assert smtp.server.seen["connections"] == 2


# ── recipients ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pipelining", [True, False])
def test_one_refused_recipient_refuses_the_whole_message(smtp: SmtpRig, pipelining: bool) -> None:
    smtp.server.house.pipelining = pipelining
    smtp.server.add_rule(stage="rcpt", recipient="canary-cc", reply="550 5.1.1 no such user")
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Failed)
    assert (outcome.scope, outcome.evidence["refused_recipients"]) == ("recipient", "1")
    assert (smtp.handovers(), smtp.server.seen["data"], smtp.taken()) == (0, 0, [])


@pytest.mark.parametrize("pipelining", [True, False])
def test_of_several_refusals_the_weightiest_decides(smtp: SmtpRig, pipelining: bool) -> None:
    smtp.server.house.pipelining = pipelining
    smtp.server.add_rule(stage="rcpt", recipient="canary-to", reply="450 4.2.1 busy")
    smtp.server.add_rule(stage="rcpt", recipient="canary-bcc", reply="550 5.1.1 unknown")
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Failed)
    assert outcome.evidence["refused_recipients"] == "0,2"


def test_a_refused_sender_is_the_verdict_whatever_the_pipelined_recipients_got(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="mail", reply="450 4.1.8 sender unknown here")
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Parked)
    assert outcome.evidence["rule"] == "unknown-sender-wait"


@pytest.mark.parametrize("extensions", [{}, {"pipelining": False}, {"eight_bit": False}, {"size_limit": 0}])
def test_mail_leaves_with_whatever_the_server_offers(smtp: SmtpRig, extensions: dict[str, Any]) -> None:
    for name, value in extensions.items():
        setattr(smtp.server.house, name, value)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Sent)


# ── what a server cannot carry ──────────────────────────────────────────────────────────────────────────────────────


def text_mail(text: bytes, **changes: Any) -> Mail:
    return mail_of(b"Message-ID: <text@sender.example>\r\n\r\n" + text, **changes)


def test_a_message_above_the_servers_size_fails_before_a_byte_of_it_is_sent(smtp: SmtpRig) -> None:
    smtp.server.house.size_limit = 1000
    outcome = smtp.run(deliver(smtp, text_mail(b"x\r\n" * 500)))
    assert isinstance(outcome, Failed)
    assert "1000" in outcome.reason
    assert smtp.server.seen["mail"] == 0


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_eight_bit_mail_needs_a_server_that_takes_it(smtp: SmtpRig, size: int) -> None:
    mail = text_mail(b"x" * 20 + b"y\r\n" * size + "ä\r\n".encode(), piece=1 << 20)
    assert isinstance(smtp.run(deliver(smtp, mail)), Sent)
    smtp.server.house.eight_bit = False
    outcome = smtp.run(deliver(smtp, mail))
    assert isinstance(outcome, Failed)
    assert "8BITMIME" in outcome.reason
    assert len(smtp.taken()) == 1


def test_addresses_beyond_ascii_need_smtputf8_and_domains_do_not(smtp: SmtpRig) -> None:
    local, domain = ("jürgen@first.example",), ("jurgen@bücher.example",)
    assert isinstance(smtp.run(deliver(smtp, text_mail(b"x\r\n", recipients=local))), Sent)
    smtp.server.house.smtputf8 = False
    outcome = smtp.run(deliver(smtp, text_mail(b"x\r\n", recipients=local)))
    assert isinstance(outcome, Failed)
    assert "SMTPUTF8" in outcome.reason
    assert isinstance(smtp.run(deliver(smtp, text_mail(b"x\r\n", recipients=domain))), Sent)
    assert [mail.recipients for mail in smtp.taken()] == [local, ("jurgen@xn--bcher-kva.example",)]


@pytest.mark.parametrize(
    "recipient", ["a@b.example>\r\nRCPT TO:<c@d.example", "a b@c.example", "none", "a@b\n", "<a@b>"]
)
def test_an_address_cannot_carry_a_command(smtp: SmtpRig, recipient: str) -> None:
    outcome = smtp.run(deliver(smtp, text_mail(b"x\r\n", recipients=(recipient,))))
    assert isinstance(outcome, Failed)
    assert (smtp.server.seen["mail"], smtp.taken()) == (0, [])


@pytest.mark.parametrize("text", [b"one\n.\ntwo\r\n", b"one\r.\rtwo\r\n", b"one\n.\r\nMAIL FROM:<x@y>\r\n", b"end\r"])
def test_a_bare_line_break_is_refused_before_the_dot(smtp: SmtpRig, text: bytes) -> None:
    assert isinstance(smtp.run(deliver(smtp, text_mail(text))), Failed)
    assert smtp.taken() == []


def test_content_of_another_size_than_was_frozen_is_refused_before_the_dot(smtp: SmtpRig) -> None:
    mail = text_mail(b"whole\r\n")
    assert isinstance(smtp.run(deliver(smtp, replace(mail, size=mail.size + 1))), Failed)
    assert (smtp.handovers(), smtp.taken()) == (0, [])


def test_a_last_line_without_its_end_gets_one(smtp: SmtpRig) -> None:
    assert isinstance(smtp.run(deliver(smtp, text_mail(b"last"))), Sent)
    assert smtp.taken()[0].sha256 == digest(b"Message-ID: <text@sender.example>\r\n\r\nlast\r\n")


# ── logging in ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("offered", "credentials", "used"),
    [
        (("PLAIN", "LOGIN"), {"password": PASSWORD}, "plain"),
        (("LOGIN",), {"password": PASSWORD}, "login"),
        (("PLAIN", "LOGIN", "XOAUTH2"), {"username": "token@sender.example", "access_token": TOKEN}, "xoauth2"),
    ],
)
def test_one_login_by_the_mechanism_that_fits(
    every_smtp: SmtpRig, offered: tuple[str, ...], credentials: dict[str, str], used: str
) -> None:
    every_smtp.server.house.mechanisms = offered
    account = account_of(every_smtp.where(), **{"username": USER, **credentials})
    checked = every_smtp.run(every_smtp.provider.check(account))
    assert isinstance(checked, Check), checked
    assert (checked.mechanism, checked.size_limit) == (used, every_smtp.server.house.size_limit)
    assert checked.tls.startswith("TLSv1.") == (every_smtp.tls != "clear")
    assert (every_smtp.server.seen["auth"], every_smtp.server.seen["mail"], every_smtp.server.seen["quit"]) == (1, 0, 1)


@pytest.mark.parametrize("credentials", [{"password": "wrong"}, {"access_token": "wrong"}])
def test_a_refused_login_is_tried_once_and_asks_for_a_person(smtp: SmtpRig, credentials: dict[str, str]) -> None:
    smtp.account = account_of(smtp.where(), username=USER, **credentials)
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Held)
    assert outcome.status == "reconnect"
    assert (smtp.server.seen["auth"], smtp.server.seen["mail"]) == (1, 0)
    assert outcome.evidence.get("oauth_status") == ("400" if "access_token" in credentials else None)


def test_a_revoked_password_holds_and_a_new_one_sends(smtp: SmtpRig) -> None:
    smtp.server.do("revoke", user=USER)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Held)
    smtp.server.do("add_user", user=USER, password=PASSWORD)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Sent)


@pytest.mark.parametrize(
    "credentials", [{"username": USER, "access_token": TOKEN}, {"username": USER, "password": "x"}]
)
def test_a_server_without_our_mechanism_gets_no_credentials(smtp: SmtpRig, credentials: dict[str, str]) -> None:
    smtp.server.house.mechanisms = ()
    smtp.account = account_of(smtp.where(), **credentials)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Held)
    assert smtp.server.seen["auth"] == 0


@pytest.mark.parametrize("stage", ["auth", "mail", "rcpt", "dot"])
def test_a_server_that_echoes_what_it_heard_cannot_make_evidence_of_it(smtp: SmtpRig, stage: str) -> None:
    heard = "canary-user" if stage == "auth" else "canary-user CANARY-TO"
    echo = f"550 5.9.9 <{USER}> {USER} {heard} {PASSWORD} {TOKEN} https://x.example/?t={TOKEN}"
    smtp.server.add_rule(stage=stage, reply=echo)
    said = repr(smtp.run(deliver(smtp, new_mail())))
    assert [canary for canary in CANARIES if canary.casefold() in said.casefold()] == []
    assert "5.9.9" in said


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tls_rig(smtp: SmtpRig, tls: str, **changes: Any) -> SmtpRig:
    smtp.account = account_of(smtp.where(tls=tls, **changes))
    return smtp


def test_clear_text_needs_the_setting_and_this_very_machine(smtp: SmtpRig) -> None:
    strict = smtp.provider.settings.model_copy(update={"smtp_clear_loopback": False})
    smtp.provider = SmtpProvider(strict)
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Held)
    assert outcome.status == "disabled"
    assert (smtp.server.seen["ehlo"], smtp.server.seen["auth"]) == (0, 0)


def test_a_server_without_starttls_gets_no_credentials(smtp: SmtpRig) -> None:
    outcome = smtp.run(deliver(tls_rig(smtp, "starttls"), new_mail()))
    assert isinstance(outcome, Parked)
    assert "STARTTLS" in outcome.reason
    assert smtp.server.seen["auth"] == 0


def test_implicit_tls_to_a_port_in_clear_says_so(smtp: SmtpRig) -> None:
    outcome = smtp.run(deliver(tls_rig(smtp, "implicit"), new_mail()))
    assert isinstance(outcome, Parked)
    assert outcome.evidence["rule"] in ("tls", "garbled")
    assert smtp.server.seen["auth"] == 0


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize(
    ("names", "days", "trusted", "words"),
    [
        (("localhost", "127.0.0.1"), 30, False, "ca_file"),
        (("elsewhere.example",), 30, True, "another name"),
        (("localhost", "127.0.0.1"), -30, True, "expired"),
    ],
)
def test_a_certificate_fault_names_itself_and_its_cure(
    tmp_path: Any, tls: str, names: tuple[str, ...], days: int, trusted: bool, words: str
) -> None:
    files = make_certificates(tmp_path / "certificates", names, timedelta(days=days))
    with SmtpRig(tmp_path, tls, options={"tls_files": files}) as rig:
        if not trusted:
            rig.account = account_of(rig.where(ca_file=None))
        outcome = rig.run(deliver(rig, new_mail()))
        assert isinstance(outcome, Parked)
        assert (outcome.scope, outcome.evidence["rule"]) == ("connection", "tls-certificate")
        assert words in outcome.reason
        assert rig.server.seen["auth"] == 0


@pytest.mark.parametrize(("slipped_in", "logs_in"), [(b"", True), (b"250 slipped in\r\n", False), (b"25", False)])
def test_what_is_slipped_in_before_tls_ends_the_connection(tmp_path: Any, slipped_in: bytes, logs_in: bool) -> None:
    files = make_certificates(tmp_path)
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            heard.append(line[:4])
            if line.startswith(b"EHLO"):
                writer.write(b"250-here\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
            elif line.startswith(b"STAR"):
                writer.write(b"220 go\r\n" + slipped_in)
                await writer.start_tls(files.server_context())
            else:
                writer.write(b"235 2.7.0 Accepted\r\n")
        writer.close()

    async def attempt() -> object:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            where = {"host": "127.0.0.1", "port": port, "tls": "starttls", "ca_file": str(files.ca_file)}
            return await SmtpProvider(quick_settings(tmp_path)).check(account_of(where))

    checked = asyncio.run(attempt())
    assert isinstance(checked, Check if logs_in else Parked), checked
    assert (b"AUTH" in heard) == logs_in


def test_a_missing_ca_file_is_named(smtp: SmtpRig) -> None:
    outcome = smtp.run(deliver(tls_rig(smtp, "implicit", ca_file="/nowhere/ca.pem"), new_mail()))
    assert isinstance(outcome, Held)
    assert "/nowhere/ca.pem" in outcome.reason
    assert smtp.server.seen["connections"] == 0


# ── the network ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_refused_connection_parks_with_host_and_port(smtp: SmtpRig, host: str) -> None:
    smtp.server.down()
    smtp.account = account_of(smtp.where(host=host))
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Parked)
    assert (outcome.scope, outcome.evidence["rule"]) == ("connection", "refused")
    assert f"{host}:{smtp.server.port}" in outcome.reason


def test_an_unknown_host_parks_with_its_name(smtp: SmtpRig) -> None:
    smtp.account = account_of(smtp.where(host="mail.invalid"))
    outcome = smtp.run(deliver(smtp, new_mail()))
    assert isinstance(outcome, Parked)
    assert (outcome.scope, outcome.evidence["rule"]) == ("connection", "dns")
    assert "mail.invalid" in outcome.reason


# ── a kept connection ───────────────────────────────────────────────────────────────────────────────────────────────


async def several(rig: SmtpRig, count: int) -> list[Outcome]:
    session = rig.provider.open(rig.account)
    outcomes = [await (await session.prepare(new_mail())).hand_over(soon(), soon()) for _ in range(count)]
    await session.close()
    return outcomes


def test_a_session_keeps_its_connection_and_renews_it_after_so_many_messages(tmp_path: Any) -> None:
    with SmtpRig(tmp_path, settings={"smtp_session_messages": 3}) as rig:
        assert all(isinstance(outcome, Sent) for outcome in rig.run(several(rig, 7)))
        assert (rig.server.seen["connections"], rig.server.seen["auth"], rig.server.seen["quit"]) == (3, 3, 3)
        assert rig.server.seen["noop"] == 0


def test_a_kept_connection_is_asked_after_a_silence_and_replaced_if_it_died(
    smtp: SmtpRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outtray_worker.providers.smtp._CHECK_AFTER", 0.0)
    smtp.server.add_rule(stage="noop", reply="421 4.4.2 idle too long", drop="reply", times=1)
    assert all(isinstance(outcome, Sent) for outcome in smtp.run(several(smtp, 3)))
    assert (smtp.server.seen["connections"], smtp.server.seen["noop"]) == (2, 2)


def test_a_server_that_never_answers_quit_does_not_hold_the_turn(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="quit", silent=True)
    assert isinstance(smtp.run(deliver(smtp, new_mail())), Sent)


# ── what 250 tells ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reply", "provider_id"),
    [
        ("250 2.0.0 Ok: queued as 4XyZ12abc", "4XyZ12abc"),
        ("250 OK id=1tABCd-000000001xY-0aBc", "1tABCd-000000001xY-0aBc"),
        (
            "250 2.0.0 OK  1763712345 af79cd13be357-8b2c9f1d2e3si123456 - gsmtp",
            "1763712345 af79cd13be357-8b2c9f1d2e3si123456",
        ),
        ("250 2.0.0 5AL9Q2x1001234 Message accepted for delivery", "5AL9Q2x1001234"),
        ("250 2.0.0 thanks", None),
    ],
)
def test_a_queue_id_is_kept(smtp: SmtpRig, reply: str, provider_id: str | None) -> None:
    smtp.server.add_rule(stage="dot", reply=reply)
    mail = new_mail()
    outcome = smtp.run(deliver(smtp, mail))
    assert isinstance(outcome, Sent)
    assert (outcome.provider_id, outcome.rfc_message_id) == (provider_id, mail.rfc_message_id)


def test_the_message_id_that_exchange_gave_becomes_the_messages_and_ours_stays_as_evidence(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="dot", reply="250 2.0.0 OK <AM0@x.prod.outlook.com> [Hostname=AM0.prod.outlook.com]")
    mail = new_mail()
    outcome = smtp.run(deliver(smtp, mail))
    assert isinstance(outcome, Sent)
    assert outcome.rfc_message_id == "<AM0@x.prod.outlook.com>"
    assert outcome.evidence["our_message_id"] == mail.rfc_message_id
