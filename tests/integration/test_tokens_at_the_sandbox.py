"""Tokens at the sandbox's Google and Entra, which are as strict as the real ones: every kind of login, and its end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from databases import Database
from outtray_sandbox.google import GoogleHouse, GoogleServer
from outtray_sandbox.google import Ledger as GoogleLedger
from outtray_sandbox.microsoft import Ledger as MicrosoftLedger
from outtray_sandbox.microsoft import MicrosoftHouse, MicrosoftServer
from outtray_schema.consent import SCOPES
from outtray_schema.outcome import Held, Parked
from outtray_worker.auth.tokens import MailboxTokens
from pems import certificate
from tokens import GOOGLE_SEND, SMTP_SCOPE, Box, Tokens, outcome_of, tokens
from world import run


@dataclass
class Sandbox:
    """Both fakes, and the tokens of workers that know only them."""

    t: Tokens
    google: GoogleHouse
    microsoft: MicrosoftHouse

    async def google_box(self, *scopes: str) -> Box:
        self.google.add_client("client-1", "secret-1")
        self.google.add_user("ann@example.org")
        await self.t.app("google")
        token = self.google.tokens.new_refresh("client-1", "ann@example.org", [*scopes, "openid"])
        return await self.t.mailbox("google", {"kind": "google", "refresh_token": token}, list(scopes))

    async def entra_box(self, *scopes: str, **client: Any) -> Box:
        self.microsoft.add_client("client-1", **({"secret": "secret-1"} | client))
        self.microsoft.add_user("ann@contoso.example")
        await self.t.app("entra", "microsoft")
        self.microsoft.consents["ann@contoso.example"] |= {scope.rpartition("/")[2] for scope in scopes}
        token = self.microsoft.issue_refresh("ann@contoso.example", "client-1", frozenset(scopes))
        credentials = {"kind": "microsoft", "refresh_token": token, "tenant": "contoso"}
        return await self.t.mailbox("entra", credentials, list(scopes), provider="microsoft")


@asynccontextmanager
async def sandbox(database: Database, folder: Path) -> AsyncIterator[Sandbox]:
    with ExitStack() as stack:
        google = GoogleHouse(GoogleLedger(folder / "google.jsonl"))
        microsoft = MicrosoftHouse(MicrosoftLedger(folder / "microsoft.jsonl"))
        at_google = stack.enter_context(GoogleServer(google))
        at_microsoft = stack.enter_context(MicrosoftServer(microsoft))
        places = {"google_token_url": at_google.token_url, "entra_url": at_microsoft.entra_url}
        async with tokens(database) as t:
            t.settings = t.settings.model_copy(update=places)
            yield Sandbox(t, google, microsoft)


def test_a_persons_token_at_google_is_one_of_what_they_granted(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            box = await s.google_box(GOOGLE_SEND)
            token = await MailboxTokens(await s.t.worker(), box).access()
            assert s.google.tokens.holder(token).email == "ann@example.org"
            s.google.tokens.forget("ann@example.org")
            await s.t.expire(box)
            outcome = await outcome_of(MailboxTokens(await s.t.worker(), box))
            assert isinstance(outcome, Held) and outcome.evidence["rule"] == "consent-ended"

    run(test())


def test_one_scope_that_was_withdrawn_at_google_is_named(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            compose, metadata = SCOPES["google"]["compose"]
            box = await s.google_box(compose, metadata)
            s.google.tokens.withdraw("ann@example.org", metadata)
            outcome = await outcome_of(MailboxTokens(await s.t.worker(), box))
            assert isinstance(outcome, Held) and metadata in outcome.reason and compose not in outcome.reason

    run(test())


def test_a_service_account_acts_for_a_person_of_its_domain(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            key = rsa.generate_private_key(65537, 2048)
            public = key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            s.google.add_service_account("robot@project.example", public.decode(), [GOOGLE_SEND])
            s.google.add_user("ann@example.org")
            info = {
                "type": "service_account", "client_email": "robot@project.example", "private_key": pem(key),
                "token_uri": "https://elsewhere.example/token",
            }  # fmt: skip
            await s.t.app("robot", kind="service_account", secret=json.dumps(info))
            credentials = {"kind": "google_service_account", "subject": "ann@example.org"}
            box = await s.t.mailbox("robot", credentials, [GOOGLE_SEND])
            auth = await s.t.worker()
            assert s.google.tokens.holder(await MailboxTokens(auth, box).access()).email == "ann@example.org"
            more = await s.t.mailbox("robot", credentials, [GOOGLE_SEND, SCOPES["google"]["compose"][0]])
            outcome = await outcome_of(MailboxTokens(auth, more))
            assert isinstance(outcome, Parked) and outcome.scope == "tenant", "its administrator has to delegate"
            gone = await s.t.mailbox("robot", credentials | {"subject": "gone@example.org"}, [GOOGLE_SEND])
            assert isinstance(await outcome_of(MailboxTokens(auth, gone)), Held)

    run(test())


def pem(key: Any) -> str:
    plain = serialization.NoEncryption()
    return str(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode())


def test_entra_gives_each_resource_a_token_of_its_own_and_rotates(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            s.microsoft.strict_rotation = True
            box = await s.entra_box("Mail.Send", SMTP_SCOPE)
            auth = await s.t.worker()
            graph = await MailboxTokens(auth, box).access()
            smtp = await MailboxTokens(auth, box, "smtp").access()
            assert graph != smtp and s.microsoft.refreshes["ann@contoso.example"] == 2
            assert (await s.t.stored(box))["version"] == 3

    run(test())


def test_a_permission_that_was_withdrawn_at_entra_needs_the_person(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            box = await s.entra_box("Mail.Send", "Mail.ReadWrite")
            s.microsoft.consents["ann@contoso.example"].discard("Mail.ReadWrite")
            outcome = await outcome_of(MailboxTokens(await s.t.worker(), box))
            assert isinstance(outcome, Held) and outcome.evidence["rule"] == "consent-missing"

    run(test())


def test_an_expired_client_secret_at_entra_pauses_the_client_and_asks_no_person(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            box = await s.entra_box("Mail.Send", secret_expired=True)
            outcome = await outcome_of(MailboxTokens(await s.t.worker(), box))
            assert isinstance(outcome, Parked) and outcome.scope == "app"
            assert "expired" in outcome.reason

    run(test())


def test_a_certificate_proves_the_app_itself(database, tmp_path):
    async def test() -> None:
        async with sandbox(database, tmp_path) as s:
            whole = certificate()
            s.microsoft.add_client("client-1", certificate=whole.encode(), roles=["Mail.Send"])
            await s.t.app("daemon", "microsoft", kind="client_credentials", secret=whole, tenant="contoso")
            credentials = {"kind": "microsoft_app", "subject": "ann@contoso.example"}
            box = await s.t.mailbox("daemon", credentials, ["Mail.Send"], provider="microsoft")
            assert await MailboxTokens(await s.t.worker(), box).access()

    run(test())
