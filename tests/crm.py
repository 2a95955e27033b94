"""A CRM as tests of the client need it: an app with one connected mailbox, and a look past the client's back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import redis
from psycopg.rows import dict_row

from outtray import Message, Outtray
from outtray.wakes import redis_url
from outtray_schema import wakes as hints
from outtray_schema.database import conninfo
from outtray_schema.settings import Settings

ADDRESS = "bob@sender.example"


@contextmanager
def crm(settings: Settings, **mailbox: Any) -> Iterator[Outtray]:
    """A client of the app `default`, whose default mailbox is `ADDRESS`."""
    with Outtray(settings, app="default", actor="crm") as client:
        client.apps.add("default")
        client.mailboxes.add_smtp(
            ADDRESS, name="Bob", host="smtp.sender.example", password="pw-canary", default=True, **mailbox
        )
        yield client


def hello(**fields: Any) -> Message:
    """A small message; `fields` replace or add to its own."""
    return Message(**({"to": "ann@elsewhere.example", "subject": "Hello", "text": "Hello Ann"} | fields))


def connect(settings: Settings, autocommit: bool = True) -> psycopg.Connection[dict[str, Any]]:
    return psycopg.connect(conninfo(settings), autocommit=autocommit, row_factory=dict_row)


def ask(settings: Settings, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """The rows of one statement, on a connection of its own."""
    with connect(settings) as connection:
        cursor = connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []


def message_row(settings: Settings, message_id: UUID) -> dict[str, Any]:
    (row,) = ask(settings, "SELECT * FROM outtray.message WHERE id = %s", message_id)
    return row


def mailbox_row(settings: Settings) -> dict[str, Any]:
    (row,) = ask(settings, "SELECT * FROM outtray.mailbox")
    return row


def count(settings: Settings, table: str) -> int:
    (row,) = ask(settings, f"SELECT count(*) AS n FROM outtray.{table}")
    return int(row["n"])


def published(settings: Settings) -> dict[UUID, Any]:
    """The wakes that are in Redis now."""
    with redis.Redis.from_url(redis_url(settings)) as server:
        return hints.parse(server.zrange(hints.KEY, 0, -1, withscores=True))


def forget_wakes(settings: Settings) -> None:
    with redis.Redis.from_url(redis_url(settings)) as server:
        server.delete(hints.KEY)


def hand_over(settings: Settings, message_id: UUID, state: str = "handing_over", **columns: Any) -> None:
    """Put a message where a worker's gate (and then its handover's silence) would have put it."""
    ask(
        settings,
        """UPDATE outtray.message SET state = %s, version = version + 1, attempt = 1, handover = handover + 1,
           handed_at = outtray.outtray_now(), handover_until = outtray.outtray_now() + interval '1 minute',
           counted_at = outtray.outtray_now() + interval '1 minute' WHERE id = %s""",
        state,
        message_id,
    )
    for name, value in columns.items():
        ask(settings, f"UPDATE outtray.message SET {name} = %s WHERE id = %s", value, message_id)
