"""`AsyncOuttray`: the client for asyncio. The same plans as `Outtray`, awaited."""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from outtray import (
    apps,
    budgets,
    find,
    mailbox_times,
    mailboxes,
    many,
    oauth,
    oauth_apps,
    refusals,
    suppression,
    templates,
)
from outtray import cancel as cancelling
from outtray import erase as erasing
from outtray import events as outbox
from outtray import explain as explaining
from outtray import explain_address as explaining_addresses
from outtray import forecast as forecasting
from outtray import resolve as resolving
from outtray import retry as retrying
from outtray import switches as switching
from outtray.connections import AsyncConnections
from outtray.door import Door, MailboxName
from outtray.embedded import embedded_services
from outtray.enqueue import Accepted, enqueue, wakes_of
from outtray.mailing import Filling, find_mailing
from outtray.oauth_revoke import revoke_at_google
from outtray.plan import Plan, Wakes, add_wakes, run_async
from outtray.transaction import AfterCommit, AsyncCaller, Frames, Opened, open_async_caller
from outtray.waiting import is_settled, pauses
from outtray.wakes import AsyncWakePublisher, Circuit
from outtray_schema.message import Message
from outtray_schema.settings import Settings, load_settings
from outtray_schema.vault import load_vault

P = ParamSpec("P")
T = TypeVar("T")


class _Runner:
    """One client's way to PostgreSQL and Redis, on whichever event loop it is used."""

    def __init__(self, settings: Settings, app: str | None, actor: str | None) -> None:
        self.settings = settings
        self.door = Door(settings, load_vault(settings), app, actor)
        self.connections = AsyncConnections(settings)
        self.frames: weakref.WeakKeyDictionary[psycopg.AsyncConnection[Any], Frames] = weakref.WeakKeyDictionary()
        self._circuit = Circuit()
        self._publishers: dict[asyncio.AbstractEventLoop, AsyncWakePublisher] = {}

    async def publish(self, wakes: Wakes) -> None:
        loop = asyncio.get_running_loop()
        if loop not in self._publishers:
            self._publishers = {other: each for other, each in self._publishers.items() if not other.is_closed()}
            self._publishers[loop] = AsyncWakePublisher(self.settings, self._circuit)
        await self._publishers[loop].publish(wakes)

    async def run(self, plan: Plan[T]) -> T:
        """Carry out a plan on a connection of our own, then publish its wakes."""
        async with self.connections.take() as connection:
            answer, wakes = await run_async(plan, connection)
        await self.publish(wakes)
        return answer

    async def run_inside(self, plan: Plan[T], opened: Opened) -> T:
        """Carry out a plan in the caller's transaction; its wakes follow their commit."""
        driver = opened.driver
        assert isinstance(driver, psycopg.AsyncConnection)  # noqa: S101 - open_async_caller gives no other
        answer, wakes = await run_async(plan, driver, inside=True)
        if opened.connection is not None:
            AfterCommit.of(opened).add(self.publish, wakes)
        elif driver in self.frames:
            self.frames[driver].add(wakes)
        return answer

    async def close(self) -> None:
        await self.connections.close()
        publisher = self._publishers.pop(asyncio.get_running_loop(), None)
        if publisher is not None:
            await publisher.close()


class _Part:
    """Part of a client: methods that carry out plans."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner


S = TypeVar("S", bound=_Part)


def _carried_out(
    plan: Callable[Concatenate[Door, P], Plan[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """A coroutine method that carries out this plan, with its signature and words."""

    @functools.wraps(plan)
    async def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._runner.run(plan(self._runner.door, *args, **kwargs))

    return method


class AsyncMailboxes(_Part):
    """`client.mailboxes`: the app's mailboxes."""

    add_smtp = _carried_out(mailboxes.add_smtp)
    list = _carried_out(mailboxes.list_all)
    get = _carried_out(mailboxes.get)
    set = _carried_out(mailboxes.change)
    set_times = _carried_out(mailbox_times.set_times)
    set_password = _carried_out(mailboxes.set_password)
    set_imap = _carried_out(mailboxes.set_imap)
    set_trust = _carried_out(mailboxes.set_trust)
    reconnect = _carried_out(mailboxes.reconnect)
    pause = _carried_out(mailboxes.pause)
    resume = _carried_out(mailboxes.resume)
    remove = _carried_out(mailboxes.remove)
    set_default = _carried_out(mailboxes.set_default)
    import_usage = _carried_out(mailboxes.import_usage)
    explain = _carried_out(explaining.explain_mailbox)
    forecast = _carried_out(forecasting.forecast)
    add_google = _carried_out(oauth.add_google)
    add_microsoft = _carried_out(oauth.add_microsoft)
    add_delegated = _carried_out(oauth.add_delegated)
    connect = _carried_out(oauth.connect)
    disconnect = _carried_out(oauth.disconnect)
    consents = _carried_out(oauth.consents)

    async def revoke(self, mailbox: MailboxName, *, force: bool = False) -> oauth.Disconnected:
        """End a consent at Google itself, then erase its tokens here. Google ends all of the person's with the project.

        Raises `WrongState` on any but the person's last connection, unless `force`, and where the provider has no
        revocation; `Unavailable` if Google does not answer: then nothing was changed. Waits up to `token_timeout`.
        """
        found = await self._runner.run(oauth.revocable(self._runner.door, mailbox, force))
        await asyncio.to_thread(revoke_at_google, self._runner.settings, found.refresh_token)
        return await self._runner.run(oauth.disconnect(self._runner.door, found.mailbox_id, "revoked"))


class AsyncProviderApps(_Part):
    """`client.provider_apps`: the OAuth clients by which mailboxes log in."""

    add = _carried_out(oauth_apps.add)
    get = _carried_out(oauth_apps.get)
    list = _carried_out(oauth_apps.list_all)
    set = _carried_out(oauth_apps.change)
    set_secret = _carried_out(oauth_apps.set_secret)
    remove = _carried_out(oauth_apps.remove)


class AsyncBudgets(_Part):
    """`client.budgets`: limits of 24 hours that several mailboxes share, of every app."""

    add = _carried_out(budgets.add)
    list = _carried_out(budgets.list_all)
    set = _carried_out(budgets.change)
    remove = _carried_out(budgets.remove)


class AsyncTemplates(_Part):
    """`client.templates`."""

    add = _carried_out(templates.add)
    list = _carried_out(templates.list_all)
    show = _carried_out(templates.show)
    preview = _carried_out(templates.preview)


class AsyncApps(_Part):
    """`client.apps`: every app of the installation."""

    add = _carried_out(apps.add)
    list = _carried_out(apps.list_all)


class AsyncOuttray(_Part):
    """The client of one app, for asyncio. Use it as an async context manager, or `close` it.

        async with AsyncOuttray() as outtray:
            await outtray.enqueue(Message(to="ann@example.com", subject="Hello", text="..."))

    Its parameters and errors are those of `Outtray`.
    """

    def __init__(self, settings: Settings | None = None, *, app: str | None = None, actor: str | None = None) -> None:
        settings = settings or load_settings()
        with ExitStack() as closing:
            if settings.embedded:
                settings = closing.enter_context(embedded_services(settings))
            super().__init__(_Runner(settings, app, actor))
            self._closing = closing.pop_all()
        self.settings = settings
        self.mailboxes = AsyncMailboxes(self._runner)
        self.apps = AsyncApps(self._runner)
        self.provider_apps = AsyncProviderApps(self._runner)
        self.budgets = AsyncBudgets(self._runner)
        self.templates = AsyncTemplates(self._runner)

    async def __aenter__(self) -> AsyncOuttray:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back connections, and the embedded servers if this client used them."""
        try:
            await self._runner.close()
        finally:
            self._closing.close()

    async def enqueue(
        self, message: Message, *, connection: AsyncCaller | None = None, session: AsyncCaller | None = None
    ) -> Accepted:
        """`Outtray.enqueue`; `connection` and `session` are SQLAlchemy's or psycopg's async ones."""
        caller = connection if connection is not None else session
        if caller is None:
            return await self._runner.run(enqueue(self._runner.door, message))
        opened = await open_async_caller(caller)
        return await self._runner.run_inside(enqueue(self._runner.door, message, remember=False), opened)

    async def enqueue_many(
        self,
        messages: Iterable[many.MessageInput] | AsyncIterable[many.MessageInput] = (),
        *,
        template: str | None = None,
        rows: Iterable[Mapping[str, Any]] = (),
        then: Sequence[tuple[str, timedelta | str]] = (),
        common: Mapping[str, Any] | None = None,
        key: str | None = None,
        in_one_transaction: bool = False,
        keep_going: bool = False,
        on_progress: many.OnProgress | None = None,
        connection: AsyncCaller | None = None,
    ) -> many.ManyResult:
        """`Outtray.enqueue_many`; takes an async iterable too."""
        tally = many.Tally(keep_going, on_progress)
        filling: Filling | None = None
        if template is not None:
            mailing = await self._runner.run(find_mailing(self._runner.door, template, then, common, key))
            filling = Filling(mailing, rows)
            messages = filling.messages()
            if not keep_going:
                tally.refuse(filling.check() if filling.can_be_read_again else [])
                in_one_transaction = in_one_transaction or (connection is None and not filling.can_be_read_again)
        async with self._batches_run_by(in_one_transaction, connection, tally) as carry_out:
            async for batch in many.async_batches(messages):
                inside = in_one_transaction or connection is not None
                answers = await carry_out(many.enqueue_one_batch(self._runner.door, batch, keep_going, not inside))
                tally.take(filling.by_row(answers) if filling is not None else answers)
        return tally.result

    @asynccontextmanager
    async def _batches_run_by(
        self, in_one_transaction: bool, caller: AsyncCaller | None, tally: many.Tally
    ) -> AsyncIterator[Callable[[Plan[Any]], Awaitable[Any]]]:
        if caller is not None:
            opened = await open_async_caller(caller)
            yield lambda plan: self._runner.run_inside(plan, opened)
        elif in_one_transaction:
            with tally.all_or_nothing():
                wakes: Wakes = {}
                async with self._runner.connections.take() as own, own.transaction():
                    yield lambda plan: _collecting(run_async(plan, own, inside=True), wakes)
                await self._runner.publish(wakes)
        else:
            yield self._runner.run

    @asynccontextmanager
    async def transaction(self, connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
        """`Outtray.transaction`, for psycopg's `AsyncConnection`."""
        frames = self._runner.frames.setdefault(connection, Frames())
        frames.push()
        committed = False
        try:
            async with connection.transaction():
                yield
            committed = True
        finally:
            wakes = frames.pop(committed)
        if connection.info.transaction_status == TransactionStatus.IDLE:
            await self._runner.publish(wakes)

    wake = _carried_out(wakes_of)
    get = _carried_out(find.get)
    list = _carried_out(find.list_messages)
    journal = _carried_out(find.journal)
    explain = _carried_out(explaining.explain_message)
    cancel = _carried_out(cancelling.cancel)
    cancel_where = _carried_out(cancelling.cancel_where)
    reschedule = _carried_out(cancelling.reschedule)
    resolve = _carried_out(resolving.resolve)
    resolve_where = _carried_out(resolving.resolve_where)
    unknown = _carried_out(resolving.unknown)
    evidence = _carried_out(resolving.evidence)
    events = _carried_out(outbox.read_events)
    pause = _carried_out(switching.pause)
    resume = _carried_out(switching.resume)
    switches = _carried_out(switching.list_switches)
    explain_address = _carried_out(explaining_addresses.explain_address)
    refusals = _carried_out(refusals.refusals)
    retry_one = _carried_out(retrying.retry_one)
    retry_where = _carried_out(retrying.retry_where)
    erase_recipient = _carried_out(erasing.erase_recipient)
    suppress = _carried_out(suppression.suppress)
    suppress_many = _carried_out(suppression.suppress_many)
    unsuppress = _carried_out(suppression.unsuppress)
    suppressions = _carried_out(suppression.suppressions)

    async def follow_events(self, after: str | None = None) -> AsyncIterator[outbox.EventPage]:
        """Pages of events after a cursor, for ever, waiting for new ones."""
        pause = pauses()
        while True:
            page = await self.events(after=after, limit=outbox.MOST)
            after = page.cursor
            if page.events:
                yield page
                pause = pauses()
            else:
                await asyncio.sleep(next(pause))

    async def wait(self, message_id: UUID, timeout: float) -> find.MessageView:  # noqa: ASYNC109 - the sync client's name
        """Wait until a message has ended or is unknown. Raises `TimeoutError` after `timeout` seconds, `NotFound`."""
        until = time.monotonic() + timeout
        for pause in pauses():
            view = await self.get(message_id)
            if is_settled(view.state):
                return view
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError(f"message {message_id} is still {view.state} after {timeout:g} s")
            await asyncio.sleep(min(pause, rest))
        raise AssertionError("pauses never end")


async def _collecting(answered: Awaitable[tuple[T, Wakes]], wakes: Wakes) -> T:
    answer, more = await answered
    add_wakes(wakes, more)
    return answer
