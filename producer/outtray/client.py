"""`Outtray`: the client that an app imports. Blocking; share one between threads, keep it over a fork."""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from outtray.connections import Connections
from outtray.door import Door, MailboxName
from outtray.embedded import embedded_services
from outtray.enqueue import Accepted, enqueue, wakes_of
from outtray.mailing import Filling, find_mailing
from outtray.oauth_revoke import revoke_at_google
from outtray.plan import Plan, Wakes, add_wakes, run
from outtray.transaction import AfterCommit, Caller, Frames, Opened, open_caller
from outtray.waiting import is_settled, pauses
from outtray.wakes import WakePublisher
from outtray_schema.message import Message
from outtray_schema.settings import Settings, load_settings
from outtray_schema.vault import load_vault

P = ParamSpec("P")
T = TypeVar("T")


class _Runner:
    """One client's way to PostgreSQL and Redis."""

    def __init__(self, settings: Settings, app: str | None, actor: str | None) -> None:
        self.settings = settings
        self.door = Door(settings, load_vault(settings), app, actor)
        self.connections = Connections(settings)
        self.publisher = WakePublisher(settings)
        self.frames: weakref.WeakKeyDictionary[psycopg.Connection[Any], Frames] = weakref.WeakKeyDictionary()
        _runners.add(self)

    def run(self, plan: Plan[T]) -> T:
        """Carry out a plan on a connection of our own, then publish its wakes."""
        with self.connections.take() as connection:
            answer, wakes = run(plan, connection)
        self.publisher.publish(wakes)
        return answer

    def run_inside(self, plan: Plan[T], opened: Opened) -> T:
        """Carry out a plan in the caller's transaction; its wakes follow their commit."""
        driver = opened.driver
        assert isinstance(driver, psycopg.Connection)  # noqa: S101 - open_caller gives no other
        answer, wakes = run(plan, driver, inside=True)
        if opened.connection is not None:
            AfterCommit.of(opened).add(self.publisher.publish, wakes)
        elif driver in self.frames:
            self.frames[driver].add(wakes)
        return answer

    def renew(self) -> None:
        self.connections.renew()
        self.publisher = WakePublisher(self.settings)

    def close(self) -> None:
        _runners.discard(self)
        self.connections.close()
        self.publisher.close()


_runners: weakref.WeakSet[_Runner] = weakref.WeakSet()


def _renew_after_fork() -> None:
    """A forked child must not speak on its parent's connections."""
    for runner in list(_runners):
        runner.renew()


os.register_at_fork(after_in_child=_renew_after_fork)


class _Part:
    """Part of a client: methods that carry out plans."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner


S = TypeVar("S", bound=_Part)


def _carried_out(plan: Callable[Concatenate[Door, P], Plan[T]]) -> Callable[Concatenate[S, P], T]:
    """A method that carries out this plan, with its signature and words."""

    @functools.wraps(plan)
    def method(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._runner.run(plan(self._runner.door, *args, **kwargs))

    return method


class Mailboxes(_Part):
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

    def revoke(self, mailbox: MailboxName, *, force: bool = False) -> oauth.Disconnected:
        """End a consent at Google itself, then erase its tokens here. Google ends all of the person's with the project.

        Raises `WrongState` on any but the person's last connection, unless `force`, and where the provider has no
        revocation; `Unavailable` if Google does not answer: then nothing was changed. Waits up to `token_timeout`.
        """
        found = self._runner.run(oauth.revocable(self._runner.door, mailbox, force))
        revoke_at_google(self._runner.settings, found.refresh_token)
        return self._runner.run(oauth.disconnect(self._runner.door, found.mailbox_id, "revoked"))


class ProviderApps(_Part):
    """`client.provider_apps`: the OAuth clients by which mailboxes log in."""

    add = _carried_out(oauth_apps.add)
    get = _carried_out(oauth_apps.get)
    list = _carried_out(oauth_apps.list_all)
    set = _carried_out(oauth_apps.change)
    set_secret = _carried_out(oauth_apps.set_secret)
    remove = _carried_out(oauth_apps.remove)


class Budgets(_Part):
    """`client.budgets`: limits of 24 hours that several mailboxes share, of every app."""

    add = _carried_out(budgets.add)
    list = _carried_out(budgets.list_all)
    set = _carried_out(budgets.change)
    remove = _carried_out(budgets.remove)


class Templates(_Part):
    """`client.templates`: the app's templates. Rendering them needs the extra `templates`."""

    add = _carried_out(templates.add)
    list = _carried_out(templates.list_all)
    show = _carried_out(templates.show)
    preview = _carried_out(templates.preview)


class Apps(_Part):
    """`client.apps`: every app of the installation."""

    add = _carried_out(apps.add)
    list = _carried_out(apps.list_all)


class Outtray(_Part):
    """The client of one app. Use it as a context manager, or `close` it.

        with Outtray() as outtray:
            outtray.enqueue(Message(to="ann@example.com", subject="Hello", text="..."))

    `settings`: default the environment's (docs/settings.md). `app`: the app it speaks for, default `OUTTRAY_APP`.
    `actor`: who is said in journals to have done it, default the system's user. Makes no connection before its first
    use. Every method raises `Unavailable` when PostgreSQL does not answer, at once or within `database_timeout`.
    """

    def __init__(self, settings: Settings | None = None, *, app: str | None = None, actor: str | None = None) -> None:
        settings = settings or load_settings()
        with ExitStack() as closing:
            if settings.embedded:
                settings = closing.enter_context(embedded_services(settings))
            super().__init__(_Runner(settings, app, actor))
            closing.callback(self._runner.close)
            self._closing = closing.pop_all()
        self.settings = settings
        self.mailboxes = Mailboxes(self._runner)
        self.apps = Apps(self._runner)
        self.provider_apps = ProviderApps(self._runner)
        self.budgets = Budgets(self._runner)
        self.templates = Templates(self._runner)

    def __enter__(self) -> Outtray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections, and the embedded servers if this client used them."""
        self._closing.close()

    def enqueue(self, message: Message, *, connection: Caller | None = None, session: Caller | None = None) -> Accepted:
        """Accept a message; from then on it is ours.

        With `connection` or `session` it is written in the caller's transaction (see `transaction.py` for which), and
        committed by nobody but them; the wake follows their commit. Their driver's errors are raised as they are.
        Raises `InvalidMessage`, `IdempotencyConflict`, `NotFound`, `Unavailable`.
        """
        caller = connection if connection is not None else session
        if caller is None:
            return self._runner.run(enqueue(self._runner.door, message))
        return self._runner.run_inside(enqueue(self._runner.door, message, remember=False), open_caller(caller))

    def enqueue_many(
        self,
        messages: Iterable[many.MessageInput] = (),
        *,
        template: str | None = None,
        rows: Iterable[Mapping[str, Any]] = (),
        then: Sequence[tuple[str, timedelta | str]] = (),
        common: Mapping[str, Any] | None = None,
        key: str | None = None,
        in_one_transaction: bool = False,
        keep_going: bool = False,
        on_progress: many.OnProgress | None = None,
        connection: Caller | None = None,
    ) -> many.ManyResult:
        """Accept any number of messages (or mappings of their fields) in bounded memory.

        By default in batches, each a transaction of its own: the first refused message ends it (`ManyRefused`), with
        nothing of its batch stored. `keep_going` stores the good ones and answers with the refused.

        `template` and `rows` instead of messages: a stored template, filled from mappings with `to` and its variables;
        `then`, more templates to follow it, each with its delay; `common`, fields of all these messages; `key`, under
        which a row's messages are stored only once. Every row is checked before anything is stored (rows that can be
        read only once: all of them are one transaction). Refusals name the row's position.

        `in_one_transaction`: all or nothing of it; the iterable must then never pause for a minute, since PostgreSQL
        ends a transaction that idles longer. `connection`: in the caller's transaction, as with `enqueue`.
        """
        tally = many.Tally(keep_going, on_progress)
        filling: Filling | None = None
        if template is not None:
            mailing = self._runner.run(find_mailing(self._runner.door, template, then, common, key))
            filling = Filling(mailing, rows)
            messages = filling.messages()
            if not keep_going:
                tally.refuse(filling.check() if filling.can_be_read_again else [])
                in_one_transaction = in_one_transaction or (connection is None and not filling.can_be_read_again)
        with self._batches_run_by(in_one_transaction, connection, tally) as carry_out:
            for batch in many.batches(messages):
                inside = in_one_transaction or connection is not None
                answers = carry_out(many.enqueue_one_batch(self._runner.door, batch, keep_going, not inside))
                tally.take(filling.by_row(answers) if filling is not None else answers)
        return tally.result

    @contextmanager
    def _batches_run_by(
        self, in_one_transaction: bool, caller: Caller | None, tally: many.Tally
    ) -> Iterator[Callable[[Plan[Any]], Any]]:
        if caller is not None:
            opened = open_caller(caller)
            yield lambda plan: self._runner.run_inside(plan, opened)
        elif in_one_transaction:
            with tally.all_or_nothing():
                wakes: Wakes = {}
                with self._runner.connections.take() as own, own.transaction():
                    yield lambda plan: _collecting(run(plan, own, inside=True), wakes)
                self._runner.publisher.publish(wakes)
        else:
            yield self._runner.run

    @contextmanager
    def transaction(self, connection: psycopg.Connection[Any]) -> Iterator[None]:
        """`with connection.transaction():`, with the wakes of what is enqueued in it published after its commit.

        Inside a transaction that was open before, it is a savepoint as psycopg's is, and the caller calls `wake`.
        """
        frames = self._runner.frames.setdefault(connection, Frames())
        frames.push()
        committed = False
        try:
            with connection.transaction():
                yield
            committed = True
        finally:
            wakes = frames.pop(committed)
        if connection.info.transaction_status == TransactionStatus.IDLE:
            self._runner.publisher.publish(wakes)

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

    def follow_events(
        self, after: str | None = None, *, stop: threading.Event | None = None
    ) -> Iterator[outbox.EventPage]:
        """Pages of events after a cursor, for ever, waiting for new ones; ends once `stop` is set."""
        stop, pause = stop or threading.Event(), pauses()
        while not stop.is_set():
            page = self.events(after=after, limit=outbox.MOST)
            if page.events:
                yield page
                pause = pauses()
            else:
                stop.wait(next(pause))
            after = page.cursor

    def wait(
        self, message_id: UUID, timeout: float, *, sleep: Callable[[float], object] = time.sleep
    ) -> find.MessageView:
        """Wait until a message has ended or is unknown. Raises `TimeoutError` after `timeout` seconds, `NotFound`."""
        until = time.monotonic() + timeout
        for pause in pauses():
            view = self.get(message_id)
            if is_settled(view.state):
                return view
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError(f"message {message_id} is still {view.state} after {timeout:g} s")
            sleep(min(pause, rest))
        raise AssertionError("pauses never end")


def _collecting(answered: tuple[T, Wakes], wakes: Wakes) -> T:
    add_wakes(wakes, answered[1])
    return answered[0]
