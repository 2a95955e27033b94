"""`outtray template` and `outtray send --csv`: a sequence for every row of a list, all of them or none."""

from __future__ import annotations

import csv
import re
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine, command
from databases import Database
from outtray import Outtray

INTRO = "Subject: Hello {{ name }}\n\nHi {{ name }}, how is {{ company|default('business') }}?\n"
MAILBOX = {"address": "Ann Lee <ann@example.com>", "host": "smtp.example.com", "password": "secret"}
THEN = ("--template", "intro", "--then", "nudge", "--after", "3d", "--then", "last", "--after", "7d")


@pytest.fixture
def outtray(database: Database) -> CommandLine:
    with Outtray(database.settings) as client:
        client.apps.add("default")
        client.mailboxes.add_smtp(**MAILBOX, default=True)
        client.templates.add("intro", subject="Hello {{ name }}", text=INTRO.partition("\n\n")[2])
        client.templates.add("nudge", text="Any news, {{ name }}?\n")
        client.templates.add("last", text="Good bye, {{ name }}.\n")
    return CommandLine.on(database.settings)


def stored(database: Database) -> list[dict[str, Any]]:
    columns = "id, state, due_at, follows, template, tags"
    with database.connect() as connection:
        rows = connection.execute(f"SELECT {columns} FROM outtray.message ORDER BY id").fetchall()
    return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]


def people(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "people.csv"
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_each_row_gets_its_sequence_once_however_often_it_is_run(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    # As a spreadsheet in Germany writes it: a byte order mark, semicolons, its own names, empty cells, a blank row.
    header, bob, carl = "E-Mail;Name;Company\r\n", 'bob@example.org;Bob;"Lee; Sons"\r\n', "carl@example.org;Carl;\r\n"
    ran = outtray.ok("send", "--csv", people(tmp_path, header + bob + carl, "utf-8-sig"), *THEN, "--json").json
    assert (ran["accepted"], ran["created"], ran["refused"]) == (6, 6, [])
    rows = stored(database)
    assert sorted(row["template"] for row in rows) == ["intro@1"] * 2 + ["last@1"] * 2 + ["nudge@1"] * 2
    ids = {row["id"] for row in rows}
    assert [row["follows"] in ids for row in rows if row["template"] != "intro@1"] == [True] * 4
    waiting = next(row for row in rows if row["template"] == "nudge@1")
    shown = outtray.ok("message", "show", str(waiting["id"]), "--json").json
    assert (shown["subject"], shown["template"], shown["due_at"]) == ("Re: Hello Bob", "nudge@1", None)
    assert shown["recipients"][0]["address"] == "bob@example.org"
    longer = people(
        tmp_path, header + carl + bob + ";;\r\n" + "BOB@example.org;Bob;Other\r\n" + "d@example.org;Dora;\r\n"
    )
    refused = outtray("send", "--csv", longer, *THEN)
    assert refused.code == 1 and re.search(r"row 5, \w+: differs from the first request", refused.err)
    assert len(stored(database)) == 6, "nothing of it"
    again = outtray.ok("send", "--csv", people(tmp_path, header + carl + bob + "d@example.org;Dora;\r\n"), *THEN)
    assert "9 messages accepted. (6 stood there already)" in again.out
    other = outtray.ok("send", "--csv", people(tmp_path, header + bob), *THEN, "--idempotency-key", "may", "--json")
    assert other.json["created"] == 3


def test_what_is_wrong_is_named_by_row_and_variable_and_nothing_is_stored(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    wrong = "to,name\nbob@example.org,Bob\nnobody,X\nx@example.org,\n,Y\na@b.example,b,c,d\n"
    ran = outtray("send", "--csv", people(tmp_path, wrong), *THEN)
    assert ran.code == 1 and stored(database) == []
    for text in (
        "row 3, to: 'nobody' is no address",
        "row 4, name: is missing",
        "row 5, to: is missing",
        "row 6, row:",
    ):
        assert text in ran.err
    assert outtray("send", "--csv", people(tmp_path, wrong), *THEN, "--dry-run").code == 1
    bad = tmp_path / "bad.csv"
    kept = outtray("send", "--csv", people(tmp_path, wrong), *THEN, "--keep-going", "--refused", str(bad), "--json")
    assert kept.code == 1 and (kept.json["accepted"], len(kept.json["refused"])) == (3, 4)
    assert bad.stat().st_mode & 0o077 == 0, "it holds addresses"
    rows = list(csv.reader(bad.open(newline="")))
    assert rows[0] == ["to", "name", "_refused"] and rows[2][:2] == ["x@example.org", ""]
    rows[2][1] = "Xenia"  # mended in place, and sent as it is
    with bad.open("w", newline="") as mended:
        csv.writer(mended).writerows([rows[0], rows[2]])
    assert outtray.ok("send", "--csv", str(bad), *THEN, "--json").json["created"] == 3


WRONG: list[tuple[str, tuple[str, ...], str]] = [
    ("x,y\n1,2\n", (), "which column holds the address? Say --column to=NAME; there are x and y"),
    ("x,y\n1,2\n", ("--column", "to=z"), "there is no such column; there are x and y"),
    ("x,y\n1,2\n", ("--column", "to"), "write VARIABLE=COLUMN"),
    ("to,Name,name\na@b.example,1,2\n", (), "two columns are called 'name'"),
    ("", (), "the file is empty"),
    ('to,name\na@b.example,"' + "x" * 200000, (), "is a quote left open?"),
    ("to,name\na@b.example,J\udcfcrgen\n", (), "line 2 is no UTF-8 text"),
    ("to\na@b.example\n", ("--then", "nudge"), "each --then has its --after"),
    ("to\na@b.example\n", ("--then", "nudge", "--after", "soon"), "--after soon"),
    ("to\na@b.example\n", ("--to", "b@c.example"), "--csv brings the addresses"),
    ("to\na@b.example\n", ("--text-file", "x"), "--template the text: leave out --text-file"),
]


def test_a_list_or_flags_that_cannot_be_are_refused_with_the_cure(outtray: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    for list_, flags, told in WRONG:
        path.write_bytes(list_.encode("utf-8", "surrogateescape"))
        ran = outtray("send", "--csv", str(path), "--template", "intro", *flags)
        assert ran.code == 2 and told in ran.err, told
    assert "--template: only with --csv" in outtray("send", "--template", "intro").err


def test_templates_are_kept_by_version_and_shown_as_they_were_written(outtray: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "intro.txt").write_text(INTRO)
    assert "is stored already, as intro@1" in outtray.ok("template", "add", "intro", str(tmp_path / "intro.txt")).out
    page = tmp_path / "page.html"
    page.write_text("<p>Hi {{ name }}</p>")
    added = outtray.ok("template", "add", "intro", str(page), "--subject", "Hey {{ name }}", "--json").json
    assert (added["version"], added["created"], added["variables"]) == (2, True, ["name"])
    assert [each["name"] for each in outtray.ok("template", "list", "--json").json] == ["intro", "last", "nudge"]
    assert outtray.ok("template", "show", "intro@1", "--json").json["source"]["text"] == INTRO.partition("\n\n")[2]
    shown = outtray.ok("template", "preview", "intro", "--set", "name=<Ann>", "--json").json
    assert shown == {"subject": "Hey <Ann>", "html": "<p>Hi &lt;Ann&gt;</p>"}
    list_ = people(tmp_path, "Mail\tFirst Name\na@b.example\tAnn\n")
    assert "Hi Ann" in outtray.ok("template", "preview", "intro@1", "--csv", list_, "--column", "name=first name").out
    for name, code in (("nothing", 3), ("intro@9", 3), ("in tro", 3)):
        assert outtray("template", "show", name).code == code
    bad = outtray("template", "add", "bad", "-", stdin="Hi\n{{ name")
    assert bad.code == 1 and "text: line 2:" in bad.err
    assert outtray("template", "add", "a@1", "-", stdin="Hi").code == 1


@pytest.mark.slow
def test_a_bad_row_at_the_end_of_100_000_refuses_all_in_bounded_memory(
    outtray: CommandLine, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "people.csv"
    with path.open("w") as file:
        file.write("to,name,company\n")
        file.writelines(f"u{n}@example.org,{'' if n == 99_998 else 'Ann'},{'x' * 200}\n" for n in range(100_000))
    limit = 400 * 1024 * 1024
    ran = subprocess.run(
        command("send", "--csv", str(path), "--template", "intro"),
        env=outtray.full_environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1 and "row 100000, name: is missing" in ran.stderr, ran.stderr
    assert stored(database) == []
