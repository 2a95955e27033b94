"""Our arm: mailboxes, letters, and the product's own processes (`our_process.py` is what they run)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb
from tests.bench.stand import Stand, wait_for

from outtray import Message, Outtray
from outtray_schema import bindings
from outtray_schema.ids import new_id

LIMITS = {"messages": 1_000_000, "per_minute": 60_000, "burst": 60_000}
"""Every safeguard on, and wide enough to let everything pass: the ledger is read and the bucket asked all the same."""

HTML = "".join(f"<p>Paragraph {n} of a letter that somebody wrote with care, as people do.</p>\n" for n in range(128))
"""About 10 KB once it is MIME."""

WORKERS = 2


@dataclass(frozen=True, slots=True)
class Boxes:
    """Mailboxes to be made: all alike, of one app, over its provider hosts in turn."""

    app: str
    number: int
    provider: str
    hosts: Sequence[str]
    server: Mapping[str, Any]
    password: str | None = None
    limits: Mapping[str, Any] | None = None
    scopes: Sequence[str] = ()


def add_mailboxes(stand: Stand, wanted: Boxes) -> list[UUID]:
    """Insert mailboxes as rows: making them one by one through the client is not what is measured."""
    app_id = stand.value("SELECT id FROM outtray.app WHERE name = %s", wanted.app) or _add_app(stand, wanted.app)
    ids = [new_id() for _ in range(wanted.number)]
    columns = "id, app_id, provider, host, address, address_index, plan, limits, server, credentials, scopes"
    with stand.database.cursor() as cursor, cursor.copy(f"COPY outtray.mailbox ({columns}) FROM STDIN") as copy:
        for n, mailbox_id in enumerate(ids):
            host = wanted.hosts[n % len(wanted.hosts)]
            copy.write_row(_mailbox_row(stand, wanted, app_id, mailbox_id, host))
    return ids


def _add_app(stand: Stand, name: str) -> UUID:
    app_id = new_id()
    stand.database.execute("INSERT INTO outtray.app (id, name) VALUES (%s, %s)", [app_id, name])
    return app_id


def _mailbox_row(stand: Stand, wanted: Boxes, app_id: UUID, mailbox_id: UUID, host: str) -> Sequence[Any]:
    address = f"{mailbox_id}@bench.test"
    sealed = stand.vault.addresses.encrypt(
        json.dumps({"address": address, "name": "", "aliases": []}).encode(), bindings.mailbox_address(mailbox_id)
    )
    credentials = None
    if wanted.password is not None:
        secret = json.dumps({"username": address, "password": wanted.password}).encode()
        credentials = stand.vault.credentials.encrypt(secret, bindings.credentials(mailbox_id, 1))
    index = stand.vault.blind_index(app_id, address)
    limits = LIMITS if wanted.limits is None else wanted.limits
    return (
        mailbox_id, app_id, wanted.provider, host, sealed, index, "smtp", Jsonb(limits), Jsonb(wanted.server),
        credentials, list(wanted.scopes),
    )  # fmt: skip


def letters(mailboxes: Sequence[UUID], number: int, headers: Mapping[str, str] | None = None) -> Iterator[Message]:
    """`number` messages over the mailboxes in turn, each with a text of its own: none is derived from 10 KB of html."""
    for n in range(number):
        box = mailboxes[n % len(mailboxes)]
        yield Message(
            mailbox=box,
            to="reader@example.net",
            subject=f"Letter {n}",
            text="A letter.",
            html=HTML,
            headers=dict(headers or {}),
        )


def enqueue(stand: Stand, app: str, messages: Iterator[Message]) -> int:
    """Through the real producer. Returns how many it accepted."""
    with Outtray(stand.settings, app=app) as client:
        return client.enqueue_many(messages).accepted


def start(stand: Stand, workers: int = WORKERS, **environment: str) -> None:
    """Start workers and one dispatcher; return once each has said in the database that it is alive."""
    for _ in range(workers):
        stand.start("worker", ["tests.bench.our_process", "worker"], **environment)
    _wait_alive(stand, "worker", workers)
    stand.start("dispatcher", ["tests.bench.our_process", "dispatcher"], **environment)
    _wait_alive(stand, "dispatcher", 1)


def _wait_alive(stand: Stand, role: str, number: int) -> None:
    def there() -> bool:
        stand.alive(role)
        return int(stand.value("SELECT count(*) FROM outtray.process WHERE role = %s", role)) >= number

    wait_for(f"{number} {role}(s) alive", there, within=30)


def sent(stand: Stand, key: str) -> set[str]:
    """The keys of what is recorded as sent."""
    return {row[0] for row in stand.database.execute(f"SELECT {key} FROM outtray.message WHERE state = 'sent'")}
