"""Enqueue in the caller's own transaction: they commit, and only then does anybody hear of it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from crm import count, crm, forget_wakes, hello, message_row, published
from outtray import AsyncOuttray, Attachment, IdempotencyConflict, Outtray, Refused
from outtray_schema.database import conninfo


def url(settings):
    return "postgresql+psycopg://" + conninfo(settings).removeprefix("postgresql://")


@pytest.fixture
def engine(database):
    engine = sa.create_engine(url(database.settings))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE public.deal (id int PRIMARY KEY)"))
    yield engine
    engine.dispose()


@pytest.fixture
def client(database):
    with crm(database.settings) as client:
        yield client


def deals(engine):
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT count(*) FROM public.deal")).scalar_one()


def test_a_session_commits_its_own_rows_and_the_message_together_and_then_the_wake_goes_out(database, engine, client):
    with Session(engine) as session:
        session.execute(sa.text("INSERT INTO public.deal VALUES (1)"))
        accepted = client.enqueue(hello(), session=session)
        assert count(database.settings, "message") == 0 and published(database.settings) == {}
        session.commit()
        assert deals(engine) == 1
        assert published(database.settings) == {
            message_row(database.settings, accepted.id)["mailbox_id"]: accepted.due_at
        }


def test_a_session_that_rolls_back_leaves_neither_message_nor_wake(database, engine, client):
    with Session(engine) as session:
        session.execute(sa.text("INSERT INTO public.deal VALUES (1)"))
        client.enqueue(hello(), session=session)
        session.rollback()
        session.execute(sa.text("INSERT INTO public.deal VALUES (2)"))
        session.commit()
    assert count(database.settings, "message") == 0 and published(database.settings) == {}
    assert deals(engine) == 1


def test_the_wake_goes_out_after_the_commit_and_not_before(database, engine, client, monkeypatch):
    seen = []
    publish = client._runner.publisher.publish
    monkeypatch.setattr(
        client._runner.publisher,
        "publish",
        lambda due: (seen.append(count(database.settings, "message")), publish(due)),
    )
    with engine.begin() as connection:
        client.enqueue(hello(), connection=connection)
    with Session(engine) as session, session.begin():
        client.enqueue(hello(), session=session)
    assert seen == [1, 2]


def test_a_savepoint_that_is_rolled_back_takes_its_wakes_along_and_no_others(database, engine, client):
    other = client.mailboxes.add_smtp("second@sender.example", host="smtp.sender.example", password="x")
    first = client.mailboxes.get()
    with Session(engine) as session:
        with session.begin_nested():
            client.enqueue(hello(), session=session)
        with pytest.raises(RuntimeError), session.begin_nested():
            client.enqueue(hello(mailbox=other.id), session=session)
            raise RuntimeError
        session.commit()
    assert set(published(database.settings)) == {first.id}
    assert count(database.settings, "message") == 1


def test_a_savepoint_that_was_set_before_the_first_enqueue_takes_all_wakes_along(database, engine, client):
    with engine.connect() as connection:
        outer = connection.begin_nested()
        inner = connection.begin_nested()
        client.enqueue(hello(), connection=connection)
        inner.commit()
        outer.rollback()
        connection.execute(sa.text("INSERT INTO public.deal VALUES (1)"))
        connection.commit()
    assert published(database.settings) == {} and count(database.settings, "message") == 0
    assert deals(engine) == 1


def test_a_core_connection_commits_what_was_enqueued_as_its_first_statement(database, engine, client):
    with engine.connect() as connection:
        client.enqueue(hello(), connection=connection)
        connection.commit()
        assert len(published(database.settings)) == 1
        forget_wakes(database.settings)
        connection.execute(sa.text("SELECT 1"))
        connection.commit()
        assert published(database.settings) == {}, "the hook outlived its transaction"
    assert count(database.settings, "message") == 1


def test_a_connection_goes_back_to_its_pool_as_it_came(database, engine, client):
    with engine.connect() as connection:
        client.enqueue(hello(), connection=connection)
        driver = connection.connection.driver_connection
        assert "commit" in vars(driver)
    assert not {"commit", "rollback"} & vars(driver).keys()
    assert published(database.settings) == {} and count(database.settings, "message") == 0


def test_two_clients_may_share_one_transaction(database, engine, client):
    with crm_of_other_app(database) as other, Session(engine) as session:
        client.enqueue(hello(), session=session)
        other.enqueue(hello(), session=session)
        session.commit()
    assert len(published(database.settings)) == 2


def crm_of_other_app(database):
    other = Outtray(database.settings, app="other")
    other.apps.add("other")
    other.mailboxes.add_smtp("eve@other.example", host="smtp.other.example", password="x", default=True)
    return other


def test_a_scoped_session_is_a_session(database, engine, client):
    scoped = scoped_session(sessionmaker(engine))
    client.enqueue(hello(), session=scoped)
    scoped.commit()
    scoped.remove()
    assert count(database.settings, "message") == len(published(database.settings)) == 1


def test_a_refusal_leaves_the_callers_transaction_usable_and_without_half_a_message(database, engine, client, tmp_path):
    client.enqueue(hello(idempotency_key="k"))
    path = tmp_path / "large.bin"
    path.write_bytes(b"x" * 2_000_000)
    message = hello(attachments=[Attachment("large.bin", path=path)])
    with Session(engine) as session:
        session.execute(sa.text("INSERT INTO public.deal VALUES (1)"))
        with pytest.raises(IdempotencyConflict):
            client.enqueue(hello(idempotency_key="k", subject="Other"), session=session)
        _shrink_when_streamed(client, path)
        with pytest.raises(Refused):
            client.enqueue(message, session=session)
        session.commit()
    assert deals(engine) == 1
    assert count(database.settings, "message") == 1 and count(database.settings, "attachment") == 0


def _shrink_when_streamed(client, path):
    """The file is whole while it is judged, and short once its chunks are read."""
    ring = client._runner.door.vault.content
    encrypt = type(ring).encrypt

    class Shrinking(type(ring)):
        __slots__ = ()

        def encrypt(self, data, bound_to):
            path.write_bytes(b"y")
            return encrypt(self, data, bound_to)

    ring.__class__ = Shrinking


def test_a_mailbox_that_was_only_seen_in_a_rolled_back_transaction_is_not_remembered(database, engine, client):
    with engine.connect() as connection:
        connection.execute(sa.text("UPDATE outtray.mailbox SET plan = 'gmail'"))
        client._runner.door.forget()
        client.enqueue(hello(), connection=connection)
        connection.rollback()
    assert client._runner.door._seen == {}


def test_a_large_message_is_written_whole_in_the_callers_transaction(database, engine, client):
    with engine.begin() as connection:
        client.enqueue(hello(attachments=[Attachment("a.bin", content=b"x" * 2_500_000)]), connection=connection)
        client.enqueue(hello(text="x" * 2_500_000), connection=connection)
    assert count(database.settings, "attachment_chunk") == 4 and count(database.settings, "content_chunk") == 3


def test_psycopg_in_our_context_manager_wakes_after_the_outermost_commit(database, client):
    with psycopg.connect(conninfo(database.settings)) as connection:
        with client.transaction(connection):
            client.enqueue(hello(), connection=connection)
            with client.transaction(connection):
                client.enqueue(hello(), connection=connection)
            assert published(database.settings) == {}
        assert len(published(database.settings)) == 1
    assert count(database.settings, "message") == 2


def test_psycopg_rolled_back_in_our_context_manager_wakes_nobody(database, client):
    with psycopg.connect(conninfo(database.settings)) as connection:
        with pytest.raises(RuntimeError), client.transaction(connection):
            client.enqueue(hello(), connection=connection)
            raise RuntimeError
        with client.transaction(connection):
            connection.execute("SELECT 1")
    assert published(database.settings) == {} and count(database.settings, "message") == 0


def test_psycopg_by_hand_wakes_by_hand(database, client):
    with psycopg.connect(conninfo(database.settings)) as connection:
        accepted = client.enqueue(hello(), connection=connection)
        connection.commit()
        assert published(database.settings) == {}
        client.wake([accepted.id])
    assert list(published(database.settings).values()) == [accepted.due_at]


def test_a_connection_in_autocommit_is_refused_because_nothing_could_be_undone(database, engine, client):
    with psycopg.connect(conninfo(database.settings), autocommit=True) as connection:
        with pytest.raises(Refused, match="autocommit"):
            client.enqueue(hello(), connection=connection)
        with connection.transaction():
            client.enqueue(hello(), connection=connection)
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(Refused, match="autocommit"),
    ):
        client.enqueue(hello(), connection=connection)
    assert count(database.settings, "message") == 1


def test_another_driver_and_another_kind_of_thing_are_refused_with_the_cure(client):
    with (
        sa.create_engine("sqlite://").connect() as connection,
        pytest.raises(Refused, match=r"postgresql\+psycopg"),
    ):
        client.enqueue(hello(), connection=connection)
    with pytest.raises(Refused, match="Session, Connection or psycopg"):
        client.enqueue(hello(), connection=object())


def test_a_caller_with_its_own_cursor_factory_and_rows_is_served_all_the_same(database, client):
    kinds = {"cursor_factory": psycopg.ClientCursor, "row_factory": psycopg.rows.dict_row}
    with psycopg.connect(conninfo(database.settings), **kinds) as connection:
        assert client.enqueue(hello(), connection=connection).created
    assert count(database.settings, "message") == 1


def test_many_messages_in_the_callers_transaction_are_all_theirs(database, engine, client):
    with Session(engine) as session:
        result = client.enqueue_many((hello() for _ in range(700)), connection=session)
        assert result.accepted == 700 and count(database.settings, "message") == 0
        session.rollback()
    assert count(database.settings, "message") == 0 and published(database.settings) == {}


def test_async_sessions_and_connections_commit_and_wake_as_sync_ones_do(database, client):
    async def scene():
        engine = create_async_engine(url(database.settings))
        async with AsyncOuttray(database.settings, app="default") as outtray:
            async with AsyncSession(engine) as session:
                await outtray.enqueue(hello(), session=session)
                await session.rollback()
                await outtray.enqueue(hello(), session=session)
                assert published(database.settings) == {}
                await session.commit()
            assert len(published(database.settings)) == 1
            forget_wakes(database.settings)
            async with engine.begin() as connection:
                await outtray.enqueue(hello(), connection=connection)
            assert len(published(database.settings)) == 1
            forget_wakes(database.settings)
            connection = await psycopg.AsyncConnection.connect(conninfo(database.settings))
            async with connection, outtray.transaction(connection):
                await outtray.enqueue(hello(), connection=connection)
            assert len(published(database.settings)) == 1
        await engine.dispose()

    asyncio.run(scene())
    assert count(database.settings, "message") == 3


def test_the_async_client_refuses_what_is_not_async(database, engine, client):
    async def scene():
        async with AsyncOuttray(database.settings, app="default") as outtray:
            with engine.connect() as connection, pytest.raises(Refused, match="async twins"):
                await outtray.enqueue(hello(), connection=connection)

    asyncio.run(scene())
