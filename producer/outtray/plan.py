"""What the client asks of PostgreSQL, without doing it: plans, and the two thin runners that carry them out.

A *plan* is a generator: it yields steps, is given the rows of each, and returns its answer. All SQL, row building and
interpretation stand in plans, once; a runner only moves steps to a connection, blocking or awaiting. So the sync and
the async client cannot come to differ.

    Statement   run it; the plan is given its rows as dictionaries
    Begin       what follows is one transaction, up to
    Commit      its end, or
    Rollback    its end, with nothing of it done
    Wake        due mailboxes to be told once what was written is committed

Outside `Begin` and `Commit` every statement is a transaction of its own, one round trip in all. Inside somebody else's
transaction, `Begin` and `Commit` are a savepoint: the whole plan or nothing of it is in what they commit.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import dict_row

Row: TypeAlias = dict[str, Any]
Wakes: TypeAlias = dict[UUID, datetime]


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement with its parameters, which may hold ciphertext and are therefore never shown."""

    sql: str
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Begin:
    """The following steps are one transaction."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of what `Begin` began."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """The end of what `Begin` began, as if it had not."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Mailboxes that have mail due, once this is committed."""

    due: Wakes


Step: TypeAlias = Statement | Begin | Commit | Rollback | Wake
T = TypeVar("T")
Plan: TypeAlias = Generator[Step, list[Row], T]


def rows(sql: str, **parameters: Any) -> Plan[list[Row]]:
    """A plan of one statement that answers with its rows."""
    return (yield Statement(sql, parameters))


def add_wakes(wakes: Wakes, more: Mapping[UUID, datetime]) -> None:
    """Add due mailboxes; the earliest time of each stays."""
    for mailbox_id, due in more.items():
        wakes[mailbox_id] = min(due, wakes.get(mailbox_id, due))


_SAVEPOINT = "outtray_plan"


class _Brackets:
    """What `Begin`, `Commit` and `Rollback` are in SQL: a transaction, or a savepoint in somebody else's."""

    def __init__(self, inside: bool) -> None:
        self.begin = f"SAVEPOINT {_SAVEPOINT}" if inside else "BEGIN"
        self.commit = f"RELEASE SAVEPOINT {_SAVEPOINT}" if inside else "COMMIT"
        self.undo = f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}; {self.commit}" if inside else "ROLLBACK"
        self.open = False

    def sql(self, step: Begin | Commit | Rollback) -> str:
        self.open = isinstance(step, Begin)
        return self.begin if self.open else self.commit if isinstance(step, Commit) else self.undo


def run(plan: Plan[T], connection: Connection[Any], inside: bool = False) -> tuple[T, Wakes]:
    """Carry a plan out on a connection; answers with what it returned and the wakes to publish after the commit.

    `inside`: the connection is in somebody else's transaction; otherwise it is in autocommit. Raises psycopg's errors.
    """
    wakes: Wakes = {}
    brackets = _Brackets(inside)
    cursor: Cursor[Row] = Cursor(connection, row_factory=dict_row)
    answer: list[Row] = []
    try:
        step = next(plan)
        while True:
            if isinstance(step, Wake):
                add_wakes(wakes, step.due)
            elif isinstance(step, Statement):
                cursor.execute(step.sql, step.parameters or None)
                answer = cursor.fetchall() if cursor.description else []
            else:
                cursor.execute(brackets.sql(step))
            step = plan.send(answer)
    except StopIteration as end:
        return end.value, wakes
    finally:
        plan.close()
        if brackets.open and not connection.closed:
            cursor.execute(brackets.undo)
        cursor.close()


async def run_async(plan: Plan[T], connection: AsyncConnection[Any], inside: bool = False) -> tuple[T, Wakes]:
    """`run`, awaiting."""
    wakes: Wakes = {}
    brackets = _Brackets(inside)
    cursor: AsyncCursor[Row] = AsyncCursor(connection, row_factory=dict_row)
    answer: list[Row] = []
    try:
        step = next(plan)
        while True:
            if isinstance(step, Wake):
                add_wakes(wakes, step.due)
            elif isinstance(step, Statement):
                await cursor.execute(step.sql, step.parameters or None)
                answer = await cursor.fetchall() if cursor.description else []
            else:
                await cursor.execute(brackets.sql(step))
            step = plan.send(answer)
    except StopIteration as end:
        return end.value, wakes
    finally:
        plan.close()
        if brackets.open and not connection.closed:
            await cursor.execute(brackets.undo)
        await cursor.close()
