"""Templates from Python: rows are checked before anything is stored, and refusals name the row."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from crm import ask, count, crm
from outtray import Address, AsyncOuttray, InvalidMessage, ManyRefused, NotFound, Outtray, Refused, SettingsError
from outtray.mailing import recipient

ROWS = [{"to": f"u{n}@elsewhere.example", "name": f"User {n}"} for n in range(3)]
BAD = [*ROWS, {"to": "x@elsewhere.example"}]


@pytest.fixture
def client(database) -> Iterator[Outtray]:
    with crm(database.settings) as client:
        client.templates.add("intro", subject="Hi {{ name }}", text="Hello {{ name }}", html="<p>{{ name }}</p>")
        client.templates.add("nudge", text="Any news, {{ name }}?")
        yield client


def test_rows_become_messages_that_name_their_template_and_stay_as_they_are(database, client):
    common = {"tags": ["spring"], "send_at": "2090-01-01T00:00:00Z"}
    told = client.enqueue_many(template="intro", rows=ROWS, then=[("nudge", "3d")], common=common, key="spring")
    assert (told.accepted, told.created) == (6, 6)
    client.templates.add("intro", text="changed")
    page = client.list(tag="spring").items
    assert sorted({each.template for each in page}) == ["intro@1", "nudge@1"]
    first = next(each for each in page if each.template == "intro@1" and each.subject == "Hi User 0")
    assert (first.recipients[0].address, first.due_at.year) == ("u0@elsewhere.example", 2090)
    sql = "SELECT follow_after, follow_from, due_at FROM outtray.message WHERE template = %s"
    assert {tuple(row.values()) for row in ask(database.settings, sql, "nudge@1")} == {(timedelta(days=3), None, None)}
    with pytest.raises(ManyRefused) as refused:
        client.enqueue_many(template="intro", rows=ROWS, key="spring")  # its latest version says something else
    assert refused.value.result.refused[0].index == 0
    again = client.enqueue_many(template="intro@1", rows=ROWS, then=[("nudge", "3d")], common=common, key="spring")
    assert (again.accepted, again.created) == (6, 0)
    told = ask(database.settings, "SELECT data FROM outtray.event WHERE kind = 'template.added' ORDER BY id")
    assert [row["data"]["template"] for row in told] == ["intro@1", "nudge@1", "intro@2"]


@pytest.mark.parametrize("rows", [lambda: BAD, lambda: iter(BAD)], ids=["rows", "rows that can be read only once"])
def test_a_bad_row_refuses_all_unless_told_to_keep_going(database, client, rows):
    many = [ROWS[0] | {"to": f"m{n}@elsewhere.example"} for n in range(600)]  # more than a batch stands before it
    listed = [*many, *rows()] if rows() is BAD else iter([*many, *rows()])
    with pytest.raises(ManyRefused) as refused:
        client.enqueue_many(template="intro", rows=listed, then=[("nudge", "1d")])
    (one,) = refused.value.result.refused
    assert (one.index, one.problems[0].field) == (603, "name") and count(database.settings, "message") == 0
    told = client.enqueue_many(template="intro", rows=rows(), then=[("nudge", "1d")], keep_going=True)
    assert (told.accepted, [each.index for each in told.refused]) == (6, [3])


def test_a_recipient_is_named_as_its_row_says():
    ann, bob = "Ann Lee <ann@elsewhere.example>", "bob@elsewhere.example"
    assert recipient({"to": ann, "name": "A."}) == Address("ann@elsewhere.example", "Ann Lee")
    assert recipient({"to": bob, "name": "Bob"}) == Address(bob, "Bob") and recipient({"to": bob}) == Address(bob)


def test_what_cannot_be_is_refused_by_name(client):
    with pytest.raises(NotFound, match="outtray template list"):
        client.enqueue_many(template="nothing", rows=ROWS)
    with pytest.raises(Refused, match="subject"):
        client.enqueue_many(template="intro", rows=ROWS, common={"subject": "x"})
    with pytest.raises(Refused, match="then"):
        client.enqueue_many(template="intro", rows=ROWS, then=[("nudge", "soon")])
    with pytest.raises(InvalidMessage, match="name"):
        client.templates.preview("intro", {})
    for name, fields in (("a@1", {"text": "x"}), ("", {"text": "x"}), ("a", {}), ("a", {"text": "{% x %}"})):
        with pytest.raises(Refused):
            client.templates.add(name, **fields)


def test_versions_count_up_under_several_writers_at_once(database, client):
    async def scene() -> None:
        async with AsyncOuttray(database.settings, app="default") as outtray:
            texts = [f"text {n}" for n in range(8)]
            await asyncio.gather(*(outtray.templates.add("many", text=text) for text in texts))
            found = [(await outtray.templates.show(f"many@{n}")).source["text"] for n in range(1, 9)]
            assert sorted(found) == texts
            told = await outtray.enqueue_many(template="many", rows=ROWS, then=[("nudge", "1d")])
            assert told.accepted == 6

    asyncio.run(scene())


def test_no_text_of_a_template_stands_in_the_database_in_clear(database, client):
    client.templates.add("secret", text="canary-7f3a")
    (row,) = ask(database.settings, "SELECT source FROM outtray.template WHERE name = 'secret'")
    assert b"canary" not in bytes(row["source"])


def test_without_jinja_the_cure_is_named_and_everything_else_works(client, monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "outtray" and "templating" in (arguments[2] or ()):
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"pip install 'outtray\[templates\]'"):
        client.templates.add("x", text="y")
    assert client.templates.list()
    assert client.enqueue_many([{"to": "a@elsewhere.example", "text": "x"}]).accepted == 1
