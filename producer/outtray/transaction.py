"""Enqueue in the caller's own transaction: on their connection, committed by nobody but them, the wake after that.

    SQLAlchemy   Session, Connection and their async twins, on the psycopg driver: the wake follows the commit itself
    psycopg      Connection, AsyncConnection: in `with client.transaction(connection):`, or `client.wake(ids)` by hand

SQLAlchemy tells of a Connection's commit only *before* it happens (`ConnectionEvents.commit`, read in 2.1, 2026-11),
and a wake that comes before the commit finds nothing and is spent. So the hook sits on the driver's connection: its
next `commit` publishes once it has returned, its next `rollback` forgets, and then both are what they were.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session

from outtray.plan import Wakes, add_wakes
from outtray_schema.errors import Problem, Refused

if TYPE_CHECKING:
    # SQLAlchemy's asyncio part needs greenlet, which only those who use it have installed (2.1, 2026-11).
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

Caller: TypeAlias = "sa.Connection | Session | scoped_session[Any] | psycopg.Connection[Any]"
"""What the sync client enqueues through."""
AsyncCaller: TypeAlias = "AsyncConnection | AsyncSession | async_scoped_session[Any] | psycopg.AsyncConnection[Any]"
"""What the async client enqueues through."""

_HOOK = "_outtray_after_commit"
_SAVEPOINT = re.compile(
    r"\s*(?:(?P<begins>SAVEPOINT)|(?P<releases>RELEASE(?:\s+SAVEPOINT)?)|ROLLBACK\s+TO(?:\s+SAVEPOINT)?)\s+(?P<name>[^\s;]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Opened:
    """The caller's transaction: the driver's connection, and SQLAlchemy's around it, if there is one."""

    driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
    connection: sa.Connection | None = None


def open_caller(caller: Caller) -> Opened:
    """The transaction that a caller of the sync client is in, begun if need be. Raises `Refused` with the cure."""
    if isinstance(caller, psycopg.Connection):
        return _checked(Opened(caller))
    if isinstance(caller, scoped_session):
        caller = caller()
    connection = caller.connection() if isinstance(caller, Session) else caller
    if not isinstance(connection, sa.Connection):
        raise _no_caller(caller)
    if not connection.in_transaction():
        connection.begin()
    return _checked(Opened(_driver(connection, psycopg.Connection), connection))


async def open_async_caller(caller: AsyncCaller) -> Opened:
    """The transaction that a caller of the async client is in, begun if need be. Raises `Refused` with the cure."""
    if isinstance(caller, psycopg.AsyncConnection):
        return _checked(Opened(caller))
    connection = await _async_connection(caller)
    if not connection.in_transaction():
        await connection.begin()
    sync = connection.sync_connection
    if sync is None:
        raise Refused(Problem("connection", "is not open; await it first, or use `async with engine.begin()`"))
    return _checked(Opened(_driver(sync, psycopg.AsyncConnection), sync))


async def _async_connection(caller: Any) -> AsyncConnection:
    asyncio_part = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio_part is None:
        raise _no_caller(caller)
    if isinstance(caller, asyncio_part.async_scoped_session):
        caller = caller()
    connection = caller
    if isinstance(caller, asyncio_part.AsyncSession):
        connection = await caller.connection()
    if not isinstance(connection, asyncio_part.AsyncConnection):
        raise _no_caller(caller)
    return cast("AsyncConnection", connection)


def _driver(connection: sa.Connection, kind: type[Any]) -> Any:
    driver = connection.connection.driver_connection
    if not isinstance(driver, kind):
        name = f"{connection.dialect.name}+{connection.dialect.driver}"
        cure = "make the engine with postgresql+psycopg://, or enqueue without it and after your commit"
        raise Refused(Problem("connection", f"is on {name}; Outtray can only write through psycopg: {cure}"))
    return driver


def _no_caller(caller: object) -> Refused:
    kind = f"{type(caller).__module__}.{type(caller).__qualname__}"
    cure = "give Outtray a Session, Connection or psycopg Connection, and AsyncOuttray their async twins"
    return Refused(Problem("connection", f"is a {kind}; {cure}"))


def _checked(opened: Opened) -> Opened:
    driver = opened.driver
    if driver.autocommit and driver.info.transaction_status == TransactionStatus.IDLE:
        cure = "begin a transaction first (`with connection.transaction():`), or enqueue without it"
        raise Refused(Problem("connection", f"is in autocommit, so there is no transaction to be part of; {cure}"))
    return opened


@dataclass(eq=False)
class AfterCommit:
    """What one driver's connection publishes when its transaction commits. One for all clients that share it.

    Wakes of a savepoint that is rolled back are forgotten; so is all on a rollback.
    """

    connection: sa.Connection
    waiting: list[tuple[Callable[[Wakes], Any], Wakes]] = field(default_factory=list)
    savepoints: list[tuple[str, int]] = field(default_factory=list)

    @classmethod
    def of(cls, opened: Opened) -> AfterCommit:
        """The hook of this transaction, set if there is none yet."""
        hook = vars(opened.driver).get(_HOOK)
        if isinstance(hook, cls):
            return hook
        if opened.connection is None:
            raise Refused(Problem("connection", "is psycopg's own, whose commits Outtray does not watch"))
        hook = cls(opened.connection)
        hook._attach(opened.driver)
        return hook

    def add(self, publish: Callable[[Wakes], Any], wakes: Wakes) -> None:
        """Publish these wakes by this publisher, after the commit."""
        if wakes:
            self.waiting.append((publish, wakes))

    def _attach(self, driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        event.listen(self.connection, "after_cursor_execute", self.on_statement)
        wrapped = _sync_hooks(self, driver) if isinstance(driver, psycopg.Connection) else _async_hooks(self, driver)
        vars(driver).update(wrapped, **{_HOOK: self})

    def take(self, driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> list[tuple[Any, Wakes]]:
        """End the watch: the driver's connection is again what it was. Answers with what waits."""
        for name in ("commit", "rollback", _HOOK):
            vars(driver).pop(name, None)
        if event.contains(self.connection, "after_cursor_execute", self.on_statement):
            event.remove(self.connection, "after_cursor_execute", self.on_statement)
        return merged(self.waiting)

    def on_statement(self, _connection: sa.Connection, _cursor: object, sql: str, *_rest: object) -> None:
        """Follow savepoints by their statements: the events named for them do not say which one begins (2.1)."""
        match = _SAVEPOINT.match(sql)
        if match is None:
            return
        name = match["name"]
        if match["begins"]:
            self.savepoints.append((name, len(self.waiting)))
        elif match["releases"]:
            self._forget_from(name)
        else:
            # One that is not known was set before the watch began, so all that waits was written within it.
            waited = self._forget_from(name)
            del self.waiting[waited or 0 :]
            if waited is not None:
                self.savepoints.append((name, waited))

    def _forget_from(self, name: str) -> int | None:
        """Forget a savepoint and those within it; answers with how much waited when it was set."""
        for at in reversed(range(len(self.savepoints))):
            known, waited = self.savepoints[at]
            if known == name:
                del self.savepoints[at:]
                return waited
        return None


def merged(waiting: list[tuple[Callable[[Wakes], Any], Wakes]]) -> list[tuple[Any, Wakes]]:
    """Each publisher once, with the earliest time of each of its mailboxes."""
    found: dict[Any, Wakes] = {}
    for publish, wakes in waiting:
        add_wakes(found.setdefault(publish, {}), wakes)
    return list(found.items())


def _sync_hooks(hook: AfterCommit, driver: psycopg.Connection[Any]) -> dict[str, Callable[[], None]]:
    def commit() -> None:
        type(driver).commit(driver)
        for publish, wakes in hook.take(driver):
            publish(wakes)

    def rollback() -> None:
        hook.take(driver)
        type(driver).rollback(driver)

    return {"commit": commit, "rollback": rollback}


def _async_hooks(hook: AfterCommit, driver: psycopg.AsyncConnection[Any]) -> dict[str, Callable[[], Awaitable[None]]]:
    async def commit() -> None:
        await type(driver).commit(driver)
        for publish, wakes in hook.take(driver):
            await publish(wakes)

    async def rollback() -> None:
        hook.take(driver)
        await type(driver).rollback(driver)

    return {"commit": commit, "rollback": rollback}


class Frames:
    """The wakes of the psycopg transactions that are open under `client.transaction`, one frame for each level."""

    def __init__(self) -> None:
        self._frames: list[Wakes] = []

    def push(self) -> None:
        self._frames.append({})

    def add(self, wakes: Wakes) -> bool:
        """Keep wakes for the commit. False: there is no frame, so the caller must wake by hand."""
        if self._frames:
            add_wakes(self._frames[-1], wakes)
        return bool(self._frames)

    def pop(self, committed: bool) -> Wakes:
        """End a level; answers with what is now to be published: nothing while an outer level is open."""
        wakes = self._frames.pop()
        if not committed:
            return {}
        return {} if self.add(wakes) else wakes
