"""The sandbox's server as a stranger meets it: through the standard library's own client, and as a process."""

from __future__ import annotations

import contextlib
import json
import smtplib
import ssl
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from provider_rigs import PASSWORD, RECIPIENTS, USER, SmtpRig, deliver, digest, new_mail

from outtray_sandbox.smtp import Control, Ledger, Refused, SmtpServer

TEXT = b"Message-ID: <one@sender.example>\r\nSubject: x\r\n\r\n.\r\n..dots\r\n.\r\nend\r\n"


@contextlib.contextmanager
def client(rig: SmtpRig, password: str = PASSWORD) -> Iterator[smtplib.SMTP]:
    context = ssl.create_default_context(cafile=rig.server.ca_file) if rig.server.ca_file else None
    where = (rig.server.host, rig.server.port)
    with smtplib.SMTP_SSL(*where, context=context) if rig.tls == "implicit" else smtplib.SMTP(*where) as connected:
        if rig.tls == "starttls":
            connected.starttls(context=context)
        connected.login(USER, password)
        yield connected


def test_the_standard_librarys_client_sends_and_the_ledger_says_what(every_smtp: SmtpRig) -> None:
    with client(every_smtp) as connected:
        assert connected.sendmail(USER, list(RECIPIENTS), TEXT) == {}
        assert connected.sendmail(USER, list(RECIPIENTS), TEXT.replace(b"one@", b"two@")) == {}
    first, second = every_smtp.server.ledger.read()
    assert (first.rfc_message_id, first.user, first.sender) == ("<one@sender.example>", USER, USER)
    assert (first.recipients, first.sha256, first.size) == (RECIPIENTS, digest(TEXT), len(TEXT))
    assert second.rfc_message_id == "<two@sender.example>"
    assert (first.session, first.answer) == (second.session, "250")
    assert every_smtp.server.house.bodies[digest(TEXT)] == TEXT


def test_a_stranger_is_refused(smtp: SmtpRig) -> None:
    with pytest.raises(smtplib.SMTPAuthenticationError), client(smtp, "wrong"):
        pass
    with smtplib.SMTP(smtp.server.host, smtp.server.port) as connected:
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            connected.sendmail(USER, RECIPIENTS, TEXT)
        assert refused.value.smtp_code == 530
    assert smtp.taken() == []


def test_the_daily_limit_holds_for_any_24_hours_and_over_a_restart(tmp_path: Path) -> None:
    options = {"daily": {USER: 2, "*": 0}}
    for shift, taken in ((0.0, 2), (0.0, 2), (86_399.0, 2), (86_401.0, 4)):
        with SmtpRig(tmp_path, options=options) as rig, client(rig) as connected:
            rig.server.do("shift_clock", seconds=shift)
            with contextlib.suppress(smtplib.SMTPSenderRefused):
                for _ in range(3):
                    connected.sendmail(USER, RECIPIENTS, TEXT)
            assert len(rig.taken()) == taken
            assert rig.server.ledger.count_in_any_24h(USER) == 2


def test_more_sessions_than_allowed_are_told_so_and_may_come_again(smtp: SmtpRig) -> None:
    smtp.server.do("limit_connections", sessions=1)
    with client(smtp) as first:
        with client(smtp) as second, pytest.raises(smtplib.SMTPSenderRefused) as refused:
            second.sendmail(USER, RECIPIENTS, TEXT)
        assert refused.value.smtp_code == 432
        first.sendmail(USER, RECIPIENTS, TEXT)
    assert len(smtp.taken()) == 1


def test_a_rule_holds_so_many_times_and_for_whom_it_names(smtp: SmtpRig) -> None:
    smtp.server.add_rule(stage="rcpt", recipient=r"@first\.", reply="450 4.2.1 busy", times=1)
    with client(smtp) as connected:
        assert set(connected.sendmail(USER, RECIPIENTS, TEXT)) == {RECIPIENTS[0]}
        assert connected.sendmail(USER, RECIPIENTS, TEXT) == {}
        smtp.server.add_rule(stage="mail", user="somebody else", reply="550 no")
        assert connected.sendmail(USER, RECIPIENTS, TEXT) == {}
        rule = smtp.server.add_rule(stage="mail", user=USER, reply="550 no")
        with pytest.raises(smtplib.SMTPSenderRefused):
            connected.sendmail(USER, RECIPIENTS, TEXT)
        smtp.server.forget(rule)
        assert connected.sendmail(USER, RECIPIENTS, TEXT) == {}


def test_an_unknown_stage_or_command_is_refused(smtp: SmtpRig) -> None:
    with pytest.raises(ValueError, match="no such stage"):
        smtp.server.add_rule(stage="nowhere")
    with pytest.raises(ValueError, match="no such command"):
        smtp.server.do("__init__")


def test_latencies_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    def delays(seed: int) -> list[tuple[float, float]]:
        house = SmtpServer(tmp_path / "l", latency=(0.2, 1.5), seed=seed).house
        return [house.delay() for _ in range(50)]

    assert delays(7) == delays(7) != delays(8)
    assert all(0.2 <= before + after <= 1.5 for before, after in delays(7))
    assert {before == 0 for before, _ in delays(7)} == {True, False}


def test_a_large_mail_costs_the_server_little_memory(smtp: SmtpRig) -> None:
    piece = b"0123456789abcdef" * 4 + b"\r\n"
    head = b"Message-ID: <large@sender.example>\r\n\r\n"
    with client(smtp) as connected:
        connected.mail(USER)
        connected.rcpt(RECIPIENTS[0])
        connected.docmd("DATA")
        tracemalloc.start()
        connected.send(head)
        block = piece * 8000
        for _ in range(64):
            connected.send(block)
        connected.send(b".\r\n")
        assert connected.getreply()[0] == 250
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    (taken,) = smtp.taken()
    assert taken.size == len(head) + 64 * len(block)
    assert taken.size > 30_000_000
    assert peak < 4_000_000


def test_the_provider_streams_a_large_mail_in_bounded_memory(smtp: SmtpRig) -> None:
    block = (b"." + b"0123456789abcdef" * 4 + b"\r\n") * 15_000

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield block

    tracemalloc.start()
    outcome = smtp.run(deliver(smtp, replace(new_mail(), size=40 * len(block), body=pieces)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (taken,) = smtp.taken()
    assert taken.sha256 == digest(block * 40), outcome
    assert taken.size > 40_000_000
    assert peak < 8_000_000


# ── as a process ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def process(folder: Path, *flags: str) -> Iterator[dict[str, str]]:
    users = folder / "users.json"
    users.write_text(json.dumps({USER: PASSWORD}))
    command = [sys.executable, "-m", "outtray_sandbox.smtp", "--ledger", str(folder / "l"), "--users", str(users)]
    running = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    assert running.stdout
    try:
        yield json.loads(running.stdout.readline())
        running.terminate()
        assert running.wait(10) == 0
    finally:
        running.kill()
        running.stdout.close()


@pytest.mark.parametrize("control", ["0", "socket"])
def test_the_server_runs_as_a_process_and_obeys_its_control(tmp_path: Path, control: str) -> None:
    flag = control if control == "0" else str(tmp_path / "c")
    with process(tmp_path, "--control", flag) as where:
        commands = Control(where["control"])
        if control == "socket":
            assert Path(flag).stat().st_mode & 0o077 == 0
        commands.do("add_rule", stage="mail", reply="451 4.3.0 later", times=1)
        with smtplib.SMTP(where["host"], int(where["port"])) as connected:
            connected.login(USER, PASSWORD)
            with pytest.raises(smtplib.SMTPSenderRefused):
                connected.sendmail(USER, RECIPIENTS, TEXT)
            connected.sendmail(USER, RECIPIENTS, TEXT)
        assert commands.do("stats")["taken"] == 1
        with pytest.raises(Refused, match="no such command"):
            commands.do("ledger")
        commands.do("down")
        with pytest.raises(ConnectionRefusedError):
            smtplib.SMTP(where["host"], int(where["port"]))
        commands.do("up")
        smtplib.SMTP(where["host"], int(where["port"])).quit()
    assert [mail.rfc_message_id for mail in Ledger(tmp_path / "l").read()] == ["<one@sender.example>"]


def test_no_password_stands_in_the_process_list(tmp_path: Path) -> None:
    with process(tmp_path):
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert "outtray_sandbox.smtp" in listing
        assert PASSWORD not in listing


def test_many_clients_at_once_each_get_their_answer(smtp: SmtpRig) -> None:
    def send(number: int) -> None:
        with client(smtp) as connected:
            connected.sendmail(USER, RECIPIENTS, TEXT.replace(b"one@", b"%d@" % number))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send, range(64)))
    assert len(smtp.taken()) == 64
    assert smtp.server.ledger.twice() == {}
