"""A look that cannot be carried out: at every step, it is `failed`, says who has to wait, and ends soon."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from imap_rig import ImapRig, lost
from provider_rigs import CANARIES, PASSWORD, TOKEN, USER, new_mail

from outtray_sandbox.smtp import make_certificates
from outtray_schema.outcome import Held, Parked
from outtray_worker.deadline import boottime
from outtray_worker.providers import Account, NoToken
from outtray_worker.providers.smtp import Check
from outtray_worker.providers.smtp.imap.client import LITERAL
from outtray_worker.providers.smtp.imap.look import Check as ImapCheck
from polling import until

STEPS = ("connect", "capability", "login", "list", "select", "fetch")
"""Without `search`: a server that refuses to search can still be read."""
BREAKS: dict[str, dict[str, Any]] = {
    "closes": {"drop": "before"},
    "closes after its work": {"drop": "after"},
    "says nothing": {"silent": True},
    "is late": {"late": 60.0},
    "says garbage": {"raw": "\x00\xff\xfe hello\r\n", "drop": "after"},
    "says HTTP": {"raw": "HTTP/1.1 200 OK\r\n\r\n", "drop": "after"},
    "breaks off in mid-line": {"raw": "* OK rea", "drop": "after"},
    "floods": {"raw": "* " + "x" * 2_000_000},
    "announces a literal that nobody can hold": {"raw": '* LIST () "/" {4000000000}\r\n'},
    "promises more and goes": {"raw": '* LIST () "/" {100}\r\nSent', "drop": "after"},
    "says goodbye": {"raw": "* BYE too many\r\n", "drop": "after"},
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ImapRig]:
    quick = {"command_timeout": "400ms", "connect_timeout": "2s"}
    with ImapRig(tmp_path, imap={"files_sent": True}, settings=quick) as imap_rig:
        yield imap_rig


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("stage", (*STEPS, "search"))
def test_what_breaks_parks_the_look_and_proves_nothing(rig: ImapRig, stage: str, how: str) -> None:
    trace = rig.send()
    rig.server.add_rule(stage=stage, **BREAKS[how])
    begun = boottime()
    found = rig.look(trace)
    assert found.kind == "failed", found
    assert isinstance(found.outcome, Parked)
    assert found.outcome.scope == "connection"
    assert f"{rig.server.host}:{rig.server.port}" in found.outcome.reason
    assert boottime() - begun < 2.5
    assert rig.post.seen["connections"] == 1


@pytest.mark.parametrize("stage", STEPS[1:])
@pytest.mark.parametrize("answer", ["NO not now", "BAD what", "NO [UNAVAILABLE] later"])
def test_a_refusal_of_any_step_is_no_evidence(rig: ImapRig, stage: str, answer: str) -> None:
    trace = rig.send()
    rig.server.add_rule(stage=stage, reply=answer)
    found = rig.look(trace)
    assert found.kind == "failed", found
    waits = stage != "login" or "UNAVAILABLE" in answer
    assert isinstance(found.outcome, Parked if waits else Held), found


def test_a_search_that_is_refused_is_made_up_for_by_reading_the_newest(rig: ImapRig) -> None:
    trace = rig.send()
    rig.server.add_rule(stage="search", reply="NO [CANNOT] no index")
    found = rig.look(trace)
    assert (found.kind, rig.look(lost()).kind) == ("sent", "absent")
    assert found.looked.count("refused to search") == 2


@pytest.mark.parametrize("stage", STEPS)
@pytest.mark.parametrize(
    "fault", [{"drop": "before"}, {"drop": "after"}, {"silent": True}, {"reply": "NO not now"}], ids=str
)
def test_the_next_look_of_the_session_is_served_after_any_fault(
    rig: ImapRig, stage: str, fault: dict[str, Any]
) -> None:
    trace = rig.send()
    rig.server.add_rule(stage=stage, **fault, times=1)

    async def twice() -> list[str]:
        session = rig.smtp.provider.open(rig.account)
        kinds = [(await session.find_evidence(trace)).kind for _ in range(2)]
        await session.close()
        return kinds

    assert rig.run(twice()) == ["failed", "sent"]


def test_a_server_that_is_away_parks_the_look(rig: ImapRig) -> None:
    trace = rig.send()
    rig.server.down()
    found = rig.look(trace)
    assert (found.kind, type(found.outcome)) == ("failed", Parked)
    rig.server.up()
    assert rig.look(trace).kind == "sent"


def test_a_server_that_never_ends_is_cut_off_and_leaves_no_thread_busy(tmp_path: Path) -> None:
    """One line after the other, each in time: only the look's own limit ends that."""
    settings = {"look_limit": "500ms", "command_timeout": "20s", "looks_at_once": "1"}
    with Dripping() as server, ImapRig(tmp_path, settings=settings) as rig:
        found = rig.look(lost(), rig.account_with(host="127.0.0.1", port=server.port))
        assert (found.kind, type(found.outcome)) == ("failed", Parked)
        assert rig.look(rig.send()).kind == "sent", "its one thread is still at the first server"


def test_a_look_that_is_given_up_ends_its_thread(tmp_path: Path) -> None:
    settings = {"command_timeout": "20s", "look_limit": "20s", "looks_at_once": "1"}
    with ImapRig(tmp_path, settings=settings) as rig:
        trace = rig.send()
        rig.server.add_rule(stage="list", silent=True, times=1)

        async def given_up() -> str:
            session = rig.smtp.provider.open(rig.account)
            task = asyncio.ensure_future(session.find_evidence(trace))
            await until(lambda: rig.post.seen["list"] == 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            kind = (await session.find_evidence(trace)).kind
            await session.close()
            return kind

        assert rig.run(given_up()) == "sent"


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_a_certificate_of_nobody_that_we_know_is_refused_before_the_login(tls: str, tmp_path: Path) -> None:
    with ImapRig(tmp_path, tls) as rig:
        account = rig.account_with()
        other = make_certificates(tmp_path / "other")
        strange = {**account.server, "ca_file": str(other.ca_file)}
        found = rig.look(lost(), Account(account.mailbox_id, account.host, strange, USER, account.credentials))
        assert isinstance(found.outcome, Parked)
        assert "certificate" in found.outcome.reason
        assert rig.post.seen["logins"] == 0


def test_in_clear_nothing_is_read_unless_the_settings_allow_it(tmp_path: Path) -> None:
    with ImapRig(tmp_path) as rig:
        imap = rig.smtp.provider.imap
        imap.settings = imap.settings.model_copy(update={"smtp_clear_loopback": False})
        found = rig.look(lost())
    assert isinstance(found.outcome, Held)
    assert "without TLS is refused" in found.outcome.reason
    assert rig.post.seen["logins"] == 0


GREETINGS = {
    "offers no STARTTLS": "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\r\n",
    "before any login": "* PREAUTH [CAPABILITY IMAP4rev1 AUTH=PLAIN] hello\r\n",
}


@pytest.mark.parametrize("why", GREETINGS)
def test_no_login_is_given_where_starttls_was_taken_away(why: str, tmp_path: Path) -> None:
    with Scripted(GREETINGS[why]) as server, ImapRig(tmp_path, "starttls") as rig:
        found = rig.look(lost(), rig.account_with(port=server.port))
    assert isinstance(found.outcome, Parked)
    assert why in found.outcome.reason
    assert [line.split()[1] for line in server.heard] == ["CAPABILITY"]


# ── login ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Tokens:
    """A mailbox's tokens: `given` first, then `newer`."""

    def __init__(self, given: str, newer: str | None = None) -> None:
        self.given, self.newer, self.renewals = given, newer, 0

    async def access(self) -> str:
        return self.given

    async def renewed(self, refused: str, claims: str | None = None) -> str:
        self.renewals += 1
        if self.newer is None:
            raise NoToken(Held("the consent is gone"))
        return self.newer


def by_token(rig: ImapRig, tokens: Tokens, *scopes: str) -> Account:
    box = rig.account_with({"username": "token@sender.example"})
    return Account(
        box.mailbox_id, box.host, box.server, "token@sender.example", box.credentials, frozenset(scopes), tokens
    )


def test_a_token_opens_the_mailbox(rig: ImapRig) -> None:
    rig.other("token@sender.example")
    assert rig.look(lost(), by_token(rig, Tokens(TOKEN))).kind == "absent"


def test_a_token_that_is_refused_is_renewed_once(rig: ImapRig) -> None:
    tokens = Tokens("old-token", TOKEN)
    assert rig.look(lost(), by_token(rig, tokens)).kind == "absent"
    assert (tokens.renewals, rig.post.seen["logins"]) == (1, 2)


def test_a_refused_token_is_answered_as_the_protocol_wants_and_its_reason_is_heard(rig: ImapRig) -> None:
    found = rig.look(lost(), rig.account_with({"username": USER, "access_token": "old-token"}))
    assert found.outcome is not None
    assert found.outcome.evidence["rule"] == "imap-credentials", "an empty line asks for the refusal itself"


def test_a_literal_that_is_too_large_is_not_waited_for(rig: ImapRig) -> None:
    rig.server.add_rule(stage="list", raw=f'* LIST () "/" {{{LITERAL + 1}}}\r\n')
    found = rig.look(lost())
    assert found.outcome is not None and found.outcome.evidence["rule"] == "imap-garbled"


def test_a_consent_that_is_gone_fails_the_look_and_tells_who_has_to_act(rig: ImapRig) -> None:
    found = rig.look(lost(), by_token(rig, Tokens("old-token")))
    assert (found.kind, found.outcome) == ("failed", Held("the consent is gone"))


def test_without_the_scope_for_imap_there_is_no_way(rig: ImapRig) -> None:
    send, read = "https://outlook.office.com/SMTP.Send", "https://outlook.office.com/IMAP.AccessAsUser.All"
    assert rig.look(lost(), by_token(rig, Tokens(TOKEN), send)).kind == "no_way"
    assert rig.post.seen["connections"] == 0
    assert rig.look(lost(), by_token(rig, Tokens(TOKEN), send, read)).kind == "absent"


def test_a_login_of_its_own_for_imap_is_used_there_only(rig: ImapRig) -> None:
    rig.smtp.server.house.add_user("reader", "reads-only")
    own = {"username": USER, "password": "wrong", "imap_username": "reader", "imap_password": "reads-only"}
    assert rig.look(lost(), rig.account_with(own)).kind == "absent"
    without = {"username": USER, "password": "wrong"}
    found = rig.look(lost(), rig.account_with(without))
    assert isinstance(found.outcome, Held)
    assert rig.post.seen["logins"] == 2, "a bad login is tried once"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)", Held, "refuses the login"),
        ("NO [ALERT] Application-specific password required", Held, "app password"),
        ("NO [ALERT] Your account is not enabled for IMAP use.", Held, "IMAP switched off"),
        ("NO [ALERT] Too many simultaneous connections. (Failure)", Parked, "too many connections"),
        ("NO [UNAVAILABLE] Temporary authentication failure", Parked, "cannot be read now"),
        ("BAD User is authenticated but not connected.", Parked, "lets the login in and shows nothing"),
        ("NO nothing known", Held, "refuses the login"),
    ],
)
def test_a_refused_login_says_who_has_to_act(rig: ImapRig, text: str, kind: type, words: str) -> None:
    rig.server.add_rule(stage="login", reply=text)
    found = rig.look(lost())
    assert isinstance(found.outcome, kind), found
    assert words in found.outcome.reason


@pytest.mark.parametrize(
    ("options", "credentials", "kind"),
    [
        ({"mechanisms": ()}, {}, "absent"),
        ({"mechanisms": ("PLAIN",), "login": False}, {}, "absent"),
        ({"mechanisms": (), "login": False}, {}, "failed"),
        ({"mechanisms": ()}, {"password": "pässword"}, "failed"),
        ({"mechanisms": ("PLAIN",)}, {"password": "pässword"}, "absent"),
        ({}, {"username": ""}, "failed"),
        ({"mechanisms": ()}, {"username": "x\r\nA1 LOGOUT"}, "failed"),
        ({"mechanisms": ()}, {"username": 'spa ce "and\\more'}, "absent"),
    ],
)
def test_one_mechanism_is_chosen_by_what_the_server_offers(
    options: dict[str, Any], credentials: dict[str, str], kind: str, tmp_path: Path
) -> None:
    with ImapRig(tmp_path, imap={"files_sent": True}, **options) as rig:
        given = {"username": USER, "password": PASSWORD, **credentials}
        rig.smtp.server.house.add_user(given["username"], given["password"])
        assert rig.look(lost(), rig.account_with(given)).kind == kind


# ── what is said ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", [None, "connect", "login", "list", "select", "search", "fetch"])
def test_no_finding_and_no_log_line_holds_a_secret(
    rig: ImapRig, stage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = f"of {USER}"
    rig.post.folders = ((folder, "\\Sent"),)
    trace = rig.send(new_mail())
    if stage:
        echo = f"NO [ALERT] {USER} with {PASSWORD} may not read {folder}: {trace.rfc_message_id}"
        rig.server.add_rule(stage=stage, reply=echo)
    said = repr(rig.look(trace)) + repr(rig.look(lost())) + repr(rig.account) + caplog.text
    said = said.replace(repr(rig.account.address), "")
    assert [canary for canary in CANARIES if canary in said] == []


def test_the_test_of_a_mailbox_looks_there_too(tmp_path: Path) -> None:
    with ImapRig(tmp_path, "starttls", gmail=True) as rig:
        found = rig.run(checked(rig))
        assert isinstance(found, Check)
        assert isinstance(found.imap, ImapCheck)
        assert found.imap.gmail_search and found.imap.tls.startswith("TLS") and found.imap.mechanism == "plain"
        rig.server.down()
        away = rig.run(checked(rig))
    assert isinstance(away, Check), "a mail leaves whether anybody can look or not"
    assert isinstance(away.imap, str) and "refused" in away.imap


async def checked(rig: ImapRig) -> Any:
    return await rig.smtp.provider.check(rig.account)


class Scripted:
    """A server in clear that greets, and answers every command with the same capabilities and OK."""

    def __init__(self, greeting: str) -> None:
        self._greeting = greeting.encode()
        self.heard: list[str] = []

    def __enter__(self) -> Scripted:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rw", encoding="latin-1", newline="\r\n") as lines:
            connection.sendall(self._greeting)
            for line in lines:
                self.heard.append(line)
                tag = line.split()[0]
                connection.sendall(f"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n{tag} OK done\r\n".encode())

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self._thread.join(timedelta(seconds=5).total_seconds())


class Dripping:
    """A server that greets, and then says one line after the other that nobody asked for."""

    def __enter__(self) -> Dripping:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            try:
                connection.sendall(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\r\n")
                while not self._over.wait(0.02):
                    connection.sendall(b"* OK still here\r\n")
            except OSError:
                return

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timedelta(seconds=5).total_seconds())
        self._listener.close()
