"""The door: what the client knows of its app and mailboxes, and what it refuses before anything is stored.

A mailbox's facts are kept for five seconds. That is harmless: what the door lets pass too long (a mailbox just
disabled, a limit just lowered) the gate still stops, and a mailbox that has gone is refused by the insert itself.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from outtray import windows
from outtray.plan import Plan, Row, rows
from outtray_schema import bindings
from outtray_schema.address import Address, normalise_address
from outtray_schema.address import is_external as address_is_external
from outtray_schema.consent import Guarantee, guarantee
from outtray_schema.errors import NotFound, Problem
from outtray_schema.message import Message
from outtray_schema.mime import PROVIDER_SIZE
from outtray_schema.plans import Limits, effective_limits
from outtray_schema.settings import Settings
from outtray_schema.times import Times
from outtray_schema.vault import Vault

KEPT = 5.0
"""Seconds for which a mailbox's facts are believed."""

MailboxName = UUID | str | None
"""A mailbox by id, by address, or the app's default."""

# Reads one app by its name; locks nothing.
FIND_APP = "SELECT a.id FROM outtray.app a WHERE a.name = %(name)s"

# Reads mailboxes of one app by id, by address, and its default; locks nothing.
FIND_MAILBOXES = """
SELECT m.id, m.address, m.provider, m.plan, m.limits, m.server, m.status, m.status_reason,
    m.id = a.default_mailbox_id AS is_default, m.scopes, m.times, outtray.outtray_now() AS now
FROM outtray.app a JOIN outtray.mailbox m ON m.app_id = a.id
WHERE a.id = %(app)s AND (m.id = ANY(%(ids)s::uuid[]) OR m.address_index = ANY(%(indexes)s::bytea[])
    OR %(default)s AND m.id = a.default_mailbox_id)
"""


@dataclass(frozen=True, slots=True)
class MailboxFacts:
    """What the door must know of a mailbox to judge a message for it."""

    id: UUID
    sender: Address = field(repr=False)
    aliases: tuple[str, ...] = field(repr=False)
    provider: str
    limits: Limits
    status: str
    status_reason: str | None
    is_default: bool
    grants: Guarantee
    """What its owner's consent allows beside sending."""
    times: Times
    now: datetime
    """The database's clock as these facts were read: at most `KEPT` ago."""

    @property
    def senders(self) -> frozenset[str]:
        """The addresses that it may send from, in the form in which they are compared."""
        return frozenset(normalise_address(text) for text in (self.sender.email, *self.aliases))


class Door:
    """One client's app, actor and keys, and the mailboxes that it has seen lately. Shared by its threads."""

    def __init__(
        self,
        settings: Settings,
        vault: Vault,
        app: str | None = None,
        actor: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.vault = vault
        self.app_name = app or settings.app
        self.actor = actor or this_user()
        self._clock = clock
        self._app_id: UUID | None = None
        self._seen: dict[MailboxName, tuple[float, MailboxFacts]] = {}

    def app(self, remember: bool = True) -> Plan[UUID]:
        """The id of the client's app. Raises `NotFound` with the cure."""
        if self._app_id is not None:
            return self._app_id
        found = yield from rows(FIND_APP, name=self.app_name)
        if not found:
            raise NotFound(f"there is no app {self.app_name!r}; add it with `outtray app add {self.app_name}`")
        app_id: UUID = found[0]["id"]
        if remember:
            self._app_id = app_id
        return app_id

    def mailboxes(
        self, app_id: UUID, names: Collection[MailboxName], remember: bool = True
    ) -> Plan[dict[MailboxName, MailboxFacts]]:
        """Facts of the mailboxes that these names stand for; a name without one is left out.

        `remember=False` inside somebody else's transaction: a mailbox seen there may yet be rolled back.
        """
        known = {name: facts for name in names if (facts := self._known(name)) is not None}
        missing = [name for name in names if name not in known]
        if missing:
            found = yield from self._read_mailboxes(app_id, missing)
            if remember:
                until = self._clock() + KEPT
                self._seen.update({name: (until, facts) for name, facts in found.items()})
            known |= found
        return known

    def forget(self) -> None:
        """Forget what was seen of mailboxes: this client has changed one."""
        self._seen.clear()

    def seen(self, name: object) -> MailboxFacts | None:
        """What is remembered of a mailbox by this name."""
        return self._known(name) if name is None or isinstance(name, (UUID, str)) else None

    def _known(self, name: MailboxName) -> MailboxFacts | None:
        until, facts = self._seen.get(name, (0.0, None))
        return facts if self._clock() < until else None

    def _read_mailboxes(self, app_id: UUID, names: list[MailboxName]) -> Plan[dict[MailboxName, MailboxFacts]]:
        found = yield from rows(
            FIND_MAILBOXES,
            app=app_id,
            ids=[name for name in names if isinstance(name, UUID)],
            indexes=[self.vault.blind_index(app_id, name) for name in names if isinstance(name, str)],
            default=None in names,
        )
        boxes = [self._facts(row) for row in found]
        return {name: box for name in names for box in boxes if _is_named(box, name)}

    def _facts(self, row: Row) -> MailboxFacts:
        address = open_address(self.vault, row["id"], row["address"])
        return MailboxFacts(
            id=row["id"],
            sender=Address(address["address"], address.get("name") or ""),
            aliases=tuple(address.get("aliases") or ()),
            provider=row["provider"],
            limits=effective_limits(row["plan"], row["limits"], row["provider"]),
            status=row["status"],
            status_reason=row["status_reason"],
            is_default=bool(row["is_default"]),
            grants=_grants(row["provider"], row["scopes"]),
            times=windows.facts_of(row),
            now=row["now"],
        )


def _grants(provider: str, scopes: Iterable[str]) -> Guarantee:
    # The provider inside the process, for tests, asks nobody for consent.
    return Guarantee(True, True, True, True) if provider == "memory" else guarantee(provider, scopes)


def _is_named(box: MailboxFacts, name: MailboxName) -> bool:
    if name is None:
        return box.is_default
    return box.id == name if isinstance(name, UUID) else normalise_address(box.sender.email) == normalise_address(name)


def open_address(vault: Vault, mailbox_id: UUID, sealed: bytes) -> Mapping[str, Any]:
    """A mailbox's `{"address", "name", "aliases"}`."""
    opened: dict[str, Any] = json.loads(vault.addresses.decrypt(sealed, bindings.mailbox_address(mailbox_id)))
    return opened


def problems_of(message: Message, box: MailboxFacts | None) -> list[Problem]:
    """What the mailbox has against this message; its size is judged once its bytes are known."""
    if box is None:
        return [Problem("mailbox", _no_such_mailbox(message.mailbox))]
    if box.status == "disabled":
        return [Problem("mailbox", f"is disabled ({box.status_reason}); connect it again or name another one")]
    return [
        *_sender_problems(message, box),
        *_recipient_problems(message, box),
        *_draft_problems(message, box),
        *windows.problems_of(message, box, box.now),
    ]


def _no_such_mailbox(name: MailboxName) -> str:
    if name is None:
        return "is not given, and the app has no default mailbox; name one, or set the default"
    return "is no mailbox of this app; see `outtray mailbox list`"


def _sender_problems(message: Message, box: MailboxFacts) -> list[Problem]:
    sender = message.from_
    if sender is None or normalise_address(sender.email) in box.senders:
        return []
    return [
        Problem("from", "is neither this mailbox's address nor one of its aliases; add it as an alias, or leave it out")
    ]


def _recipient_problems(message: Message, box: MailboxFacts) -> list[Problem]:
    count, most = len(message.recipients), box.limits.recipients_per_message
    if most is None or count <= most:
        return []
    return [Problem("to", f"{count} recipients in to, cc and bcc; this mailbox's plan allows {most} per message")]


def _draft_problems(message: Message, box: MailboxFacts) -> list[Problem]:
    if message.mode != "draft" or box.grants.drafts:
        return []
    if box.provider == "smtp":
        return [Problem("mode", "an SMTP mailbox has no drafts; connect it by its provider's API, or send")]
    return [Problem("mode", "what this mailbox's owner granted allows no drafts; connect it again with more access")]


def size_problems(size: int, box: MailboxFacts, settings: Settings) -> list[Problem]:
    """Whether the frozen MIME is larger than its provider takes."""
    most = min(settings.message_size, PROVIDER_SIZE.get(box.provider, settings.message_size))
    if size <= most:
        return []
    return [Problem("attachments", f"the message has {size} bytes as MIME; {box.provider} takes at most {most}")]


def is_external(address: Address, box: MailboxFacts) -> bool:
    """Whether a recipient counts as external for this mailbox."""
    return address_is_external(address, box.sender)


def this_user() -> str:
    """The system's user of this process: who is said to have done what nobody else is named for."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "client"
