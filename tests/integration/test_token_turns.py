"""Tokens in the turns of a whole worker: who is asked to reconnect, who only waits, and what flows again by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from acceptance.token_worker import TokenProvider
from inside import Inside, inside
from outtray import Outtray
from outtray_sandbox.smtp import SmtpServer
from outtray_schema.consent import SCOPES
from outtray_worker.providers.smtp import SmtpProvider
from polling import until
from token_server import CLIENT, SECRET, Answer, TokenServer
from world import run

SEND = SCOPES["google"]["send"][0]


@dataclass
class Office:
    """A worker, a token server, and the client that connects mailboxes."""

    worker: Inside
    server: TokenServer
    ledger: Path

    @property
    def client(self) -> Outtray:
        return self.worker.client

    def connect(self, person: str = "ann", **fields: Any) -> UUID:
        more = {"limits": {"messages": None}, "scopes": [SEND], "provider_app": "google"} | fields
        token = self.server.add_person(person, " ".join(more["scopes"]))
        return self.client.mailboxes.add_google(f"{person}@example.org", refresh_token=token, **more).id

    async def kinds(self, kind: str) -> list[UUID | None]:
        return [event["mailbox_id"] for event in await self.worker.events(kind)]

    async def status(self, box: UUID) -> tuple[str, str | None]:
        row = await self.worker.box(box)
        return row["status"], row["status_reason"]


@asynccontextmanager
async def office(database: Any, folder: Path, provider: Any = None, **server: Any) -> AsyncIterator[Office]:
    ledger = folder / "handed-over"
    ledger.touch()
    with TokenServer(**server) as running:
        settings = database.settings.model_copy(update=running.settings)
        async with inside(settings, provider or TokenProvider(ledger)) as worker:
            worker.client.provider_apps.add("google", "google", client_id=CLIENT, secret=SECRET)
            yield Office(worker, running, ledger)


def test_a_withdrawn_consent_is_told_once_keeps_the_queue_and_flows_again(database, tmp_path):
    async def test() -> None:
        async with office(database, tmp_path) as o:
            box = o.connect()
            o.server.people["ann"].revoked = True
            messages = o.worker.enqueue(box, 3)
            await o.worker.until_idle()
            status, reason = await o.status(box)
            assert status == "reconnect" and "withdrawn" in str(reason)
            assert await o.kinds("mailbox.reconnect") == [box]
            assert await o.worker.states() == {"queued": 3}
            assert (await o.worker.message(messages[0]))["attempt"] == 0, "nobody burns attempts by waiting"
            o.client.mailboxes.connect(box, refresh_token=o.server.add_person("ann"), scopes=[SEND])
            await o.worker.until_idle()
            assert await o.worker.states() == {"sent": 3}
            o.server.people["ann"].revoked = True
            await o.worker.w.db.execute("UPDATE outtray.token SET expires_at = outtray.outtray_now()")
            o.worker.process.auth._cache.clear()
            o.worker.enqueue(box)
            await o.worker.until_idle()
            assert await o.kinds("mailbox.reconnect") == [box, box], "the next fall is told again, once"

    run(test())


def test_a_hold_is_written_against_the_credentials_that_the_turn_rotated(database, tmp_path):
    """A provider that refuses a token which this very turn had refreshed: held now, not at some later turn."""

    class Refusing(TokenProvider):
        def open(self, account: Any) -> Any:
            session = super().open(account)

            async def prepare(mail: Any) -> Any:
                from outtray_schema.outcome import Held

                token = await account.tokens.access()
                await account.tokens.renewed(token)
                return Held("the provider refuses a fresh token")

            session.prepare = prepare  # type: ignore[method-assign]
            return session

    async def test() -> None:
        async with office(database, tmp_path, Refusing(tmp_path / "x"), rotate=True, strict=True) as o:
            box = o.connect()
            o.worker.enqueue(box)
            await o.worker.round()
            assert (await o.status(box))[0] == "reconnect"
            assert await o.kinds("mailbox.reconnect") == [box]
            assert len(o.server.requests) == 2

    run(test())


def test_a_hold_is_written_against_what_somebody_else_rotated_meanwhile(database, tmp_path):
    """Between the claim and the refresh another worker rotated, and then the consent was withdrawn."""

    async def test() -> None:
        async with office(database, tmp_path, rotate=True) as o:
            box = o.connect()
            o.worker.enqueue(box)
            claimed = o.worker.process.open_session

            def rotate_first(mailbox: Any) -> Any:
                mailbox.credentials_version -= 1  # as if it had been claimed before that rotation
                o.server.people["ann"].revoked = True
                mailbox.credentials, mailbox.credentials_version = sealed_before(mailbox)
                return claimed(mailbox)

            def sealed_before(mailbox: Any) -> tuple[bytes, int]:
                from outtray_schema import bindings

                ring, version = o.worker.process.vault.credentials, mailbox.credentials_version
                old = ring.decrypt(mailbox.credentials, bindings.credentials(mailbox.id, version + 1))
                return ring.encrypt(old, bindings.credentials(mailbox.id, version)), version

            o.worker.process.open_session = rotate_first  # type: ignore[method-assign]
            await o.worker.round()
            assert (await o.status(box))[0] == "reconnect"
            assert await o.kinds("mailbox.reconnect") == [box]

    run(test())


def test_a_refused_client_parks_its_mailboxes_asks_nobody_and_a_new_secret_frees_them(database, tmp_path):
    async def test() -> None:
        async with office(database, tmp_path) as o:
            boxes = [o.connect(person) for person in ("ann", "bob")]
            o.server.secret = "another by now"
            for box in boxes:
                o.worker.enqueue(box)
            await o.worker.until_idle()
            assert [await o.status(box) for box in boxes] == [("active", None)] * 2
            assert await o.kinds("mailbox.reconnect") == []
            assert await o.kinds("provider_app.refused") == [None]
            why = o.client.mailboxes.explain(boxes[0])
            assert (why.code, why.who) == ("provider_app", "operator")
            asked = len(o.server.requests)
            assert asked <= 2, "one of each mailbox at most"
            o.client.provider_apps.set_secret("google", "another by now")
            await o.worker.until_idle()
            assert await o.worker.states() == {"sent": 2}
            assert len(o.server.requests) == asked + 2

    run(test())


def test_who_was_just_being_parked_when_the_secret_came_goes_on_too(database, tmp_path, monkeypatch):
    from outtray_worker.auth import watch

    monkeypatch.setattr(watch, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(watch, "FREE_AGAIN", 0.2)

    async def test() -> None:
        async with office(database, tmp_path) as o:
            box = o.connect()
            o.server.secret = "another by now"
            o.worker.enqueue(box)
            await o.worker.until_idle()
            o.client.provider_apps.set_secret("google", "another by now")
            # Written by a turn that had read the refused client a moment before.
            await o.worker.w.db.execute(
                "UPDATE outtray.mailbox SET parked_until = now() + interval '1 h', next_at = now() + interval '1 h',"
                " parked_reason = 'provider app refused (google): late'"
            )
            await until_async(o, box)
            await o.worker.until_idle()
            assert await o.worker.states() == {"sent": 1}

    async def until_async(o: Office, box: UUID) -> None:
        import asyncio

        async with asyncio.timeout(10):
            while (await o.worker.box(box))["parked_until"] is not None:
                await asyncio.sleep(0.02)

    run(test())


def test_a_slow_token_endpoint_costs_the_message_nothing(database, tmp_path):
    async def test() -> None:
        async with office(database, tmp_path) as o:
            box = o.connect()
            o.server.say(Answer(503, ""), Answer(drop=True))
            (message,) = o.worker.enqueue(box)
            await o.worker.round()
            row = await o.worker.box(box)
            assert (row["status"], row["parks"]) == ("active", 1) and row["parked_until"] is not None
            assert (await o.worker.message(message))["attempt"] == 0
            assert await o.kinds("mailbox.parked") == [box]

    run(test())


# ── SMTP by the same consents ─────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def smtp_office(database: Any, folder: Path) -> AsyncIterator[tuple[Office, SmtpServer, UUID]]:
    """A mailbox that sends by SMTP with a Google consent; the server takes the tokens that the test tells it of."""
    settings = database.settings.model_copy(update={"smtp_clear_loopback": True})
    with SmtpServer(folder / "accepted.jsonl", users={}) as smtp:
        changed = type(database)(settings)
        async with office(changed, folder, SmtpProvider(settings)) as o:
            box = o.connect(
                scopes=SCOPES["google"]["smtp"],
                smtp=True,
                server={"host": smtp.host, "port": smtp.port, "tls": "clear"},
            )
            yield o, smtp, box


def accept_only(smtp: SmtpServer, token: str) -> None:
    smtp.do("add_user", user="ann@example.org", password=token)


def test_a_mail_leaves_by_smtp_with_a_token_and_a_refused_one_is_renewed_once(database, tmp_path):
    async def test() -> None:
        async with smtp_office(database, tmp_path) as (o, smtp, box):
            o.worker.enqueue(box)
            # The first token is one that the server does not know; the next is told to it as it is given.
            real = o.server._grant

            def grant(*args: Any) -> dict[str, Any]:
                said = real(*args)
                if len(o.server.requests) == 2:
                    accept_only(smtp, said["access_token"])
                return said

            o.server._grant = grant  # type: ignore[method-assign]
            await o.worker.round()
            assert await o.worker.states() == {"sent": 1}
            assert (len(o.server.requests), smtp.seen["connections"], smtp.seen["auth"]) == (2, 2, 2)
            o.worker.enqueue(box)
            await o.worker.until_idle()
            assert await o.worker.states() == {"sent": 2} and len(o.server.requests) == 2

    run(test())


def test_a_server_that_refuses_two_tokens_in_a_row_needs_the_person(database, tmp_path):
    async def test() -> None:
        async with smtp_office(database, tmp_path) as (o, smtp, box):
            o.worker.enqueue(box)
            await o.worker.until_idle()
            status, reason = await o.status(box)
            assert status == "reconnect" and "refuses" in str(reason)
            assert (len(o.server.requests), smtp.seen["auth"]) == (2, 2), "one further login, and no more"
            assert await o.kinds("mailbox.reconnect") == [box]
            said = str(await o.worker.w.rows("SELECT x::text FROM outtray.event AS x"))
            said += str(await o.worker.w.rows("SELECT x::text FROM outtray.journal AS x"))
            assert not [token for token in o.server.valid if token in said]

    run(test())


def test_a_withdrawn_consent_reaches_smtp_as_it_reaches_the_api(database, tmp_path):
    async def test() -> None:
        async with smtp_office(database, tmp_path) as (o, smtp, box):
            o.server.people["ann"].revoked = True
            o.worker.enqueue(box)
            await o.worker.until_idle()
            assert (await o.status(box))[0] == "reconnect"
            assert smtp.seen["connections"] == 0, "nobody knocks without a token"

    run(test())


def test_nothing_of_a_token_reaches_redis(database, tmp_path, redis):
    async def test() -> None:
        async with office(database, tmp_path) as o:
            box = o.connect()
            o.worker.enqueue(box, 2)
            await o.worker.until_idle()
            await until(lambda: len(o.ledger.read_text().splitlines()) == 2)
            from acceptance.canaries import everything_in_redis

            kept = everything_in_redis(redis)
            assert not [token for token in [*o.server.valid, *o.server.people["ann"].chain] if token in kept]

    run(test())
