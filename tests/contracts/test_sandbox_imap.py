"""The sandbox's IMAP server as any client sees it: the standard library's, and bare lines on a socket."""

from __future__ import annotations

import imaplib
import json
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outtray_sandbox.imap import ImapServer
from outtray_sandbox.smtp import Control, SmtpServer
from polling import eventually

USER, PASSWORD = "ann@example.com", "secret"
MAIL = b"From: ann@example.com\r\nMessage-ID: <one@example.com>\r\nX-Key: a\r\n b\r\n\r\nhello\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ImapServer]:
    with SmtpServer(tmp_path / "accepted.jsonl", users={USER: PASSWORD}) as smtp, ImapServer(smtp) as imap:
        yield imap
        assert imap.post.seen["errors"] == 0


def logged_in(port: int) -> imaplib.IMAP4:
    client = imaplib.IMAP4("127.0.0.1", port, timeout=10)
    client.login(USER, PASSWORD)
    return client


def send(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.login(USER, PASSWORD)
        client.sendmail(USER, ["bob@example.org"], MAIL)


def test_what_is_appended_is_searched_and_fetched(server: ImapServer) -> None:
    client = logged_in(server.port)
    assert client.append("Sent", None, None, MAIL)[0] == "OK"
    assert client.append("Nowhere", None, None, MAIL)[0] == "NO"
    assert client.select("Sent", readonly=True) == ("OK", [b"1"])
    for criteria in (("HEADER", "X-Key", '"a b"'), ("SINCE", "01-Jan-2020"), ("ALL",)):
        assert client.search(None, *criteria) == ("OK", [b"1"]), criteria
    assert client.search(None, "HEADER", "X-Key", "c") == ("OK", [b""])
    assert client.search(None, "SINCE", "01-Jan-2090") == ("OK", [b""])
    typ, data = client.uid("FETCH", "1:*", "(UID RFC822.SIZE BODY.PEEK[HEADER.FIELDS (X-KEY)])")
    assert typ == "OK" and isinstance(data[0], tuple)
    assert data[0][1] == b"X-Key: a\r\n b\r\n\r\n"
    client.logout()


@pytest.mark.parametrize(
    "words", ['SEARCH X-GM-RAW "rfc822msgid:x"', "SEARCH NOT ALL", "STORE 1 +FLAGS (\\Seen)", "IDLE"]
)
def test_what_it_does_not_speak_it_refuses(server: ImapServer, words: str) -> None:
    client = logged_in(server.port)
    client.select("Sent")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as bare, bare.makefile("rwb") as lines:
        lines.readline()
        for line in (f"a LOGIN {USER} {PASSWORD}", "b SELECT Sent", f"c {words}", "d LIST (", "e NOOP"):
            lines.write(line.encode() + b"\r\n")
            lines.flush()
        said = [lines.readline()]
        while not said[-1].startswith(b"e "):
            said.append(lines.readline())
            assert said[-1], "it closed the connection"
    assert any(line.startswith(b"c BAD") for line in said)
    assert any(line.startswith(b"* BAD") for line in said)
    assert any(line.startswith(b"e OK") for line in said)


def test_a_wrong_password_is_refused_and_nothing_is_shown_before_the_login(server: ImapServer) -> None:
    client = imaplib.IMAP4("127.0.0.1", server.port, timeout=10)
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        client.login(USER, "wrong")
    client.state = "AUTH"
    with pytest.raises(imaplib.IMAP4.error, match="BAD"):
        client.list()
    assert client.select("Sent")[0] == "NO"


def test_files_sent_is_a_switch_and_the_copy_comes_with_its_lag(server: ImapServer) -> None:
    def found() -> bytes:
        client = logged_in(server.port)
        client.select("Sent", readonly=True)
        data = client.search(None, "HEADER", "Message-ID", "one@example.com")[1][0]
        client.logout()
        return bytes(data)

    send(server.smtp.port)
    assert found() == b""
    server.post.file_sent(True)
    server.post.set_lag(60)
    send(server.smtp.port)
    assert found() == b""
    server.post.shift_clock(61)
    assert found() == b"1"


def test_it_runs_as_a_process_of_its_own_and_obeys(tmp_path: Path) -> None:
    users = tmp_path / "users.json"
    users.write_text(json.dumps({USER: PASSWORD}))
    command = [
        sys.executable,
        "-m",
        "outtray_sandbox.imap",
        "--ledger",
        str(tmp_path / "l.jsonl"),
        "--users",
        str(users),
    ]
    more = ["--files-sent", "--imap-control", str(tmp_path / "control")]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        send(where["port"])
        client = logged_in(where["imap"]["port"])
        eventually(lambda: client.select("Sent", readonly=True)[1] == [b"1"])
        client.logout()
        control = Control(where["imap"]["control"])
        assert control.do("stats")["logins"] == 1
        control.do("add_rule", stage="connect", drop="before")
        with pytest.raises(imaplib.IMAP4.abort):
            imaplib.IMAP4("127.0.0.1", where["imap"]["port"], timeout=10)
        process.terminate()
        assert process.wait(20) == 0
