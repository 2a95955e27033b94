"""`outtray send`: one message from flags, many from a file, all of them or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from databases import Database


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    line = CommandLine.on(database.settings)
    line.ok("app", "add", "default")
    line.ok(
        *("mailbox", "add", "smtp", "Ann Lee <ann@example.com>", "--host", "smtp.example.com", "--password-stdin"),
        stdin="secret",
    )
    return line


def stored(database: Database) -> int:
    with database.connect() as connection:
        row = connection.execute("SELECT count(*) FROM outtray.message").fetchone()
    assert row is not None
    return int(row[0])


def rows_file(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.ndjson"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def good(n: int, **more: Any) -> dict[str, Any]:
    return {"to": f"r{n}@example.org", "subject": f"Hello {n}", "text": "Hi", **more}


def test_a_message_from_flags_is_stored_as_it_was_asked_for(outtray: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "offer.html").write_text("<p>Offer</p>")
    (tmp_path / "offer.pdf").write_bytes(b"%PDF" * 100)
    accepted = outtray.ok(
        *("send", "--to", "Bob Lee <bob@example.org>", "--cc", "c@example.org", "--bcc", "d@example.org", "--json"),
        *("--subject", "Offer", "--html-file", str(tmp_path / "offer.html"), "--attach", str(tmp_path / "offer.pdf")),
        *("--tag", "spring", "--metadata", '{"contact": 7}', "--priority", "high", "--send-at", "+2h"),
        *("--header", "X-Campaign: spring", "--idempotency-key", "one"),
    ).json
    assert (accepted["created"], accepted["state"]) == (True, "queued")
    shown = outtray.ok("message", "show", accepted["id"], "--json").json
    assert (shown["subject"], shown["priority"], shown["tags"], shown["metadata"]) == (
        *("Offer", "high", ["spring"]),
        {"contact": 7},
    )
    assert [(each["role"], each["address"]) for each in shown["recipients"]] == [
        ("to", "bob@example.org"),
        ("cc", "c@example.org"),
        ("bcc", "d@example.org"),
    ]
    assert shown["journal"][0]["kind"] == "enqueued"
    page = outtray.ok("message", "show", accepted["id"]).out
    assert all(word in page for word in (accepted["id"], "bob@example.org", "Offer", "enqueued", "spring"))


def test_the_text_comes_from_standard_input_which_must_not_be_empty(outtray: CommandLine, database: Database) -> None:
    assert outtray("send", "--to", "bob@example.org", stdin="Hi Bob").code == 0
    refused = outtray("send", "--to", "bob@example.org", stdin="")
    assert (refused.code, stored(database)) == (2, 1)


def test_the_same_key_again_answers_with_the_first_message(outtray: CommandLine) -> None:
    arguments = ("send", "--to", "bob@example.org", "--idempotency-key", "k", "--json")
    first = outtray.ok(*arguments, stdin="Hi").json
    again = outtray.ok(*arguments, stdin="Hi").json
    assert (again["id"], again["created"]) == (first["id"], False)
    conflict = outtray(*arguments, "--subject", "Other", stdin="Hi")
    assert (conflict.code, conflict.error["message_id"]) == (1, first["id"])
    assert [problem["field"] for problem in conflict.error["problems"]] == ["subject"]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--to", "nobody"), "to[0]"),
        (("--to", "b@example.org", "--from", "other@example.com"), "from"),
        (("--to", "b@example.org", "--mailbox", "zoe@example.com"), "mailbox"),
        (("--to", "b@example.org", "--header", "Bcc: x@example.org"), "headers[Bcc]"),
        (("--to", "b@example.org", "--subject", "a\nBcc: x@example.org"), "subject"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field_and_nothing_is_stored(
    outtray: CommandLine, database: Database, flags: tuple[str, ...], field: str
) -> None:
    refused = outtray("send", *flags, "--json", stdin="Hi")
    assert (refused.code, stored(database)) == (1, 0)
    assert [problem["field"] for problem in refused.error["problems"]] == [field]


@pytest.mark.parametrize(
    "flags",
    [
        ("--send-at", "tomorrow"),
        ("--send-at", "2027-01-31T09:00:00"),
        ("--metadata", "[1]"),
        ("--header", "X"),
        ("--inline", "x"),
    ],
)
def test_a_flag_that_cannot_be_read_is_a_usage_error_that_shows_how(
    outtray: CommandLine, flags: tuple[str, ...]
) -> None:
    refused = outtray("send", "--to", "bob@example.org", *flags, stdin="Hi")
    assert refused.code == 2
    assert flags[0] in refused.err


def test_a_dry_run_judges_by_the_database_and_stores_nothing(outtray: CommandLine, database: Database) -> None:
    tried = outtray.ok("send", "--to", "bob@example.org", "--dry-run", "--json", stdin="Hi").json
    assert (tried["dry_run"], tried["created"], stored(database)) == (True, True, 0)
    assert outtray("send", "--to", "b@example.org", "--mailbox", "zoe@example.com", "--dry-run", stdin="Hi").code == 1


def test_a_file_is_taken_whole(outtray: CommandLine, database: Database, tmp_path: Path) -> None:
    path = rows_file(tmp_path, *(good(n) for n in range(600)))
    sent = outtray.ok("send", "--file", str(path), "--idempotency-key", "spring", "--json").json
    assert (sent["accepted"], sent["created"], stored(database)) == (600, 600, 600)
    again = outtray.ok("send", "--file", str(path), "--idempotency-key", "spring", "--json").json
    assert (again["accepted"], again["created"], stored(database)) == (600, 0, 600)


def test_one_bad_line_keeps_the_whole_file_out_and_every_bad_line_is_named(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    path = rows_file(tmp_path, good(1), {"to": "nobody", "text": "x"}, "{", "", good(2, subjekt="x"))
    refused = outtray("send", "--file", str(path), "--json")
    assert (refused.code, stored(database)) == (1, 0)
    assert [problem["field"] for problem in refused.error["problems"]] == [
        "line 2, to",
        "line 3, line",
        "line 5, subjekt",
    ]
    assert [each["line"] for each in refused.error["lines"]] == [2, 3, 5]


def test_what_only_the_mailbox_refuses_keeps_the_whole_file_out_too(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    path = rows_file(tmp_path, *(good(n) for n in range(600)), good(601, mailbox="zoe@example.com"))
    refused = outtray("send", "--file", str(path), "--json")
    assert (refused.code, stored(database)) == (1, 0)
    assert [problem["field"] for problem in refused.error["problems"]] == ["line 601, mailbox"]


def test_keeping_going_takes_the_good_rows_and_writes_the_bad_ones_to_be_mended(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    path = rows_file(tmp_path, good(1), {"to": "nobody", "text": "x"}, "{", good(2, mailbox="zoe@example.com"), good(3))
    bad = tmp_path / "bad.ndjson"
    assert outtray("send", "--file", str(path), "--keep-going").code == 2
    sent = outtray("send", "--file", str(path), "--keep-going", "--refused", str(bad), "--json")
    assert (sent.code, sent.json["accepted"], stored(database)) == (1, 2, 2)
    assert [each["line"] for each in sent.json["refused"]] == [2, 3, 4]
    assert bad.stat().st_mode & 0o777 == 0o600
    written = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [row["_refused"]["line"] for row in written] == [2, 3, 4]
    mended = rows_file(
        tmp_path, {**written[0], "to": "somebody@example.org"}, {**written[2], "mailbox": "ann@example.com"}
    )
    assert outtray.ok("send", "--file", str(mended), "--json").json["created"] == 2


def test_a_dry_run_of_a_file_tells_all_that_is_wrong_and_stores_nothing(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    path = rows_file(tmp_path, good(1), {"to": "nobody", "text": "x"}, good(2, mailbox="zoe@example.com"))
    tried = outtray("send", "--file", str(path), "--dry-run", "--json")
    assert (tried.code, tried.json["accepted"], stored(database)) == (1, 1, 0)
    assert [each["line"] for each in tried.json["refused"]] == [2, 3]


def test_a_file_may_come_by_standard_input(outtray: CommandLine, database: Database) -> None:
    sent = outtray.ok("send", "--file", "-", "--json", stdin="".join(json.dumps(good(n)) + "\n" for n in range(3)))
    assert (sent.json["created"], stored(database)) == (3, 3)


def test_mail_is_accepted_while_redis_is_away(outtray: CommandLine, database: Database) -> None:
    sent = outtray("send", "--to", "bob@example.org", "--json", stdin="Hi", OUTTRAY_REDIS_URL="redis://127.0.0.1:1/0")
    assert (sent.code, stored(database)) == (0, 1)


def test_waiting_for_what_does_not_leave_ends_with_its_state(outtray: CommandLine) -> None:
    waited = outtray("send", "--to", "bob@example.org", "--wait", "0.1", "--json", stdin="Hi")
    assert (waited.code, waited.json["state"]) == (1, "queued")


def test_importance_receipt_and_answer_come_by_flags(outtray: CommandLine, database: Database) -> None:
    first = outtray.ok("send", "--to", "bob@example.org", "--subject", "Hello", "--json", stdin="Hi").json["id"]
    flags = ("--reply-to-message", first, "--importance", "high", "--request-read-receipt", "--json")
    answered = outtray.ok("send", *flags, "--answering", "reply_all", stdin="Yes").json["id"]
    assert outtray.ok("send", *flags, "--dry-run", stdin="Yes").json["dry_run"]
    assert "those whom it answers" in outtray.ok("send", *flags[:-1], "--dry-run", stdin="Yes").out
    shown = outtray.ok("message", "show", answered, "--json").json
    assert (shown["state"], shown["recipients"], shown["mode"], shown["missing_ids"]) == ("queued", [], "send", {})
    forwarded = outtray.ok("send", *flags, "--answering", "forward", "--to", "dora@example.org").json["id"]
    assert outtray.ok("message", "show", forwarded, "--json").json["recipients"][0]["address"] == "dora@example.org"
    assert outtray("send", *flags, "--answering", "forward").error["problems"][0]["field"] == "to"


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--to", "b@example.org", "--draft"), "mode"),
        (("--reply-to-message", "<theirs@example.org>"), "reply_to_message"),
        (("--reply-to-message", "0199b0c2-0000-7000-8000-000000000000"), "reply_to_message"),
        (("--to", "b@example.org", "--answering", "reply_all"), "answering"),
    ],
)
def test_what_an_smtp_mailbox_cannot_do_is_refused_by_its_field(
    outtray: CommandLine, database: Database, flags: tuple[str, ...], field: str
) -> None:
    refused = outtray("send", *flags, "--json", stdin="Hi")
    assert (refused.code, stored(database)) == (1, 0)
    assert [problem["field"] for problem in refused.error["problems"]] == [field]


def test_what_left_shows_its_ids_or_why_there_is_none_and_is_found_by_them(
    outtray: CommandLine, database: Database
) -> None:
    message_id = outtray.ok("send", "--to", "bob@example.org", "--json", stdin="Hi").json["id"]
    with database.connect() as connection:
        connection.execute(
            "UPDATE outtray.message SET state = 'sent', ended_at = outtray.outtray_now(), provider_id = '4FQ1x'"
        )
    page = outtray.ok("message", "show", message_id).out
    assert "4FQ1x" in page and "none: SMTP knows no conversations" in page
    shown = outtray.ok("message", "show", message_id, "--json").json
    assert shown["missing_ids"] == {"conversation_id": "SMTP knows no conversations"}
    for flags in (("--provider-id", "4FQ1x"), ("--message-id", shown["rfc_message_id"])):
        assert [each["id"] for each in outtray.ok("message", "list", *flags, "--json").json["items"]] == [message_id]
    assert outtray.ok("message", "list", "--provider-id", "4FQ1y", "--json").json["items"] == []


def test_messages_are_listed_newest_first_and_by_page(outtray: CommandLine, tmp_path: Path) -> None:
    outtray.ok("send", "--file", str(rows_file(tmp_path, *(good(n, tags=["odd"] if n % 2 else []) for n in range(5)))))
    first = outtray.ok("message", "list", "--limit", "3", "--json").json
    rest = outtray.ok("message", "list", "--limit", "3", "--cursor", first["next_cursor"], "--json").json
    assert [each["subject"] for each in first["items"] + rest["items"]] == [f"Hello {n}" for n in (4, 3, 2, 1, 0)]
    assert len(outtray.ok("message", "list", "--tag", "odd", "--json").json["items"]) == 2
    assert len(outtray.ok("message", "list", "--to", "r3@example.org", "--json").json["items"]) == 1
    assert outtray("message", "list", "--state", "lost").code == 1


def test_a_whole_mail_an_invitation_and_a_list_come_by_flags(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    mail, event = tmp_path / "mail.eml", tmp_path / "event.ics"
    mail.write_text("From: ann@example.com\nTo: bob@example.org\nSubject: Raw\nMessage-ID: <r@example.com>\n\nHi")
    accepted = outtray.ok("send", "--eml", str(mail), "--bcc", "dora@example.org", "--json").json["id"]
    shown = outtray.ok("message", "show", accepted, "--json").json
    assert (shown["subject"], shown["rfc_message_id"]) == ("Raw", "<r@example.com>")
    assert [(each["role"], each["address"]) for each in shown["recipients"]] == [
        ("to", "bob@example.org"), ("bcc", "dora@example.org"),
    ]  # fmt: skip
    refused = outtray("send", "--eml", str(mail), "--subject", "Other", "--json")
    assert (refused.code, refused.error["problems"][0]["field"]) == (1, "subject")
    assert outtray("send", "--eml", str(tmp_path / "none.eml")).code == 2
    assert outtray("send", "--eml", str(mail), "--text-file", str(mail)).code == 2
    event.write_text("BEGIN:VCALENDAR\nEND:VCALENDAR\n")
    bad = outtray("send", "--to", "bob@example.org", "--invitation", str(event), "--json")
    assert (bad.code, bad.error["problems"][0]["field"]) == (1, "invitation")
    url = ("--unsubscribe-url", "https://crm.example/u", "--unsubscribe-mailto", "leave@crm.example")
    outtray.ok("send", "--to", "bob@example.org", "--subject", "List", *url, stdin="Hi")
    assert stored(database) == 2
