"""Retry: only what failed, and nothing that may have left. Suppression, by hand and from files."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from command_line import CommandLine
from crm import ask, crm, forget_wakes, hello, mailbox_row, message_row, published
from outtray import NotFound, Refused, WrongState

ANN = "ann@elsewhere.example"


@pytest.fixture
def client(database):
    with crm(database.settings) as made:
        yield made


@pytest.fixture
def outtray(database):
    return CommandLine.on(database.settings)


def failed(client, settings, reason: str = "550 mailbox full", columns: str = "", *values: Any, **fields: Any) -> UUID:
    message = client.enqueue(hello(**fields)).id
    ask(settings, "UPDATE outtray.message SET state = 'failed', ended_at = outtray.outtray_now(), attempt = 8,"
        f" failing_since = outtray.outtray_now(), reason = %s, handover = 8 {columns} WHERE id = %s",
        reason, *values, message)  # fmt: skip
    return message


def test_a_failed_message_begins_anew_and_its_mailbox_is_woken(client, database):
    settings = database.settings
    message = failed(client, settings, "poison: its worker died 3 times", ", prepares = 3")
    forget_wakes(settings)
    client.retry_one(message)
    row = message_row(settings, message)
    assert (row["state"], row["attempt"], row["prepares"], row["failing_since"], row["ended_at"]) == (
        "queued", 0, 0, None, None,
    )  # fmt: skip
    assert row["handover"] == 8, "the number only ever rises"
    assert mailbox_row(settings)["id"] in published(settings)
    last = client.journal(message)[-1]
    assert (last.kind, last.actor) == ("retried", "crm")


HINDRANCES = {
    "may have left": ", may_have_left = true",
    "an earlier handover": ", counted_at = outtray.outtray_now()",
    "draft is not known": """, draft = '{"id": "d"}', draft_end = 'gone'""",
    "draft is not known to be deleted": """, draft = '{"id": "d"}'""",
    "expires_at is past": ", expires_at = outtray.outtray_now()",
}


@pytest.mark.parametrize("why", HINDRANCES)
def test_what_may_have_left_or_cannot_go_stays_failed_and_says_why(client, database, why):
    message = failed(client, database.settings, "550 no", HINDRANCES[why])
    with pytest.raises(WrongState, match=why):
        client.retry_one(message)
    found = client.retry_where(reason="550")
    assert found.retried == 0 and sum(found.left.values()) == 1
    assert message_row(database.settings, message)["state"] == "failed"


def test_a_draft_that_was_deleted_is_made_anew(client, database):
    message = failed(client, database.settings, "550 no", """, draft = '{"id": "d"}', draft_end = 'deleted'""")
    client.retry_one(message)
    row = message_row(database.settings, message)
    assert (row["draft"], row["draft_end"]) == (None, None)


def test_only_what_failed_is_tried_again(client, database):
    waits = client.enqueue(hello(tags=["spring"])).id
    with pytest.raises(WrongState, match="is queued; only one that failed"):
        client.retry_one(waits)
    with pytest.raises(NotFound):
        client.retry_one(uuid4())
    with pytest.raises(Refused, match="name a tag"):
        client.retry_where()
    assert client.retry_where(tag="spring").retried == 0


def test_many_are_tried_again_by_tag_and_reason(client, database, outtray):
    settings = database.settings
    full = [failed(client, settings, "452 Mailbox FULL", tags=["spring"]) for _ in range(3)]
    gone = failed(client, settings, "550 no such user", tags=["spring"])
    risky = failed(client, settings, "452 mailbox full", ", may_have_left = true", tags=["spring"])
    would = outtray.ok("retry", "--tag", "spring", "--reason", "mailbox full", "--dry-run", "--json").json
    assert would == {"retried": 3, "left": {"may have left": 1}}
    assert outtray("retry", "--reason", "mailbox full", stdin="n\n").code == 1
    assert message_row(settings, full[0])["state"] == "failed"
    told = outtray.ok("retry", "--reason", "mailbox full", stdin="y\n").out.replace("\n", " ")
    assert "3 failed messages queued again" in told and "1 left as they are" in told
    assert {message_row(settings, each)["state"] for each in full} == {"queued"}
    assert {message_row(settings, each)["state"] for each in (gone, risky)} == {"failed"}
    assert outtray.ok("retry", str(gone), "--json").json["retried"] == 1
    assert outtray("retry", str(gone)).code == 5
    assert outtray("retry").code == 2 and outtray("retry", str(gone), "--tag", "spring").code == 2


def test_addresses_are_suppressed_listed_and_allowed_again(client, database, outtray):
    waits = client.enqueue(hello()).id
    told = outtray.ok("suppress", "add", ANN, "bob@elsewhere.example", "--reason", "complaint").out
    assert "2 addresses suppressed, 1 message cancelled" in told.replace("\n", " ")
    assert message_row(database.settings, waits)["reason"] == "suppressed"
    listed = outtray.ok("suppress", "list", "--json").json["items"]
    assert {(each["address"], each["reason"]) for each in listed} == {
        (ANN, "complaint"), ("bob@elsewhere.example", "complaint"),
    }  # fmt: skip
    outtray.ok("suppress", "remove", ANN)
    assert outtray("suppress", "remove", ANN).code == 3
    assert outtray("suppress", "add", "nonsense").code == 1
    journal = ask(database.settings, "SELECT kind, detail->'addresses' AS n FROM outtray.journal"
                  " WHERE kind LIKE '%%suppressed' ORDER BY id")  # fmt: skip
    assert [(row["kind"], row["n"]) for row in journal] == [("suppressed", 2), ("unsuppressed", 1)]


def test_a_file_is_imported_whole_or_not_at_all_and_can_be_imported_again(client, outtray, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(
        f"\ufeffaddress,reason\n{ANN},bounced\n\n  bob@elsewhere.example  \nANN@elsewhere.example,complaint\n"
    )
    client.enqueue(hello())
    first = outtray.ok("suppress", "import", str(file), "--json").json
    assert (first["suppressed"], first["cancelled"]["cancelled"], first["refused"]) == (3, 1, [])
    assert outtray.ok("suppress", "import", str(file), "--json").json["suppressed"] == 3
    listed = {each.address: each.reason for each in client.suppressions().items}
    assert listed.keys() == {ANN, "bob@elsewhere.example"} and listed["bob@elsewhere.example"] == "imported"
    bad = "carl@elsewhere.example\nnonsense\n"
    refused = outtray("suppress", "import", "-", "--json", stdin=bad)
    assert refused.code == 1 and refused.error["lines"][0]["line"] == 2
    assert len(client.suppressions().items) == 2, "nothing of it was stored"
    some = outtray.ok("suppress", "import", "-", "--keep-going", "--reason", "x", stdin=bad)
    assert "1 lines left out: 2" in some.out.replace("\n", " ")
    assert outtray("suppress", "import", "/nowhere.csv").code == 2
