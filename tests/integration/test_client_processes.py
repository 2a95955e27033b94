"""The client over forks, threads and event loops: its connections are never shared where they must not be."""

from __future__ import annotations

import asyncio
import os
import threading
from importlib.metadata import EntryPoint

import pytest

import outtray.embedded
from crm import ADDRESS, ask, count, crm, hello
from outtray import AsyncOuttray, Outtray, SettingsError, load_settings
from outtray.connections import AT_MOST
from polling import eventually


def test_a_forked_child_and_its_parent_both_go_on(database):
    with crm(database.settings) as client:
        first = client.enqueue(hello()).id
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if client.enqueue(hello()).created and client.get(first).id == first else 1)
            except BaseException:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert client.enqueue(hello()).created
    assert count(database.settings, "message") == 3


def test_more_threads_than_connections_take_turns(database):
    with crm(database.settings) as client:
        errors = []

        def enqueue_some():
            try:
                for _ in range(5):
                    client.enqueue(hello())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=enqueue_some) for _ in range(3 * AT_MOST)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert count(database.settings, "message") == 15 * AT_MOST


def test_one_async_client_serves_several_event_loops_and_many_tasks(database):
    with crm(database.settings):
        pass
    outtray_client = AsyncOuttray(database.settings, app="default")

    async def scene():
        accepted = await asyncio.gather(*(outtray_client.enqueue(hello()) for _ in range(3 * AT_MOST)))
        await outtray_client.close()
        return accepted

    for _ in range(2):
        assert all(each.created for each in asyncio.run(scene()))
    assert count(database.settings, "message") == 6 * AT_MOST


def test_a_client_that_is_closed_leaves_no_session_behind(database):
    with crm(database.settings) as client:
        client.enqueue(hello())
    sessions = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'outtray-producer' AND datname = current_database()"
    )
    eventually(lambda: not ask(database.settings, sessions), what="the client's sessions end")


def test_without_settings_and_without_embedded_servers_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(outtray.embedded, "entry_points", lambda group: [])
    with pytest.raises(SettingsError, match="OUTTRAY_DATABASE_URL"):
        Outtray(load_settings(data_folder=tmp_path))


@pytest.mark.slow
def test_without_settings_the_embedded_servers_are_used_and_the_data_is_kept(tmp_path, monkeypatch):
    point = EntryPoint("sandbox", "outtray_sandbox.services:use_embedded", "outtray.embedded")
    monkeypatch.setattr(outtray.embedded, "entry_points", lambda group: [point])
    settings = load_settings(data_folder=tmp_path / "data")
    with Outtray(settings) as client:
        client.mailboxes.add_smtp(ADDRESS, host="smtp.sender.example", password="x", default=True)
        message_id = client.enqueue(hello()).id
    with Outtray(settings) as client:
        assert client.get(message_id).subject == "Hello"
