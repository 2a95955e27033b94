"""The client's own connections to PostgreSQL: few, kept, and never a hang.

A pool answers a dead database only when its timeout has passed. Here a connection that does not come within a quarter
of a second is asked for directly as well, so that "connection refused" is an error at once.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.errors import InvalidSchemaName, UndefinedColumn, UndefinedFunction, UndefinedTable
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from outtray_schema.database import connect_options, conninfo
from outtray_schema.errors import OuttrayError, SettingsError, Unavailable
from outtray_schema.settings import Settings

AT_MOST = 4
"""Connections of one client: what it does is short, and PostgreSQL's are dear."""
PATIENCE = 0.25
"""Seconds for the pool before PostgreSQL is asked whether it is there at all."""

_NOT_MIGRATED = (UndefinedTable, UndefinedFunction, UndefinedColumn, InvalidSchemaName)


def translated(error: psycopg.Error) -> OuttrayError | SettingsError | psycopg.Error:
    """The error that a caller of ours can act on. psycopg's own text is left out: it may quote values and hosts."""
    if isinstance(error, _NOT_MIGRATED):
        return SettingsError("The database has not the tables of this version. Run: outtray migrate (docs/settings.md)")
    if isinstance(error, PoolTimeout):
        return Unavailable("all connections to PostgreSQL are busy; try again later")
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return Unavailable(f"PostgreSQL does not answer ({type(error).__name__}); try again later")
    return error


@contextmanager
def translating() -> Iterator[None]:
    """psycopg's errors on our own connections as errors of ours."""
    try:
        yield
    except psycopg.Error as error:
        ours = translated(error)
        if ours is error:
            raise
        raise ours from error


def _is_silent(connection: Connection[Any] | AsyncConnection[Any]) -> bool:
    """An idle connection has nothing to say: if it can be read, the server has closed it. Costs no round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLHUP)
    return not poll.poll(0)


def _check(connection: Connection[Any]) -> None:
    if not _is_silent(connection):
        # Closed here, or the pool would take it back as good and offer it again.
        connection.close()
        raise psycopg.OperationalError("the server closed this connection while it was idle")


async def _check_async(connection: AsyncConnection[Any]) -> None:
    if not _is_silent(connection):
        await connection.close()
        raise psycopg.OperationalError("the server closed this connection while it was idle")


def _options(settings: Settings) -> dict[str, Any]:
    """Autocommit, since most plans are one statement; UTC, so that times come back in it."""
    options = connect_options(settings, "producer")
    return options | {"autocommit": True, "options": f"{options['options']} -c timezone=UTC"}


class Connections:
    """A pool of one process: opened at first use. `renew` in a forked child, which must not touch the parent's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conninfo = conninfo(settings)
        self._abandoned: list[ConnectionPool[Connection[Any]]] = []
        self._pool = self._new_pool()

    def _new_pool(self) -> ConnectionPool[Connection[Any]]:
        return ConnectionPool(
            self._conninfo,
            kwargs=_options(self._settings),
            min_size=0,
            max_size=AT_MOST,
            open=False,
            check=_check,
            timeout=self._settings.database_timeout.total_seconds(),
            # A single worker thread per client: it only opens what callers wait for.
            num_workers=1,
            reconnect_timeout=0,
        )

    def renew(self) -> None:
        # The parent's pool is kept, not closed: closing it here would end the parent's own sessions.
        self._abandoned.append(self._pool)
        self._pool = self._new_pool()

    @contextmanager
    def take(self) -> Iterator[Connection[Any]]:
        """A connection in autocommit. Raises `Unavailable` if PostgreSQL does not answer within `database_timeout`."""
        with translating():
            self._pool.open()
            connection = self._take()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)

    def _take(self) -> Connection[Any]:
        try:
            return self._pool.getconn(timeout=PATIENCE)
        except PoolTimeout:
            # Says at once that nobody is there, where the pool would go on trying until its timeout.
            psycopg.connect(self._conninfo, **_options(self._settings)).close()
            return self._pool.getconn()

    def close(self) -> None:
        self._pool.close()


class AsyncConnections:
    """The same for asyncio: one pool per event loop, since a connection cannot move between loops."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conninfo = conninfo(settings)
        self._pools: dict[asyncio.AbstractEventLoop, AsyncConnectionPool[AsyncConnection[Any]]] = {}

    def _pool(self) -> AsyncConnectionPool[AsyncConnection[Any]]:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            # What belongs to a loop that has ended can neither be used nor closed any more.
            self._pools = {other: pool for other, pool in self._pools.items() if not other.is_closed()}
            self._pools[loop] = self._new_pool()
        return self._pools[loop]

    def _new_pool(self) -> AsyncConnectionPool[AsyncConnection[Any]]:
        return AsyncConnectionPool(
            self._conninfo,
            kwargs=_options(self._settings),
            min_size=0,
            max_size=AT_MOST,
            open=False,
            check=_check_async,
            timeout=self._settings.database_timeout.total_seconds(),
            num_workers=1,
            reconnect_timeout=0,
        )

    @asynccontextmanager
    async def take(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection in autocommit. Raises `Unavailable` if PostgreSQL does not answer within `database_timeout`."""
        with translating():
            pool = self._pool()
            await pool.open()
            connection = await self._take(pool)
            try:
                yield connection
            finally:
                await pool.putconn(connection)

    async def _take(self, pool: AsyncConnectionPool[AsyncConnection[Any]]) -> AsyncConnection[Any]:
        try:
            return await pool.getconn(timeout=PATIENCE)
        except PoolTimeout:
            await (await psycopg.AsyncConnection.connect(self._conninfo, **_options(self._settings))).close()
            return await pool.getconn()

    async def close(self) -> None:
        """Close this loop's pool; another loop's end with their loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()
