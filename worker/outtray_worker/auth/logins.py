"""The guard against locking people out: how many logins may fail, whatever restarts.

Counted in PostgreSQL on the mailbox's row (`logins`), for SMTP and IMAP apart, and *before* a login is tried, unless
the row was just claimed and shows no failure: so the common turn pays nothing, and one that dies in a login is counted
by the next, which finds that a turn died. A login that the server takes forgets the count, and so do new credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from outtray_schema.outcome import Held, Outcome, Parked
from outtray_worker.providers import Answered, Door, NoLoginNow

log = structlog.get_logger()

Connection = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]

MOST_REFUSED = 3
"""Logins that may be refused in a row. Accounts are locked after 10 at Entra (learn.microsoft.com, smart lockout,
2026-11), and fail2ban shuts an address out after 5 (its jail.conf, maxretry, 2026-11); the person's own typing errors
count there as well."""
MOST_OPEN = 8
"""Logins that may be refused, or get no answer that anybody heard, in a row. Most of the latter are workers that died
and were not refused at all; but below Entra's 10 it stays safe if each of them was."""
AFTER_OPEN = timedelta(minutes=15)
"""Then one more at most in this time: longer than fail2ban remembers (its jail.conf, findtime 10 min, 2026-11)."""
AFTER_REFUSALS = timedelta(hours=24)
"""Then one more at most in this time, until there are new credentials: the fault may have been the server's."""
FREE_LATER = 3
"""Temporary failures in a row that only the mailbox's own backoff spaces; from then on:"""
LATER, MOST_LATER = timedelta(minutes=15), timedelta(hours=4)
"""the wait after the next one, doubled each time, and the longest. Gmail asks for a pause of its logins by 454 4.7.0
(support.google.com/a/answer/3726730, 2026-11); both figures are our choice."""

# Reads and locks one mailbox's counts; then writes them, in the same transaction.
READ = "SELECT m.logins, outtray.outtray_now() FROM outtray.mailbox m WHERE m.id = %s FOR NO KEY UPDATE"
WRITE = "UPDATE outtray.mailbox m SET logins = %s WHERE m.id = %s"


@dataclass(frozen=True, slots=True)
class Count:
    """Failed logins in a row, by one door and with credentials of one version. No login before `after`."""

    version: int
    refused: int = 0
    later: int = 0
    after: datetime | None = None
    open: int = 0
    """Logins that were begun and whose answer nobody has written: under way, or their workers died."""

    @classmethod
    def of(cls, logins: Mapping[str, Any] | None, door: Door, version: int) -> Count:
        """What the row says of these credentials; of others it says nothing."""
        said = (logins or {}).get(door)
        if said is None or said["version"] != version:
            return cls(version)
        after = datetime.fromisoformat(said["after"]) if said["after"] else None
        return cls(version, said["refused"], said["later"], after, said.get("open", 0))

    def begun(self, now: datetime) -> Count:
        """One more login, whose answer is not known yet."""
        begun = replace(self, open=self.open + 1)
        if begun.refused >= MOST_REFUSED:
            return replace(begun, after=now + AFTER_REFUSALS)
        return replace(begun, after=now + AFTER_OPEN if begun.refused + begun.open >= MOST_OPEN else None)

    def was_refused(self, now: datetime) -> Count:
        """The one that was begun was refused."""
        refused = self.refused + 1
        after = now + AFTER_REFUSALS if refused >= MOST_REFUSED else None
        return replace(self, refused=refused, open=max(0, self.open - 1), after=after)

    def was_put_off(self, now: datetime) -> Count:
        """The one that was begun was put off."""
        later = self.later + 1
        wait = min(LATER * 2 ** min(later - FREE_LATER - 1, 10), MOST_LATER) if later > FREE_LATER else None
        return replace(self, later=later, open=max(0, self.open - 1), after=now + wait if wait else None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"after": self.after.isoformat() if self.after else None}


class LoginGuard:
    """`providers.Logins` of one mailbox, for one session. `clean`: its row, just claimed, shows no failure."""

    def __init__(self, connection: Connection, mailbox_id: UUID, version: int, clean: bool) -> None:
        self._connection = connection
        self._mailbox_id = mailbox_id
        self._version = version
        self._clean = clean
        self._counted = False

    async def permit(self, door: Door) -> None:
        """Raises `NoLoginNow` where one more could lock the person out."""
        if self._clean:
            return
        try:
            refusal = await self._change(door, self._reserve)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a login waits: its count cannot be read", error=type(error).__name__)
            raise NoLoginNow(Parked("PostgreSQL did not answer", scope="app")) from None
        if refusal is not None:
            raise NoLoginNow(refusal)
        self._counted = True

    async def told(self, door: Door, answer: Answered) -> None:
        """What the server said. An answer that cannot be written leaves the login open."""
        if answer == "accepted" and not self._counted:
            return
        try:
            await self._change(door, lambda count, now, door: self._after(answer, count, now))
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("a login's answer is not counted", answer=answer, error=type(error).__name__)
        self._clean = self._counted = False

    def _after(self, answer: Answered, count: Count, now: datetime) -> Count:
        if answer == "accepted":
            return Count(count.version)
        counted = count if self._counted else count.begun(now)
        return counted.was_refused(now) if answer == "refused" else counted.was_put_off(now)

    @staticmethod
    def _reserve(count: Count, now: datetime, door: Door) -> Count | Outcome:
        if count.after is None or count.after <= now:
            return count.begun(now)
        return _not_now(count, count.after - now, door)

    async def _change(self, door: Door, change: Callable[[Count, datetime, Door], Count | Outcome]) -> Outcome | None:
        async with self._connection() as connection, connection.transaction():
            row = await (await connection.execute(READ, [self._mailbox_id])).fetchone()
            if row is None:
                return None
            logins, now = row
            changed = change(Count.of(logins, door, self._version), now, door)
            if not isinstance(changed, Count):
                return changed
            others = {name: said for name, said in (logins or {}).items() if name != door}
            left = others | ({door: changed.to_json()} if changed.refused or changed.later or changed.open else {})
            await connection.execute(WRITE, [Jsonb(left) if left else None, self._mailbox_id])
        return None


def _not_now(count: Count, wait: timedelta, door: Door) -> Outcome:
    evidence = {"rule": "login-guard", "door": door, "refused": count.refused, "later": count.later, "open": count.open}
    if count.refused < MOST_REFUSED:
        what = f"{count.later} logins in a row were put off" if count.later else f"{count.open} logins got no answer"
        reason = f"{what}; the next one waits, lest the account be locked"
        return Parked(reason, "mailbox" if door == "smtp" else "connection", after=wait, evidence=evidence)
    reason = (
        f"{count.refused} logins in a row were refused, and one more could lock the account: give it new credentials"
        " (outtray mailbox reconnect)"
    )
    return Held(reason, evidence=evidence) if door == "smtp" else Parked(reason, "connection", wait, evidence)
