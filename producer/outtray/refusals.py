"""Refusals: what the door refused in the last days, by field and code, found by a recipient's address.

Kept without clear text: a field's path without the caller's own names, one of the codes below, and keyed blind indexes.
What is refused before it reaches a client (`Message(...)` raises in the app itself) is not seen here, and what is
refused inside a caller's own transaction is rolled back with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray.door import Door
from outtray.plan import Plan, Row, rows
from outtray_schema.address import parse_address
from outtray_schema.errors import InvalidMessage, Problem, Refused
from outtray_schema.message import Message

# Remembers refusals of an app.
REMEMBER = """
INSERT INTO outtray.refusal (app_id, problems, address_indexes, mailbox_index)
SELECT %(app)s, r.problems, ARRAY(SELECT decode(each, 'hex') FROM jsonb_array_elements_text(r.people) AS each),
    r.mailbox
FROM unnest(%(problems)s::jsonb[], %(people)s::jsonb[], %(mailboxes)s::bytea[]) AS r (problems, people, mailbox)
"""

# Reads an app's refusals for an address, or of a mailbox, newest first; locks nothing.
READ = """
SELECT r.at, r.problems FROM outtray.refusal r
WHERE r.app_id = %(app)s AND (%(index)s::bytea IS NULL OR r.address_indexes @> ARRAY[%(index)s::bytea])
  AND (%(mailbox)s::bytea IS NULL OR r.mailbox_index = %(mailbox)s)
ORDER BY r.at DESC, r.id DESC LIMIT %(limit)s
"""

MOST_PEOPLE = 100
"""Recipients of one refused message that are remembered, and problems of it."""
MOST_PROBLEMS = 20

CODES: Mapping[str, tuple[str, str]] = {
    "unknown_mailbox": (r"no mailbox of this app|no default mailbox", "it named no mailbox of this app"),
    "mailbox_disabled": (r"is disabled \(|removed or disabled", "its mailbox was removed or disabled"),
    "not_an_alias": (r"nor one of its aliases", "its sender was no address of its mailbox"),
    "too_many_recipients": (r"recipients in to, cc and bcc|at most \d+ recipients", "it had too many recipients"),
    "no_recipient": (r"at least one recipient", "it had no recipient"),
    "no_content": (r"needs text, html or attachments", "it had no content"),
    "not_a_zone": (r"is no time zone", "its window named no time zone"),
    "window_never_opens": (r"never open|does not open", "its window never opened before it expired"),
    "expires_too_early": (r"later than send_at|window of its mailbox opens", "it expired before it could leave"),
    "no_drafts": (r"no drafts", "its mailbox has no drafts"),
    "too_large": (r"bytes as MIME|has \d+ bytes|too large", "it was too large"),
    "key_conflict": (r"idempotency key", "its idempotency key stood for another message"),
    "not_a_time": (r"has no time zone|must be a time|must be a datetime|no plausible one", "it named no time"),
    "control_character": (r"control character|cannot be sent", "it had characters that no mail can carry"),
    "not_an_address": (
        r"is no address|stand before the @|full domain name|is an IP address|ASCII form|must be an address|before the @"
        r"|an address has at most",
        "it had no address that mail can be sent to",
    ),
    "unreadable_file": (r"cannot be read", "a file of it could not be read"),
    "unknown_field": (r"is no field|Extra inputs|not permitted|did you mean", "it had a field that there is not"),
}
"""Code → what the reason says, and what is said of it later. The first that fits; else `refused`."""

_PATTERNS = {code: re.compile(pattern) for code, (pattern, _) in CODES.items()}
_NAMES = re.compile(r"\[(?!\d+\])[^]]*\]")


class RefusedInput(InvalidMessage):
    """Fields that make no message, with as much of whom they were for as could be read."""

    def __init__(self, error: InvalidMessage, fields: Mapping[str, Any]) -> None:
        super().__init__(error.problems)
        self.people = tuple(_readable(fields))
        self.mailbox = fields.get("mailbox")


@dataclass(frozen=True, slots=True)
class RefusedProblem:
    """What was wrong with one field. `words` say it without the caller's text."""

    field: str
    code: str
    words: str


@dataclass(frozen=True, slots=True)
class RefusalView:
    """One request that was refused."""

    at: datetime
    problems: tuple[RefusedProblem, ...]


def remember(door: Door, app_id: UUID, refused: Iterable[tuple[Message | None, object]]) -> Plan[None]:
    """Remember those of these answers that are refusals, each with its message, if there was one."""
    found = [(message, answer) for message, answer in refused if isinstance(answer, Refused)]
    if not found:
        return
    yield from rows(
        REMEMBER,
        app=app_id,
        problems=[Jsonb([_stored(each) for each in answer.problems[:MOST_PROBLEMS]]) for _, answer in found],
        people=[Jsonb(_indexes(door, app_id, message, answer)) for message, answer in found],
        mailboxes=[_mailbox(door, app_id, message, answer) for message, answer in found],
    )


def refusals(door: Door, to: str | None = None, mailbox: str | None = None, limit: int = 20) -> Plan[list[RefusalView]]:
    """What was refused at the door in the last days for an address, of a mailbox by its address, or at all; newest
    first."""
    app_id = yield from door.app()
    found = yield from rows(
        READ,
        app=app_id,
        index=None if to is None else door.vault.blind_index(app_id, parse_address(to).email),
        mailbox=None if mailbox is None else door.vault.blind_index(app_id, parse_address(mailbox).email),
        limit=limit,
    )
    return [_view(row) for row in found]


def code_of(problem: Problem) -> str:
    """The code of a problem's reason, which itself may quote what the caller wrote."""
    return next((code for code, pattern in _PATTERNS.items() if pattern.search(problem.reason)), "refused")


def _stored(problem: Problem) -> dict[str, str]:
    """A header's name is the caller's own text; positions are not."""
    return {"field": _NAMES.sub("[…]", problem.field)[:100], "code": code_of(problem)}


def _view(row: Row) -> RefusalView:
    return RefusalView(
        row["at"],
        tuple(
            RefusedProblem(each["field"], each["code"], CODES.get(each["code"], ("", "it was not accepted"))[1])
            for each in row["problems"]
        ),
    )


def _indexes(door: Door, app_id: UUID, message: Message | None, answer: Refused) -> list[str]:
    people: Iterable[str] = answer.people if isinstance(answer, RefusedInput) else ()
    if message is not None:
        people = [each.address.email for each in message.recipients]
    return sorted({door.vault.blind_index(app_id, email).hex() for email in list(people)[:MOST_PEOPLE]})


def _mailbox(door: Door, app_id: UUID, message: Message | None, answer: Refused) -> bytes | None:
    named = message.mailbox if message is not None else getattr(answer, "mailbox", None)
    facts = door.seen(named)
    address = facts.sender.email if facts is not None else named
    if not isinstance(address, str) or "@" not in address:
        return None
    try:
        return door.vault.blind_index(app_id, parse_address(address).email)
    except InvalidMessage:
        return None


def _readable(fields: Mapping[str, Any]) -> Iterable[str]:
    """The addresses among what was written as recipients."""
    for role in ("to", "cc", "bcc"):
        value = fields.get(role)
        for each in value if isinstance(value, (list, tuple)) else (value,):
            text = each.get("email") if isinstance(each, Mapping) else each
            if isinstance(text, str):
                try:
                    yield parse_address(text).email
                except InvalidMessage:
                    continue
