"""Mailing: templates filled from the rows of a list, one message or one sequence for each row."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

from outtray.door import Door
from outtray.many import Refusal
from outtray.plan import Plan
from outtray.templates import Loaded, load
from outtray_schema.address import normalise_address, parse_address
from outtray_schema.errors import InvalidMessage, Problem, Refused
from outtray_schema.message import Address, Message
from outtray_schema.sequence import delay

FIELDS = ("to", "mailbox")
"""What a row may say of its messages beside its variables."""

_FOLLOWS = ("follows", "after", "on_predecessor", "thread", "idempotency_key", "subject", "text", "html", "to")
_FIRST_ALONE = ("send_at", "attachments")
MOST_KEY = 255
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mailing:
    """What each row becomes. `key` names the whole: a row's messages are stored once under it, run as you like."""

    steps: Sequence[tuple[Loaded, timedelta]]
    key: str
    common: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        """The messages of one row, in their order. Raises `InvalidMessage` that names the variable or field."""
        to = recipient(row)
        whom = normalise_address(to.email) if isinstance(to, Address) else str(to)
        own = {name: row[name] for name in FIELDS if row.get(name) not in ("", None)} | {"to": to}
        keys = [_short(f"{self.key}:{n}:{whom}") for n in range(1, len(self.steps) + 1)]
        found = []
        for n, (template, after) in enumerate(self.steps):
            fields = {**self.common, **own, **template.compiled.render(row), "idempotency_key": keys[n]}
            if n:
                fields |= {"follows": keys[n - 1], "after": after}
                for name in _FIRST_ALONE:
                    fields.pop(name, None)
            found.append(Message(**fields).made_from(template.full_name))
        return found


@dataclass(slots=True)
class Filling:
    """A mailing on its way through its rows."""

    mailing: Mailing
    rows: Iterable[Mapping[str, Any]]
    _row_of: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def can_be_read_again(self) -> bool:
        return iter(self.rows) is not self.rows

    def check(self) -> list[Refusal]:
        """What is wrong with the rows, before anything is stored."""
        return [Refusal(n, tuple(item.problems)) for (n, item) in self._numbered() if isinstance(item, InvalidMessage)]

    def messages(self) -> Iterator[Message | InvalidMessage]:
        """The messages of all rows; an error stands for all that its row would have made."""
        del self._row_of[:]
        for n, item in self._numbered():
            self._row_of.append(n)
            yield item

    def by_row(self, answers: Sequence[tuple[int, T]]) -> list[tuple[int, T]]:
        """Answers by message, by the position of their row instead."""
        return [(self._row_of[index], answer) for index, answer in answers]

    def _numbered(self) -> Iterator[tuple[int, Message | InvalidMessage]]:
        for n, row in enumerate(self.rows):
            try:
                yield from ((n, message) for message in self.mailing.messages(row))
            except InvalidMessage as error:
                yield n, error


def find_mailing(
    door: Door,
    template: str,
    then: Sequence[tuple[str, timedelta | str]] = (),
    common: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> Plan[Mailing]:
    """A mailing by the names of its templates. Raises `NotFound`, `Refused`.

    Without a `key` no row is known again: what is run twice is sent twice.
    """
    common = common or {}
    if wrong := [name for name in common if name in _FOLLOWS]:
        raise Refused(Problem(wrong[0], "comes from the template or the row; leave it out"))
    loaded = yield from load(door, [template, *(name for name, _ in then)])
    return Mailing(list(zip(loaded, _delays(then), strict=True)), key or uuid4().hex, common)


def _delays(then: Sequence[tuple[str, timedelta | str]]) -> list[timedelta]:
    try:
        return [timedelta(0), *(delay(after) for _, after in then)]
    except ValueError as error:
        raise Refused(Problem("then", str(error))) from None


def recipient(row: Mapping[str, Any]) -> Any:
    """Whom a row is for: `to`, with the row's `name` as display name if it says none itself."""
    to, name = row.get("to"), row.get("name")
    if to in ("", None):
        raise InvalidMessage(Problem("to", "is missing in this row; it is the recipient's address"))
    if not isinstance(to, str):
        return to
    try:
        address = parse_address(to)
    except InvalidMessage as error:
        raise InvalidMessage([Problem("to", problem.reason) for problem in error.problems]) from None
    return Address(address.email, name) if name and isinstance(name, str) and not address.name else address


def _short(key: str) -> str:
    """A key that fits."""
    return key if len(key) <= MOST_KEY else f"{key[:100]}:{hashlib.sha256(key.encode()).hexdigest()}"
